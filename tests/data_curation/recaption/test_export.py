"""What a model said is what export writes, with who said it and what stood there before."""

from __future__ import annotations

import json

import pandas as pd

from megavlm.platform.shards import ShardReader


def test_the_new_caption_is_exported_with_its_origin_and_the_old_one(tools, tmp_path, curate, endpoint):
    samples = [
        tools.raw(f"{number:04d}", tools.encode(tools.photo(number, 64, 64), "PNG"), "png", caption=f"old {number}")
        for number in range(6)
    ]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    front = endpoint()  # says something else about every picture
    stages = {
        "ingest": {},
        "filter": {"min_side": 1, "min_contrast": 0.0},
        "recaption": {"endpoints": [front.url], "model": "any", "parameters": {"max_tokens": 7}},
        "embed": {"embedder": "pixels"},
        "cluster": {"clusters": 1},
        "assign": {},
        "export": {},
    }
    curation = {"source": {"path": str(tmp_path / "raw")}, "stages": stages, "executor": {"name": "in_process"}}
    curate({"name": "new", "seed": 1, "curation": curation})

    captions = {}
    reader = ShardReader(str(tmp_path / "run" / "export"))
    for index in range(len(reader)):
        sample = reader.read(index)
        told = json.loads(sample.fields["json"])["caption"]
        assert told["model"] == "any" and told["prompt"] == "eve" and len(told["prompt_sha256"]) == 64
        assert told["parameters"] == {"max_tokens": 7}
        captions[told["original"]] = sample.fields["txt"].decode()
    assert sorted(captions) == [f"old {number}" for number in range(6)]
    assert not set(captions) & set(captions.values())
    rows = pd.read_parquet(tmp_path / "run" / "export" / "provenance")
    assert rows["caption_origin"].tolist() == ["any"] * 6 and rows["recaption.model"].tolist() == ["any"] * 6
    assert not {"recaption.caption", "ingest.caption"} & set(rows.columns)
    assert json.loads((tmp_path / "run" / "export" / "statistics.json").read_text())["caption_origins"] == {"any": 6}
