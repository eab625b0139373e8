"""Rules on the picture itself."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from .base import Facts, Filter


class Sides(Filter):
    """Both sides within bounds, in pixels after EXIF rotation."""

    reason: ClassVar[str] = "too_small"

    min: PositiveInt = 200  # DataComp's basic filter (arXiv 2304.14108, appendix E)
    min_pixels: NonNegativeInt = 0  # width x height

    def breaks(self, facts: Facts) -> str | None:
        """The shorter side and the area."""
        if min(facts.width, facts.height) < self.min:
            return f"{facts.width} x {facts.height}, shortest side {self.min}"
        if facts.width * facts.height < self.min_pixels:
            return f"{facts.width} x {facts.height}, at least {self.min_pixels} pixels"
        return None


class Aspect(Filter):
    """Longer side / shorter side."""

    reason: ClassVar[str] = "aspect_ratio"

    max: PositiveFloat = 3.0  # DataComp's basic filter

    def breaks(self, facts: Facts) -> str | None:
        """Products rather than a quotient, so that 3:1 is exactly 3:1."""
        short, long = sorted((facts.width, facts.height))
        return f"{long / short:.2f} : 1, at most {self.max:g}" if long > self.max * short else None


class Contrast(Filter):
    """An image that shows nothing has next to no deviation of gray."""

    reason: ClassVar[str] = "flat_image"

    min: float = 4.0  # standard deviation of the gray values, 0..128

    def breaks(self, facts: Facts) -> str | None:
        """The deviation measured."""
        return f"gray deviation {facts.contrast:.1f}" if facts.contrast < self.min else None
