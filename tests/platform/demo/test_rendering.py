"""The rendered task: what a thumbnail can and cannot show, and that a scene decides everything that is asked."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from megavlm.platform.demo import rendering
from megavlm.platform.demo.photos import crops
from megavlm.platform.demo.tasks import QUESTIONS
from megavlm.platform.images import choose_grid, tile_image


@pytest.fixture(scope="module")
def photo():
    return crops(np.random.default_rng(3))[0][1]


def drawn(photo, seed=5, **changes):
    rng = np.random.default_rng(seed)
    scene = dataclasses.replace(rendering.random_scene(rng), **changes)
    return np.asarray(rendering.render(photo, scene, np.random.default_rng(seed)))


def tiles(picture):
    return tile_image(picture, 56, 1, 4, True).astype(int)


def test_a_rendering_is_two_tiles_each_way_and_a_thumbnail(photo):
    assert choose_grid(rendering.SIDE, rendering.SIDE, 56, 1, 4) == (2, 2)
    assert tiles(drawn(photo)).shape == (5, 56, 56, 3)


@pytest.mark.parametrize("one, other", list(itertools.combinations(rendering.WEAVES, 2)))
def test_weaves_differ_in_a_tile_and_not_in_the_thumbnail(photo, one, other):
    a, b = tiles(drawn(photo, weave=one)), tiles(drawn(photo, weave=other))
    assert np.abs(a[:-1] - b[:-1]).max() > 100
    assert np.abs(a[-1] - b[-1]).max() <= 2  # of 255: rounding


@pytest.mark.parametrize("key, words", [("colour", rendering.COLOURS), ("frame", rendering.FRAMES)])
def test_what_is_not_woven_can_be_told_from_the_thumbnail(photo, key, words):
    for one, other in itertools.combinations(words, 2):
        a, b = (tiles(drawn(photo, **{key: word}))[-1] for word in (one, other))
        assert np.abs(a - b).max() > 30, (one, other)


def test_a_complement_averages_to_gray():
    for colour in rendering.WEAVES.values():
        block = np.array([colour, [255 - c for c in colour]])
        assert np.abs(block.mean(axis=0) - 127.5).max() == 0


def test_answers_of_different_questions_never_coincide():
    answers = [{ask(_scene(seed)) for seed in range(400)} for _, ask in QUESTIONS.values()]
    for a, b in itertools.combinations(answers, 2):
        assert not a & b


def _scene(seed):
    return rendering.random_scene(np.random.default_rng(seed))


def test_the_photograph_is_still_there(photo):
    resized = np.asarray(photo.resize((rendering.SIDE, rendering.SIDE), Image.Resampling.BICUBIC)).astype(int)
    same = (np.abs(drawn(photo).astype(int) - resized).max(axis=-1) == 0).mean()
    assert same > 0.5
