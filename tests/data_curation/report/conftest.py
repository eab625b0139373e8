"""A curated crawl whose report is looked at. It is made once: tests that change it take a copy."""

from __future__ import annotations

import base64
import html as markup
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from megavlm.data_curation.report import add_sections
from megavlm.data_curation.report.view import View
from megavlm.data_curation.run import CurationRun
from megavlm.platform.cli import main
from megavlm.platform.report import Report
from megavlm.platform.runs import RunFolder


def report_of(folder: Path) -> str:
    report = Report("a run")
    add_sections(RunFolder.open(folder), report)
    return report.html()


@pytest.fixture
def told() -> Callable[[Path], str]:
    """`told(run folder)`: the report's HTML."""
    return report_of


@pytest.fixture
def view() -> Callable[[Path], View]:
    """`view(run folder)`: the run as the report sees it."""
    return lambda folder: View.of(CurationRun.open(folder))


@pytest.fixture
def shown() -> Callable[[str], dict[str, np.ndarray]]:
    """`shown(html)`: alt text -> the picture, RGB uint8."""

    def pictures(html: str) -> dict[str, np.ndarray]:
        found = re.findall(r'<img src="data:image/webp;base64,([^"]+)" alt="([^"]*)"', html)
        return {
            markup.unescape(alt): np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
            for data, alt in found
        }

    return pictures


@pytest.fixture(scope="session")
def made() -> dict[str, Any]:
    """What the first test that needed it has made."""
    return {}


@pytest.fixture
def curated(made: dict[str, Any], tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small crawl with more copies of one photo, one of them with a key of its own, and files that are bad."""
    if "run" not in made:
        root = tmp_path_factory.mktemp("curated")
        tools.small_crawl(root / "raw")
        extra = [tools.raw("bad0", b""), tools.raw("bad1", tools.encode(tools.photo(1, 30, 30)))]
        extra += [tools.raw(f"copy{q}", tools.encode(tools.photo(2), quality=q)) for q in (20, 30, 50)]
        extra += [tools.raw("same", tools.encode(tools.photo(3)))]
        tools.write_shard(root / "raw", "00009", extra)
        made["tree"] = tools.recipe(root / "raw", select={"nearest": 6})
        (root / "recipe.yaml").write_text(yaml.safe_dump(made["tree"], sort_keys=False))
        assert main(["curate", "run", str(root / "recipe.yaml"), "--out", str(root / "run")]) == 0
        made["run"] = root / "run"
    return made["run"]


@pytest.fixture
def html(made: dict[str, Any], curated: Path) -> str:
    """The curated crawl's report."""
    if "html" not in made:
        made["html"] = report_of(curated)
    return made["html"]


@pytest.fixture
def copied(curated: Path, tmp_path: Path) -> Path:
    """The curated crawl's run in a folder of its own."""
    shutil.copytree(curated, tmp_path / "run")
    return tmp_path / "run"
