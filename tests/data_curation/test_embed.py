"""The embed stage: whatever decodes and however far ahead, row i is the feature of sample i."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from megavlm.data_curation.features import read_features
from megavlm.data_curation.run import CurationRun
from megavlm.data_curation.stages.embed import ahead, decoded
from megavlm.platform.images import BadImage, decode, load_decoder


def test_things_come_in_order_and_not_too_far_ahead():
    asked, begun, lock = [], [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        time.sleep(0.002 * (item % 3))
        return -item

    for value in ahead(range(20), work, threads=3, depth=2):
        asked.append(value)
        assert len(begun) <= len(asked) + 3
    assert asked == [-item for item in range(20)]


def test_an_error_comes_where_it_belongs_and_nothing_more_begins():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError("bad")
        return item

    found = []
    with pytest.raises(ValueError, match="bad"):
        for value in ahead(range(1000), work, threads=1, depth=2):
            found.append(value)
    assert found == [0, 1, 2] and len(begun) < 10


@pytest.mark.parametrize("options", [{"decoder": "fast"}, {"decode_threads": 3, "prefetch": 4}])
def test_decoders_and_threads_change_no_order(crawl, tools, curate, tmp_path, options):
    features = []
    for out, more in (("plain", {}), ("other", options)):
        curate(tools.recipe(crawl[0], embed={"embedder": {"name": "pixels", "batch_size": 5}} | more), out=out)
        run = CurationRun.open(tmp_path / out)
        features.append(np.concatenate([read_features(run, shard.name) for shard in run.shards]))
    assert np.allclose(*features, atol=0.15) and len(features[0]) == 36
    assert "decoder" in options or np.array_equal(*features)


def test_what_a_decoder_cannot_use_is_decoded_as_the_filter_did(tools):
    class Choosy(type(load_decoder("exact"))):
        def images(self, items, max_pixels=0, min_side=0):
            return [BadImage("unreadable", "no") if number else decode(data) for number, data in enumerate(items)]

    files = [tools.encode(tools.photo(seed)) for seed in range(3)]
    for image, data in zip(decoded(files, Choosy(name="exact"), 8), files, strict=True):
        assert np.array_equal(image, decode(data))
