"""EVA-02's detectors (Yuxin-CV/EVA-02, eva02/det): detectron2's names, of which the backbone's inside are ours."""

from __future__ import annotations

from .one_encoder import ReadOnly
from .rules import Rule, WeightMap

PREFIX = "backbone.net."
# Tables of sines and cosines, saved as if they were weights, once and again in every block.
ROTARY = "follows from the window and the grid"
NATIVE = WeightMap(
    [Rule("{any}", "{any}")],
    {"rope_win.{any}": ROTARY, "rope_glb.{any}": ROTARY, "blocks.{n}.attn.rope.{any}": ROTARY},
)


class Backbone(WeightMap):
    """The backbone's tensors under their prefix; all others are the detector's."""

    def why_ignored(self, published: str) -> str | None:
        """Why a tensor that no parameter is made of is left out; None for an unknown one of the backbone."""
        return super().why_ignored(published) if published.startswith(PREFIX) else "of the detector"

    def inside(self, prefix: str) -> WeightMap:
        """The same map for parameters of ours that all begin with `prefix`."""
        inner = super().inside(prefix)
        return Backbone(inner.rules, inner.ignored)


NET = NATIVE.under(PREFIX)


class Eva02(ReadOnly):
    """A detector's checkpoint (.pth): its weights averaged over the steps (`ema_state`), or as they are (`module`)."""

    name = "eva02"
    architectures = ()
    maps = {"encoder": Backbone(NET.rules, NET.ignored)}
    marks = (f"{PREFIX}patch_embed.proj.weight",)
