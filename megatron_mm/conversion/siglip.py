"""SigLIP's vision tower, transformers' SiglipVisionModel, alone or in a whole SigLIP. Its names are ours."""

from __future__ import annotations

from .clip import TAUGHT, WHOLE, VisionTower


class Siglip(VisionTower):
    """Google's SigLIP, without its pooling head."""

    name = "siglip"
    family = "Siglip"
    architectures = ("SiglipVisionModel", "SiglipModel")
    maps = dict.fromkeys(TAUGHT, WHOLE)
