"""What looks at a model while it trains. A new watcher is one file here and one line in this table."""

from megavlm.platform.registry import Registry

WATCHERS = Registry("watcher", {
    "drift": "megavlm.megatron_mm.training.watchers.drift:DriftWatcher",
    "gate": "megavlm.megatron_mm.training.watchers.gate:GateWatcher",
})  # fmt: skip
