"""The recipes before the download, as they are, on a small table of links."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.platform.cli import main

SIDES = [(447, 900), (448, 448), (449, 449), (449, 1400), (2000, 1000)]  # width, height


@pytest.mark.parametrize(
    ("name", "kept"),
    [("eve-laion-links", [(449, 449), (2000, 1000)]), ("densefusion-links", [(448, 448), (449, 449), (2000, 1000)])],
)
def test_eve_wants_more_than_448_and_densefusion_448(tmp_path, name, kept):
    rows = [
        {"url": f"https://example.org/{i}.jpg", "caption": "a dog", "width": width, "height": height, "punsafe": 0.1}
        for i, (width, height) in enumerate(SIDES)
    ]
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tables" / "part-0.parquet")
    place = f"curation.source.path={tmp_path / 'tables'}"
    assert (
        main(["curate", "run", name, place, "curation.executor.name=in_process", "--out", str(tmp_path / "run")]) == 0
    )
    links = tmp_path / "run" / "links"
    left = pq.read_table(links / "tables" / "part-0.parquet")
    assert list(zip(left["width"].to_pylist(), left["height"].to_pylist(), strict=True)) == kept
    command = json.loads((links / "download.json").read_text())
    assert {f"--min_image_size={min(kept)[0]}", "--resize_mode=keep_ratio", "--image_size=672"} <= set(command)
