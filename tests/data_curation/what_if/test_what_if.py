"""What is told equals what a run of a copy with those options does; the run's folder stays as it is."""

from __future__ import annotations

import itertools

import pytest

from megavlm.platform.cli import main

COUNTS = ("stage", "in", "kept", "dropped")
EXACT = [
    ("select.nearest=3",),
    ("select.nearest=3", "select.leaf=random"),
    ("select.method=balanced", "select.target=17", "select.nearest=null"),
    ("deduplicate.hash_radius=60",),
    ("deduplicate.hash_radius=4",),
    ("deduplicate.hash_scope=cluster", "deduplicate.hash_radius=110"),
    ("deduplicate.epsilon=0.05",),
    ("deduplicate.epsilon=0.05", "deduplicate.rule=paper"),
    ("deduplicate.epsilon=0.05", "deduplicate.confirm_radius=30"),
    ("deduplicate.epsilon=null", "deduplicate.wanted_fraction=0.7", "deduplicate.trial_epsilons=[0.001, 0.5]"),
    ("deduplicate.keep=hard",),
    ("deduplicate.keep=random",),
    ("deduplicate.min_hash_quality=80",),
    ("decontaminate.radius=115",),
    ("decontaminate.radius=0",),
    ("decontaminate.min_hash_quality=0",),
    ("check_captions.rules=[{name: length, min_words: 3}]",),
    ("deduplicate.hash_radius=40", "select.nearest=5", "decontaminate.radius=60"),
]


def counts(funnel):
    return [{key: line[key] for key in COUNTS} for line in funnel]


def by_stage(funnel):
    return {line["stage"]: line for line in funnel}


@pytest.mark.parametrize("words", EXACT, ids=" ".join)
def test_the_funnel_is_that_of_a_run_with_these_options(finished, copy_of, ask, really, words):
    told = ask(finished, *words)
    then = told["what_if"][0]["funnel"]
    assert counts(then) == counts(really(copy_of(finished), *words))
    assert not any(line["not_measured"] for line in then)
    assert counts(then) != counts(told["now"]), "an option that moves nothing shows nothing"


def test_each_combination_of_values_is_a_column_that_equals_asking_for_it_alone(finished, ask):
    told = ask(finished, "deduplicate.hash_radius=4,60", "curation.stages.select.nearest=2,5,9")
    found = [(one["options"], one["funnel"]) for one in told["what_if"]]
    expected = [
        {"deduplicate.hash_radius": radius, "select.nearest": nearest}
        for radius, nearest in itertools.product((4, 60), (2, 5, 9))
    ]
    assert [options for options, _ in found] == expected
    for options, funnel in found[1::2]:
        words = [f"{key}={value}" for key, value in options.items()]
        assert ask(finished, *words)["what_if"][0]["funnel"] == funnel


def test_the_present_value_changes_nothing(finished, ask):
    told = ask(finished, "select.nearest=7")
    assert told["what_if"][0]["funnel"] == told["now"]


def test_stages_are_told_apart_by_how_they_were_decided(finished, ask):
    lines = by_stage(ask(finished, "decontaminate.radius=115")["what_if"][0]["funnel"])
    how = {name: line["decided"] for name, line in lines.items()}
    assert {name for name in how if how[name] == "as it was"} == {"ingest", "filter", "embed", "cluster", "assign"}
    assert {name for name in how if how[name] == "stands"} == {"export"}


def contents(folder):
    """Every path with its bytes and times."""
    paths = sorted(folder.rglob("*"))
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths}


def test_no_byte_of_the_folder_changes(finished, ask):
    before = contents(finished)
    words = ("filter.min_side=90", "decontaminate.radius=90", "deduplicate.epsilon=0.05", "select.nearest=3")
    ask(finished, *words, "check_captions.source=ingest")
    ask(finished, "select.nearest=1", before=("--dry-run",))
    assert contents(finished) == before


def test_nothing_is_left_in_the_temporary_folder(finished, ask, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ask(finished, "deduplicate.hash_radius=3")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_names_what_would_be_decided_and_counts_nothing(finished, ask):
    told = ask(finished, "select.nearest=2", before=("--dry-run",))
    assert told["what_if"][0]["decided"]["deduplicate"] == "as it was"
    assert told["what_if"][0]["decided"]["select"] == "anew"
    assert "funnel" not in told["what_if"][0] and set(told["seconds_in_the_run"]) == set(told["what_if"][0]["decided"])


def test_the_words_say_now_and_then_and_the_command_that_makes_it_so(finished, copy_of, ask, capsys):
    folder = copy_of(finished)
    funnel = ask(folder, "select.nearest=3")["what_if"][0]["funnel"]
    assert main(["curate", "select", str(folder), "--what-if", "select.nearest=3"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("select"))
    now, then = by_stage(ask(finished, "select.nearest=7")["now"])["select"], by_stage(funnel)["select"]
    assert line.split()[1:6] == [*map(str, (now["in"], then["in"], now["kept"], then["kept"]))] + [
        f"{then['kept'] - now['kept']:+}"
    ]
    command = next(line for line in text.splitlines() if line.startswith("To make it so: "))
    assert main(command.removeprefix("To make it so: megavlm ").split()) == 0
    capsys.readouterr()
    assert counts(ask(folder, "select.nearest=3")["now"]) == counts(funnel)


def test_a_sweep_is_a_table_with_a_column_for_each(finished, ask, capsys):
    kept = [by_stage(one["funnel"])["select"]["kept"] for one in ask(finished, "select.nearest=1,2,3")["what_if"]]
    assert main(["curate", "select", str(finished), "--what-if", "select.nearest=1,2,3"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["select.nearest"] == ["7", "1", "2", "3"]
    assert rows["select"][1:] == list(map(str, kept)) and kept == sorted(kept)
