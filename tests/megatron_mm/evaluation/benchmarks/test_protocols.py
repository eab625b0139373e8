"""Protocols: complete, and every value with its source."""

from __future__ import annotations

import pytest

from megavlm.megatron_mm.evaluation.benchmarks.protocols import find_protocol, list_protocols
from megavlm.megatron_mm.evaluation.benchmarks.table import benchmarks
from megavlm.platform.errors import ConfigError

VALUES = ("system", "before", "after", "shots", "max_new_tokens")


def test_the_three_papers_are_there():
    assert set(list_protocols()) == {"nvlm", "eagle", "llava"}


@pytest.mark.parametrize("name", ["nvlm", "eagle", "llava"])
def test_every_benchmark_is_asked_in_every_protocol_with_sources(name):
    protocol = find_protocol(name)
    assert set(protocol.benchmarks) == set(benchmarks())
    for benchmark in benchmarks().values():
        asked = protocol.of(benchmark)
        for value in VALUES:
            source = asked.sources[value]
            assert source and (not source.startswith("our guess") or len(source) > len("our guess: why"))
        assert not asked.options or asked.sources["options"]
        assert asked.after_open is None or asked.sources["after_open"]
        assert asked.decoding == "greedy" and asked.max_new_tokens > 0
        if benchmark.group == "language":  # lm-eval's tasks make their own prompts
            assert asked.before is None and asked.after is None and asked.sources["shots"].startswith("our guess")
        else:
            assert asked.shots == 0
    assert protocol.sources["max_tiles"]


def test_nvlm_asks_in_its_scripts_words():
    protocol, table = find_protocol("nvlm"), benchmarks()
    assert protocol.max_tiles == 6
    assert protocol.of(table["mathvista"]).system.startswith("You are math expert.")
    assert protocol.of(table["mmmu"]).system == "Answer the questions."
    assert protocol.of(table["chartqa"]).after == "\nAnswer the question using a single word or phrase."
    assert protocol.of(table["docvqa"]).after == "\nAnswer the question using a single word, phrase, or number."
    assert protocol.of(table["pope"]).sources["after"].startswith("our guess")  # not in the paper


def test_eagle_and_llava_show_textvqas_ocr_tokens_and_nvlm_does_not():
    shown = {name: find_protocol(name).of(benchmarks()["textvqa"]).options.get("ocr") for name in list_protocols()}
    assert shown == {"eagle": True, "llava": True, "nvlm": None}


def test_an_unknown_protocol_is_told_with_the_nearest():
    with pytest.raises(ConfigError) as told:
        find_protocol("nvml")
    assert "nvlm" in str(told.value.fix)
    with pytest.raises(ConfigError):
        find_protocol("table")  # a YAML file beside them
