"""What every connector says of the feature maps that it takes. Loads no torch."""

from __future__ import annotations

from typing import ClassVar

from megavlm.platform.config import Config


class Connector(Config):
    """Base of the connectors, which take the maps of tiles of one size unless they say otherwise."""

    any_size: ClassVar[bool] = False  # tiles may differ in size and in shape

    name: str
