"""img2dataset's command line for filtered tables. It wants an environment of its own: it downgrades packages here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megavlm.platform.config import Config
from megavlm.platform.errors import ConfigError


class Download(Config):
    """How img2dataset is to download. Its own default, a white border to 256 x 256, would hide every image's size."""

    output: str = "crawl"  # its output folder or URL; `curation.source.path` of the curation that follows
    image_size: PositiveInt | None = None  # shrink to this shorter side; None: as on the web, JPEGs byte for byte
    encode_quality: PositiveInt = 95
    processes: PositiveInt = 16  # about one per core
    threads: PositiveInt = 64  # downloads at a time in each process
    samples_per_shard: PositiveInt = 10_000
    timeout: PositiveInt = 10  # seconds
    retries: NonNegativeInt = 1

    @model_validator(mode="after")
    def _quality(self) -> Download:
        if self.encode_quality > 100:
            raise ValueError("encode_quality is at most 100")
        return self

    def argv(self, tables: str, columns: Iterable[str], min_side: int, max_aspect: float) -> list[str]:
        """The command for the Parquet files in the folder `tables`, of whose columns all but link and caption are kept.

        Raises ConfigError when images would be shrunk below `min_side` pixels.
        """
        kept = sorted(set(columns) - {"url", "caption"})
        options = {
            "url_list": tables, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
            "output_format": "webdataset", "output_folder": self.output,
            **self._resize(min_side),
            "min_image_size": min_side, "max_aspect_ratio": max_aspect, "encode_quality": self.encode_quality,
            "compute_hash": "sha256", "save_additional_columns": json.dumps(kept),
            "number_sample_per_shard": self.samples_per_shard, "processes_count": self.processes,
            "thread_count": self.threads, "timeout": self.timeout, "retries": self.retries, "enable_wandb": False,
        }  # fmt: skip
        return ["img2dataset", *(f"--{name}={value}" for name, value in options.items())]

    def _resize(self, min_side: int) -> dict[str, str | int | bool]:
        """Never border: that pads small images up to the filter, and shrinks large ones below it.

        keep_ratio sets the shorter side, so that no aspect ratio leads below the filter (keep_ratio_largest sets the
        longer one).
        """
        if self.image_size is None:
            return {"resize_mode": "no", "skip_reencode": True}
        if self.image_size < min_side:
            raise ConfigError(
                f"image_size {self.image_size} would shrink images below min_side {min_side}",
                where="curation.stages.links.download.image_size",
                fix=f"image_size={min_side} or more, or no image_size",
            )
        return {"resize_mode": "keep_ratio", "image_size": self.image_size, "resize_only_if_bigger": True}


def script(argv: Iterable[str]) -> str:
    """A shell script that runs the command; every word is quoted."""
    return f"""#!/bin/sh
# In an environment of its own: python -m venv img2dataset-env && img2dataset-env/bin/pip install img2dataset
# A local DNS resolver helps more than anything else. X-Robots-Tag noai and noindex are honoured.
set -eu
cd "$(dirname "$0")"
exec {shlex.join(argv)}
"""
