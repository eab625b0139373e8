"""What a step tells: the figures of metrics.jsonl against the manifest, the line for people, spikes, values gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megavlm.megatron_mm.data.amounts import Amounts
from megavlm.megatron_mm.data.manifest import Manifest
from megavlm.megatron_mm.training.console import duration, step_line
from megavlm.megatron_mm.training.flops import step_flops
from megavlm.megatron_mm.training.loop import StageTrainer
from megavlm.megatron_mm.training.metrics import Meter, Moment
from megavlm.megatron_mm.training.ranks import Ranks
from megavlm.megatron_mm.training.spikes import FEWEST, WINDOW, SpikeDetector
from megavlm.megatron_mm.training.step import StepResult
from megavlm.platform.config import load_recipe
from megavlm.platform.errors import MegaVLMError
from megavlm.platform.runs import RunFolder

Open = Callable[..., StageTrainer]


def events(run: RunFolder, kind: str) -> list[dict]:
    return [event for attempt in run.attempts() for event in attempt.events() if event["kind"] == kind]


def test_every_figure_of_a_step(open_trainer: Open, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = open_trainer()
    assert trainer.train()
    run, spec = trainer.session.run, trainer.spec
    manifest, lines = Manifest(run.path("stages", "language", "packs")), run.metrics()
    assert [line["step"] for line in lines] == list(range(1, 7))
    for line in lines:
        entries = [entry for pack in manifest.batch(line["batch"]) for entry in pack.entries]
        tiles, tokens = sum(entry.tiles for entry in entries), sum(entry.tokens for entry in entries)
        seeing = [entry.tokens for entry in entries if entry.images]
        assert (line["batch"], line["samples"], line["tiles"]) == (line["step"] - 1, len(entries), tiles)
        assert (line["visual_tokens"], line["text_tokens"]) == (4 * tiles, tokens - 4 * tiles) and tiles
        assert line["padding"] == pytest.approx(1 - tokens / 256, abs=1e-5)
        assert line["learnt"] == pytest.approx(sum(entry.targets for entry in entries) / 256, abs=1e-5)
        wall = line["seconds"] + line["waited"]
        assert line["tokens_per_second_per_device"] == pytest.approx(256 / wall, rel=0.02)
        of = Amounts(0, 0, 2, len(entries), 256, tokens, sum(e.tokens**2 for e in entries), sum(seeing),
                     sum(n**2 for n in seeing), tiles)  # fmt: skip
        flops = step_flops(spec.model, spec.stage.train, of)
        assert line["tflops_per_device"] == pytest.approx(flops / wall / 1e12, rel=0.02)
        assert line["mfu"] is None  # a CPU has no peak that anyone published
        assert 0.05 < line["memory"] < 20 and line["memory_of"] is None
        assert (line["slowest_rank"], line["slowness"], line["updated"]) == (0, 1.0, True)
    assert [line["eta"] is None for line in lines] == [True] + 5 * [False] and lines[-1]["eta"] == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("language step")]
    assert len(told) == 6 and "tok/s/process" in told[2] and "eta " in told[2] and "mfu" not in told[2]


def test_the_line_for_people() -> None:
    told = {
        "step": 120, "loss": 1.234, "lr": 2e-6, "grad_norm": 0.8, "waited": 0.003, "eta": 18720.0, "memory": 71.2,
        "memory_of": 80.0, "mfu": 0.37, "tokens_per_second_per_device": 1650.2, "visual_tokens": 30, "text_tokens": 70,
        "padding": 0.012, "slowness": 1.31, "slowest_rank": 17,
    }  # fmt: skip
    assert step_line(told, 5000) == (
        "step 120/5000 loss 1.2340 lr 2.0e-06 gnorm 0.80 | 1,650 tok/s/gpu 37.0 % mfu 71.2/80 GiB data 3 ms "
        "rank 17 1.31x slow | image 30 % padding 1.2 % | eta 5h12"
    )
    old = {"step": 1, "loss": None, "lr": 0.0, "grad_norm": None, "waited": 0.0, "updated": False}
    assert step_line(old, 2) == "step 1/2 loss not finite lr 0.0e+00 gnorm not finite (update skipped) | data 0 ms"
    assert [duration(s) for s in (0, 59.6, 3599, 86399, 200000)] == ["0s", "1m00", "59m59", "23h59", "2d07h"]


def test_mfu_is_the_share_of_the_devices_peak(recipe) -> None:
    spec = load_recipe(str(recipe))
    stage, model = spec.section("stages")["sft"], spec.section("model")
    of = Amounts(0, 0, 1, 1, 4096, 4096, 4096**2, 4096, 4096**2, 100)
    ranks, result = Ranks(False, 3, 1.5, 70.0), StepResult(1.0, 1.0, 4096, 100, True)
    line = Meter("sft", stage, model, 8, "NVIDIA H100 80GB HBM3", 80.0).line(
        Moment(1, 0.1, 0.5, 0.1, 1), result, of, ranks
    )
    wanted = step_flops(model, stage.train, of) / 0.6 / 8
    assert line["tflops_per_device"] == pytest.approx(wanted / 1e12, rel=1e-3)
    assert line["mfu"] == pytest.approx(wanted / 989.4e12, abs=1e-4)
    assert (line["slowest_rank"], line["slowness"], line["memory_of"]) == (3, 1.5, 80.0)


def test_a_spike_is_what_is_far_above_the_losses_before_it() -> None:
    noisy = [2.0 + 0.01 * (k % 5) for k in range(WINDOW)]
    detector = SpikeDetector()
    assert not any(detector.feed(loss) for loss in noisy)
    assert detector.feed(2.09) is None and detector.feed(1.0) is None and detector.feed(float("nan")) is None
    found = detector.feed(3.0)
    assert found and found.loss == 3.0 and found.median == pytest.approx(2.02, abs=0.011)
    assert detector.feed(3.0)  # the spike itself has not become what is usual
    assert SpikeDetector(noisy[: FEWEST - 1]).feed(100.0) is None
    assert SpikeDetector(noisy[:FEWEST]).feed(100.0)


def spoil(trainer: StageTrainer, step: int, factor: float) -> None:
    """From update `step` (from 0) on the output layer's weights are those times `factor`."""

    def hook(module: torch.nn.Module, inputs: object) -> None:
        if trainer.step >= step:
            with torch.no_grad():
                module.weight.mul_(factor)

    trainer.model.stages[0].decoder.output_layer.register_forward_pre_hook(hook)


@pytest.mark.parametrize("reaction", ["warn", "stop"])
def test_a_spike_is_an_event_and_may_stop_the_stage(open_trainer: Open, reaction: str, monkeypatch) -> None:
    monkeypatch.setattr("megavlm.megatron_mm.training.spikes.FEWEST", 3)
    trainer = open_trainer(f"stages.language.on_spike={reaction}", "stages.language.checkpoint.every=2")
    spoil(trainer, 4, 30.0)
    if reaction == "stop":
        with pytest.raises(MegaVLMError, match=r"(?s)out of line.*median") as error:
            trainer.train()
        assert "--from-step 4 --skip 4:5" in error.value.fix and "step 5" in error.value.where
    else:
        assert trainer.train()
    run = trainer.session.run
    (first, *_), manifest = events(run, "spike"), trainer.manifest
    assert (first["stage"], first["step"], first["batch"]) == ("language", 5, 4)
    assert first["loss"] > 2 * first["median"] and first["rows"] == list(manifest.batch_rows(4))
    entries = [entry for pack in manifest.batch(4) for entry in pack.entries]
    keys = manifest.open_sets(trainer.spec.folders())
    assert first["samples"] == [f"{e.set}/{keys[e.set].key(e.index)}" for e in entries][:16]


def test_losses_before_a_resume_are_remembered(open_trainer: Open, monkeypatch) -> None:
    monkeypatch.setattr("megavlm.megatron_mm.training.spikes.FEWEST", 3)
    first = open_trainer("stages.language.steps=4")
    assert first.train()
    trainer = open_trainer("stages.language.steps=6")
    spoil(trainer, 4, 30.0)
    trainer.train()
    assert events(trainer.session.run, "spike")[0]["step"] == 5


def test_a_loss_that_is_no_number_names_its_pack_and_ends_the_stage(open_trainer: Open) -> None:
    trainer = open_trainer("stages.language.steps=14")
    whole, packs = trainer.model.stages[0], []

    def hook(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        packs.append(1)
        return output * float("nan") if len(packs) % 2 == 0 else output  # the second pack of every batch

    whole.register_forward_hook(hook)
    with pytest.raises(MegaVLMError, match=r"10 updates in a row .* loss nan") as error:
        trainer.train()
    assert "optimizer.lr" in error.value.fix and "no checkpoint of this stage yet" in error.value.fix
    told = events(trainer.session.run, "skipped_update")
    assert [(event["step"], event["loss"]) for event in told] == [(k, None) for k in range(1, 11)]
    second = [trainer.manifest.batch_rows(k)[1] for k in range(10)]
    assert [event["rows"] for event in told] == [[row] for row in second]
    assert all(event["samples"] and event["packs"] == 1 for event in told)
    assert [line["updated"] for line in trainer.session.run.metrics()] == 10 * [False]


def test_memory_that_ends_says_what_to_change(open_trainer: Open) -> None:
    trainer = open_trainer("stages.language.checkpoint.every=2", "stages.language.parallel={}")

    def hook(module: torch.nn.Module, inputs: object) -> None:
        if trainer.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.model.stages[0].register_forward_pre_hook(hook)
    with pytest.raises(MegaVLMError, match=r"out of memory.*packs of 128 tokens.*\d tiles.*2\.00 GiB") as error:
        trainer.train()
    fix = error.value.fix
    order = ["recompute=selective", "sequence_length below 128", "parallel.tp=2", "after step 2"]
    assert [fix.index(words) for words in order] == sorted(fix.index(words) for words in order)
    assert "step 4" in error.value.where
