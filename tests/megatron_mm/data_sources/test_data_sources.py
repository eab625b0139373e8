"""The table of the papers' data, and `megavlm data sources`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megavlm.data_curation.convert import CONVERSIONS
from megavlm.data_curation.text.formats import FORMATS
from megavlm.megatron_mm.data.sets import sets_of
from megavlm.megatron_mm.data_sources.table import table
from megavlm.platform.cli import main
from megavlm.platform.config import list_recipes, load_recipe

ROWS = table()
OF_NVLM = {name: row for name, row in ROWS.items() if row.paper.startswith("NVLM")}
NVLM = [name for name in list_recipes() if re.fullmatch(r"nvlm-[dxh]-(7b|34b|72b)", name)]

EAGLE_AND_MMFUSER = [name for name in list_recipes() if re.fullmatch(r"(eagle-x\d|mmfuser)-\d+b.*", name)]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["data", "sources", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_as_many_sets_as_the_paper_s_tables_name() -> None:
    """Counted off tables 4 and 6 and section 5.3; table 6's text-only line is one set here, made of the 12."""
    count = {role: sum(role in row.roles for row in OF_NVLM.values()) for role in ("pretraining", "sft", "text")}
    tasks = [(row.task, "sft" in row.roles and row.task != "text") for row in OF_NVLM.values()]
    assert (count["pretraining"], count["text"]) == (18, 12)
    each = {task: sum(asked and of == task for of, asked in tasks) for task in dict.fromkeys(of for of, _ in tasks)}
    assert each == {
        "captioning": 3,
        "VQA on natural images": 5,
        "general knowledge": 2,
        "visual reasoning": 4,
        "charts and diagrams": 9,
        "tables": 5,
        "documents": 8,
        "OCR, screens and scene text": 28,
        "mathematics": 13,
        "science": 5,
        "visual instructions": 3,
        "text": 0,
        "text: mathematics": 0,
        "text: code": 0,
    }
    assert count["sft"] == sum(each.values()) + 1


@pytest.mark.parametrize("name", NVLM)
def test_every_set_of_nvlm_is_in_the_table_under_its_stage(name: str) -> None:
    stages = load_recipe(name).section("stages").root
    for stage, role in (("pretrain", "pretraining"), ("sft", "sft")):
        assert set(sets_of(stages[stage])) == {each for each, row in OF_NVLM.items() if role in row.roles}


@pytest.mark.parametrize("name", EAGLE_AND_MMFUSER)
def test_every_set_of_eagle_and_mmfuser_is_in_the_table_under_its_role(name: str) -> None:
    role_of = {"pretrain": {"pretraining"}, "sft": {"sft"}, "sft_aligned": {"sft"}}
    for stage_name, stage in load_recipe(name).section("stages").root.items():
        for each in sets_of(stage):
            assert set(ROWS[each].roles) & role_of.get(stage_name, {"pretraining", "sft"}), f"{stage_name}: {each}"


def test_eagle_s_mix_with_what_it_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    """Table 1, in thousands."""
    sets = {row["name"]: row for row in told(capsys, "eagle-x5-7b")["sets"]}
    parts = {name: row["samples"] // 1000 for name, row in sets.items() if row["roles"] == ["Eagle1.8M"]}
    assert sorted(parts.values()) == [11, 15, 20, 25, 28, 39, 50, 70, 100, 120, 150, 220, 300, 665]
    assert parts["eagle-openhermes"] == 300 and parts["eagle-llava"] == 665
    assert (
        set(sets) - set(parts) == {"llava-595k", "eagle-1800k", "benchmarks"}
        and sets["eagle-1800k"]["samples"] == 1_809_000
    )
    assert main(["data", "sources", "eagle-x5-7b"]) == 0
    assert "section 2.1, table 8, captioning, 595,375 samples" in capsys.readouterr().out


def test_what_a_row_says_can_be_followed() -> None:
    for name, row in ROWS.items():
        assert row.converter is None or row.converter in CONVERSIONS, name
        assert row.format is None or row.format in FORMATS, name
        assert row.where is None or re.fullmatch(r"https://\S+", row.where), name
        assert (row.access in {"public", "gated"}) == (row.where is not None), name
        assert row.where is None or row.evidence, f"{name}: found where?"
        assert row.licence == "unknown" or row.evidence or row.access == "made here", (
            f"{name}: whose word on the licence?"
        )
        assert row.converter or row.format or row.open or row.access == "unknown", f"{name}: how is it read?"


def test_the_text_sets_are_those_that_the_curation_reads() -> None:
    read = set(load_recipe("text-sft-mini").section("curation").source.sets.values())
    assert read == {row.format for row in ROWS.values() if "text" in row.roles}


def test_a_recipe_s_sets_with_stages_folders_and_what_is_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "coco").mkdir()
    rows = told(capsys, "nvlm-d-72b", f"data.sets.coco={tmp_path / 'coco'}", "stages.sft.mixture.sets.gqa=null")["sets"]
    sets = {row["name"]: row for row in rows}
    assert sets["coco"]["here"] and sets["coco"]["stages"] == ["pretrain", "sft"]
    assert not sets["vqav2"]["here"] and sets["vqav2"]["folder"] == "data/nvlm/vqav2"
    assert sets["vqav2"]["converter"] == "hf" and sets["vqav2"]["part"] == "vqav2"
    assert "gqa" not in sets and sets["benchmarks"]["stages"] == ["gate"]
    assert "stages" not in sets["slim-orca"] and sets["slim-orca"]["format"] == "slim_orca"


def test_sets_that_no_paper_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: nvlm-d-mini\ndata: {sets: {mine: /nowhere}}\nstages: {sft: {mixture: {weights: {mine: 1}}}}")
    rows = {row["name"]: row for row in told(capsys, str(path))["sets"]}
    assert (rows["mine"]["known"], rows["mine"]["open"]) == (False, "a set of your own")
    assert "megavlm demo" in rows["text"]["open"] and "megavlm demo" in rows["text-heldout"]["open"]


def test_without_a_recipe_everything_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {row["name"] for row in told(capsys)["sets"]} == set(ROWS)
    assert main(["data", "sources", "nvlm-d-72b"]) == 0
    out = capsys.readouterr().out
    named = sum(row.roles != ["text"] for row in OF_NVLM.values())
    assert "not here" in out and f"0 of {named} that the recipe names are here" in out
    assert "wants an account" in out and "licence: CC BY-SA 4.0" in out


def test_it_loads_no_torch() -> None:
    code = (
        "import sys; from megavlm.platform.cli import main; main(['data', 'sources', 'nvlm-d-72b', '--json']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0
