"""What is told equals what a run of a copy with those options does; the run's folder stays as it is."""

from __future__ import annotations

import pytest

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
