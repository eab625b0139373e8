"""ConvNeXt's trunk in OpenCLIP's checkpoints (laion/CLIP-convnext_xxlarge-laion2B-...). Ours has timm's names."""

from __future__ import annotations

from .one_encoder import ReadOnly
from .rules import Rule, WeightMap

HEAD = {"head.{any}": "comes after the features that are read"}
TRUNK = WeightMap([Rule("{any}", "{any}")], HEAD)
OTHERS = {
    "visual.head.{any}": "of the contrastive loss",
    "transformer.{any}": "of the text tower",
    "token_embedding.{any}": "of the text tower",
    "positional_embedding": "of the text tower",
    "ln_final.{any}": "of the text tower",
    "text_projection": "of the text tower",
    "attn_mask": "of the text tower",
    "logit_scale": "of the contrastive loss",
}


class ConvNeXt(ReadOnly):
    """OpenCLIP's ConvNeXt, of which the text tower and the head are left out."""

    name = "convnext"
    architectures = ()
    maps = {"encoder": TRUNK.under("visual.trunk.") + WeightMap([], OTHERS)}
    marks = ("visual.trunk.stem.0.weight",)
