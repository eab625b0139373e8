"""How many nodes a recipe is given when nobody says, against counting up."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megavlm.platform.config import load_recipe
from megavlm.slurm.work import fewest_nodes

layouts = st.fixed_dictionaries({"tp": st.sampled_from([1, 2, 4, 8]), "pp": st.sampled_from([1, 2, 3, 4])})


@settings(max_examples=15)
@given(st.lists(layouts, min_size=1, max_size=3), st.sampled_from([1, 2, 4, 8]))
def test_the_fewest_nodes_on_which_every_layout_comes_out_even(tmp_path_factory, wanted, processes):
    tree = load_recipe("nvlm-d-mini").tree
    first = tree["stages"]["language"]
    tree["stages"] = {f"s{k}": first | {"parallel": first["parallel"] | layout} for k, layout in enumerate(wanted)}
    path = Path(tmp_path_factory.mktemp("recipe")) / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    sizes = [layout["tp"] * layout["pp"] for layout in wanted]
    counted = next(n for n in range(1, 1000) if all(n * processes % size == 0 for size in sizes))
    assert fewest_nodes(str(path), [], processes, None) == counted
    assert fewest_nodes(str(path), [], processes, "s0") * processes % sizes[0] == 0


@pytest.mark.parametrize(("processes", "nodes"), [(1, 2), (2, 1), (8, 1), (3, 2)])
def test_the_mini_recipe_splits_over_two_ranks(processes, nodes):
    assert fewest_nodes("nvlm-d-mini", [], processes, None) == nodes
