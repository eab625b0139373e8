"""What sidecars cannot answer is refused before anything is counted, with the command that answers it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.what_if.options import parse_asked, variants
from megavlm.platform.cli import main


@pytest.mark.parametrize(
    "word",
    [
        "embed.embedder.name=timm",
        "cluster.clusters=9",
        "assign.engine=faiss",
        "export.samples_per_shard=5",
        "filter.max_pixels=100",
        "decontaminate.against={other: elsewhere}",
    ],
)
def test_what_is_measured_takes_a_run_and_the_command_is_told(finished, ask, word):
    error = ask(finished, word, code=2)["error"]
    assert error["where"] == f"curation.stages.{word.partition('=')[0]}"
    assert f"cp -r {finished} {finished}-copy && megavlm curate run {finished}-copy/config.yaml" in error["fix"]
    assert "select" in error["what"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("selekt.nearest=3", "filter, decontaminate, deduplicate, select, check_captions"),
        ("nearest=3", "STAGE.OPTION=VALUE"),
        ("select.nearest", "STAGE.OPTION=VALUE"),
        ("seed=3", "STAGE.OPTION=VALUE"),
        ("recaption.model=x", "STAGE.OPTION=VALUE"),
        ("select.neares=3", "did you mean 'nearest'?"),
        ("select.nearest=", "select.nearest=VALUE"),
        ("select.nearest=[1", ""),
        ("select.nearest=-1", ""),
        ("select.nearest=3,none", ""),
        ("select.method=balanced", ""),
        ("deduplicate.rule=guess", ""),
        ("filter.extra=[{use: nothing}]", ""),
        ("check_captions.rules=[]", ""),
    ],
)
def test_wrong_words_are_refused(finished, ask, word, told):
    error = ask(finished, word, code=2)["error"]
    assert told in (error["fix"] or "")


def test_an_option_is_asked_for_once(finished, ask):
    error = ask(finished, "select.nearest=3", "curation.stages.select.nearest=4", code=2)["error"]
    assert error["fix"] == "select.nearest=A,B tries both"


def test_a_run_that_is_not_finished_says_what_to_run(finished, ask, copy_of):
    folder = copy_of(finished)
    (folder / "finished").unlink()
    error = ask(folder, "select.nearest=3", code=2)["error"]
    assert error["fix"] == f"megavlm curate run {folder}/config.yaml --out {folder}"


def test_a_run_whose_configuration_was_changed_and_not_run_is_not_finished(finished, ask, copy_of):
    folder = copy_of(finished)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("nearest: 7", "nearest: 6"))
    assert "'select' was not run as" in ask(folder, "select.nearest=3", code=2)["error"]["what"]


def test_without_a_run_or_a_question_there_is_no_answer(finished, capsys):
    with pytest.raises(SystemExit):
        main(["curate", "select", str(finished)])
    assert main(["curate", "select", "nowhere", "--what-if", "select.nearest=3"]) == 2


def test_null_is_the_default_as_it_is_for_curate_run(finished, ask):
    assert ask(finished, "deduplicate.hash_radius=null")["what_if"][0]["options"] == {"deduplicate.hash_radius": 31}


def test_any_list_of_values_comes_back(finished):
    run = CurationRun.open(finished)

    @given(st.lists(st.integers(1, 10**9), min_size=1, max_size=5))
    def check(values):
        tried = variants(run, parse_asked(run, [f"select.nearest={','.join(map(str, values))}"]))
        assert [one.options["select.nearest"] for one in tried] == values
        assert [one.config.stages["select"].nearest for one in tried] == values

    check()
