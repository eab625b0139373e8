"""An optimizer before its first update, in a state that a checkpoint can hold."""

from __future__ import annotations

from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer


def give_moments(optimizer: MegatronOptimizer) -> None:
    """Moments of zero, as an update finds them that is the first: without any, megatron-core 0.16.1 saves nothing.

    It makes them by an update without gradients. At a learning rate of zero that changes no weight, decay included; the
    count of updates is set back.
    """
    for each in optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]:
        if getattr(each, "is_stub_optimizer", False):
            continue
        groups = each.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        each._init_optimizer_states_with_dummy_values()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
            if "step" in group:
                group["step"] = 0
        for state in each.optimizer.state.values():  # torch's own AdamW counts for every parameter
            if "step" in state:
                state["step"].zero_()
