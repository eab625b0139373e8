"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no failure of the code, and what has to pass before a change lands must not depend on chance.
settings.register_profile("megavlm", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("megavlm")

# Triton reads it on its first import, for the functions of its own library: whichever test comes first may cause that.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest comes first, so that the rest is done beside it."""
    items.sort(key=lambda item: not (item.get_closest_marker("slurm") or item.get_closest_marker("demo")))


def pytest_collection_finish() -> None:
    """Modules stay: left in, they make each collection of garbage take half a second, and most of it wait."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    """Saving a checkpoint unfreezes what is frozen. To ask takes a tenth of a second: of short tests nobody asks."""
    start = time.monotonic()
    yield
    if time.monotonic() - start > 0.5 and not gc.get_freeze_count():
        pytest_collection_finish()


@pytest.fixture
def children_seconds() -> Callable[[], float]:
    """CPU seconds of all processes waited for so far: the wall clock also tells what else this machine does."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    return seconds


@dataclasses.dataclass(frozen=True)
class Picture:
    """An <img> as the browser laid it out; `natural` is the decoded size in pixels, (0, 0) when it did not decode."""

    alt: str
    natural: tuple[int, int]
    shown: tuple[float, float]
    broken: bool


@dataclasses.dataclass(frozen=True)
class PageFacts:
    """What a browser makes of a page."""

    title: str
    text: str
    pictures: list[Picture]
    charts: list[tuple[float, float]]  # size of every inline SVG as shown, in CSS pixels
    console: list[str]  # errors and warnings, uncaught exceptions included
    outside: list[str]  # every request but the page itself and data: URIs
    overflow: float  # CSS pixels by which the page is wider than the window


LOOK = """() => ({
  title: document.title,
  text: document.body.innerText,
  pictures: [...document.images].map(i => [i.alt, i.naturalWidth, i.naturalHeight, i.offsetWidth, i.offsetHeight,
                                            !i.complete || i.naturalWidth === 0 || !i.checkVisibility()]),
  charts: [...document.querySelectorAll("svg")].map(s => [s.getBoundingClientRect().width,
                                                          s.getBoundingClientRect().height]),
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


def find_chromium() -> str | None:
    """Chromium's path, or None."""
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")  # not longer: as long as it lives, asyncio.run works in no other test
def browser_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens fresh pages of one headless Chromium. Skips without Chromium, fails where MEGAVLM_REQUIRE_BROWSER=1."""
    executable = find_chromium()
    if executable is None:
        reason = "Chromium is not installed: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("MEGAVLM_REQUIRE_BROWSER") == "1" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("chromium"),
            executable_path=executable,
            args=list(CHROMIUM_FLAGS),
            viewport={"width": 1100, "height": 900},
        )
        yield context.new_page
        context.close()


@pytest.fixture
def open_in_browser(browser_page: Callable[..., Any]) -> Callable[..., PageFacts]:
    """`open_in_browser(path, width=1100, scheme="light", screenshot=None) -> PageFacts`, for a local HTML file."""

    def look(path: Path, width: int = 1100, scheme: str = "light", screenshot: Path | None = None) -> PageFacts:
        url, console, requests = Path(path).resolve().as_uri(), [], []
        page = browser_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("console", lambda note: console.append(note.text) if note.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url, wait_until="load")
        if screenshot is not None:
            page.screenshot(path=screenshot, full_page=True)
        seen = page.evaluate(LOOK)
        page.close()
        return PageFacts(
            title=seen["title"],
            text=seen["text"],
            pictures=[Picture(a, (nw, nh), (w, h), broken) for a, nw, nh, w, h, broken in seen["pictures"]],
            charts=[tuple(size) for size in seen["charts"]],
            console=console,
            outside=[asked for asked in requests if asked != url and not asked.startswith("data:")],
            overflow=seen["overflow"],
        )

    return look


RECIPE = """\
seed: {seed}
model:
  tiling: {{tile: 28, max_tiles: {max_tiles}}}
  encoder: {{name: internvit, image_size: 28, patch_size: 7, layers: 1, hidden: 32, heads: 4, ffn: 64}}
  connector: {{name: pixel_shuffle_mlp, hidden: 48}}
  injection: {{name: inline}}
  decoder: {{name: qwen2, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 48, vocab: 512}}
data:
  tokenizer: mini
  template: {{name: chatml, system: ""}}
  sets: {{text: {folder}/text, vqa: {folder}/vqa}}
stages:
"""


@pytest.fixture(scope="session")
def write_recipe() -> Callable[..., Path]:
    """`write_recipe(folder, stages, max_tiles, seed)`: a tiny model over folder/text and folder/vqa; returns its path.

    `stages` is YAML, indented by two.
    """

    def write(folder: Path, stages: str, max_tiles: int, seed: int) -> Path:
        path = folder / "tiny.yaml"
        path.write_text(RECIPE.format(folder=folder, max_tiles=max_tiles, seed=seed) + stages)
        return path

    return write


STAGES = """\
  language:
    train: [decoder]
    mixture: {weights: {text: 1}, sequence_length: 128, packs_per_batch: 2}
    steps: 4
    precision: fp32
    parallel: {tp: 2}
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    evaluate: {text: text}
  sft:
    after: [language]
    train: [encoder, connector, decoder]
    mixture: {weights: {text: 1, vqa: 2}, sequence_length: 128, packs_per_batch: 2}
    steps: 40
    precision: fp32
    parallel: {tp: 2}
    optimizer: {lr: 1e-2, min_lr: 1e-3, warmup_steps: 2}
    checkpoint: {every: 5}
    evaluate: {text: text, vqa: vqa}
    blind: [vqa]
  gate:
    judges: sft
    gate: {baseline: language, max_drop: 0.9}
"""


def _sample(question: str, answer: str, name: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "id": name, "kind": "all", "answer": answer}


def _picture(colour: tuple[int, int, int], width: int) -> bytes:
    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((40, width, 3), colour, np.uint8)).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_recipe: Callable[..., Path]) -> Path:
    """The path of a recipe of two stages that trains in seconds, with its sets beside it."""
    from megavlm.platform.shards import ShardWriter

    folder = tmp_path_factory.mktemp("tiny")
    with ShardWriter(folder / "text") as writer:
        for k in range(60):
            writer.write(f"t{k}", {"json": _sample(f"What is {k % 10} + 1?", str(k % 10 + 1), f"t{k}")})
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    with ShardWriter(folder / "vqa") as writer:
        for k in range(30):
            name, colour = list(colours.items())[k % 3]
            fields = {"png": _picture(colour, 40 + 40 * (k % 2)), "json": _sample("<image>What colour?", name, f"v{k}")}
            writer.write(f"v{k}", fields)
    return write_recipe(folder, STAGES, max_tiles=2, seed=5)
