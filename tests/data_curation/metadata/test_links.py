"""LAION's tables before the download: which rows go on, which way round the sides are, and what img2dataset is told."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megavlm.data_curation.config import CurationConfig
from megavlm.data_curation.metadata.command import Download, script
from megavlm.data_curation.metadata.layouts import find_layout
from megavlm.data_curation.metadata.rules import LinkRules
from megavlm.platform.errors import ConfigError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "curation.md"
RULES = {"min_side": 448, "max_aspect": 2.5, "min_caption_words": 3, "min_caption_characters": 8}
SCORES = {"max_punsafe": 0.5, "max_pwatermark": 0.8, "min_aesthetic": 5.0, "min_similarity": 0.3}
SCORES |= {"languages": ["en", "de"]}


def rows(count: int = 400) -> list[dict]:
    """Rows as the web has them, some values missing."""
    rng = np.random.default_rng(5)
    some = lambda value: None if rng.random() < 0.05 else value  # noqa: E731
    words = ["a", "red  fox", "über", "lake", "\n", "x"]
    return [
        {
            "url": f"https://example.org/{i}.jpg"
            if rng.random() > 0.05
            else str(rng.choice(["", "ftp://x", "no link"])),
            "caption": some(" ".join(rng.choice(words, size=rng.integers(0, 6)))),
            "width": some(int(rng.integers(100, 2000))),
            "height": some(int(rng.integers(100, 2000))),
            "similarity": some(float(rng.uniform(0.2, 0.4))),
            "punsafe": some(float(rng.uniform(0, 1))),
            "pwatermark": some(float(rng.uniform(0, 1))),
            "aesthetic": some(float(rng.uniform(3, 9))),
            "language": some(str(rng.choice(["en", "de", "fr"]))),
        }
        for i in range(count)
    ]


def verdict(row: dict, scores: bool) -> str | None:
    """The rules, row by row, in plain Python."""
    caption, width, height = (row["caption"] or "").strip(), row["width"], row["height"]
    if not row["url"].startswith("https://"):
        return "no_url"
    if len(caption.split()) < 3 or len(caption) < 8:
        return "short_caption"
    if width is None or height is None or min(width, height) < 448:
        return "too_small"
    if max(width, height) / min(width, height) > 2.5:
        return "aspect_ratio"
    if scores:
        bounds = (("punsafe", 0, 0.5, "unsafe"), ("pwatermark", 0, 0.8, "watermark"))
        bounds += (("aesthetic", 5.0, math.inf, "low_aesthetic"), ("similarity", 0.3, math.inf, "low_similarity"))
        for column, low, high, reason in bounds:
            if row[column] is None or not low <= row[column] <= high:
                return reason
        if row["language"] not in ("en", "de"):
            return "language"
    return None


def plain(row: dict) -> dict:
    """LAION-5B as first released: what it calls WIDTH is the height."""
    return {"SAMPLE_ID": 7, "URL": row["url"], "TEXT": row["caption"], "HEIGHT": row["width"], "WIDTH": row["height"],
            "LICENSE": "?", "NSFW": "UNLIKELY", "similarity": row["similarity"]}  # fmt: skip


def joined(row: dict) -> dict:
    names = {"url": "URL", "caption": "TEXT", "width": "WIDTH", "height": "HEIGHT", "language": "LANGUAGE"}
    return {names.get(name, name): value for name, value in row.items()} | {"hash": 9}


def relaion(row: dict) -> dict:
    return row | {"hash": 9, "status": "x"}


RELEASES = {"plain": (plain, False), "joined": (joined, True), "relaion": (relaion, True)}


def recipe(path, **links) -> dict:
    source = {"kind": "laion_metadata", "path": str(path)}
    executor = {"name": "in_process", "workers": 0}
    return {
        "name": "links",
        "seed": 1,
        "curation": {"source": source, "stages": {"links": links}, "executor": executor},
    }


@pytest.mark.parametrize("release", RELEASES)
def test_the_rows_that_stay_are_those_that_break_no_rule(release, curate, tmp_path):
    whole, (make, scores) = rows(), RELEASES[release]
    (tmp_path / "meta").mkdir()
    for part in range(2):
        table = pa.Table.from_pylist([make(row) for row in whole[part::2]])
        pq.write_table(table, tmp_path / "meta" / f"part-{part}.parquet", row_group_size=50)
    told = curate(recipe(tmp_path / "meta", rules=RULES | (SCORES if scores else {})))
    (line,) = told["funnel"]
    reasons = [verdict(row, scores) for row in whole]
    wanted = {reason: reasons.count(reason) for reason in sorted(set(filter(None, reasons)))}
    assert line["dropped"] == wanted and line["kept"] == reasons.count(None) > 0
    kept = pq.read_table(tmp_path / "run" / "links" / "tables").to_pylist()
    sizes = {
        row["url"]: (row["width"], row["height"]) for row, reason in zip(whole, reasons, strict=True) if not reason
    }
    assert {row["url"]: (row["width"], row["height"]) for row in kept} == sizes, "widths are widths"
    argv = json.loads((tmp_path / "run" / "links" / "download.json").read_text())
    options = dict(word.removeprefix("--").split("=", 1) for word in argv[1:])
    assert options["min_image_size"] == "448" and options["resize_mode"] == "no" and options["url_col"] == "url"
    assert set(json.loads(options["save_additional_columns"])) == set(kept[0]) - {"url", "caption"}


def test_another_threshold_redoes_and_a_removed_table_goes(curate, tmp_path):
    (tmp_path / "meta").mkdir()
    for part in range(2):
        pq.write_table(pa.Table.from_pylist([joined(row) for row in rows(50)]), tmp_path / "meta" / f"{part}.parquet")
    one = curate(recipe(tmp_path / "meta", rules={"min_side": 200}))["funnel"][0]["kept"]
    two = curate(recipe(tmp_path / "meta", rules={"min_side": 1000}))["funnel"][0]["kept"]
    assert two < one
    (tmp_path / "meta" / "1.parquet").unlink()
    curate(recipe(tmp_path / "meta", rules={"min_side": 1000}))
    assert [path.name for path in (tmp_path / "run" / "links" / "tables").iterdir()] == ["0.parquet"]


def test_a_rule_without_its_column_and_an_unknown_release_are_refused(curate, tmp_path):
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.Table.from_pylist([plain(row) for row in rows(5)]), tmp_path / "meta" / "x.parquet")
    assert "punsafe" in curate(recipe(tmp_path / "meta", rules={"max_punsafe": 0.5}), code=1)["error"]["what"]
    with pytest.raises(ConfigError, match="which release"):
        find_layout(["URL", "TEXT", "WIDTH", "HEIGHT"], "detect", "x")
    with pytest.raises(ConfigError, match="no column url"):
        find_layout(["TEXT"], "detect", "x")
    assert find_layout(["URL", "TEXT", "WIDTH"], "plain", "x").swapped


def test_ingest_of_links_says_what_to_do_first(curate, tmp_path):
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.Table.from_pylist([joined(row) for row in rows(5)]), tmp_path / "meta" / "x.parquet")
    tree = recipe(tmp_path / "meta")
    tree["curation"]["stages"] = {"ingest": {}}
    assert "holds links, not images" in curate(tree, code=1)["error"]["what"]


def test_no_resize_leads_below_the_filter():
    with pytest.raises(ConfigError, match="below min_side"):
        Download(image_size=256).argv("t", [], 448, 3.0)
    words = Download(image_size=512).argv("t", ["url", "caption", "punsafe"], 448, 3.0)
    assert "--resize_mode=keep_ratio" in words and "--image_size=512" in words and "--compute_hash=sha256" in words
    assert "--resize_only_if_bigger=True" in words and '--save_additional_columns=["punsafe"]' in words


def test_the_script_hands_every_word_on_as_it_is(tmp_path):
    nasty = ["printf", "%s|", "a b", "$(touch pwned)", "'; echo x", '["a"]', "*"]
    file = tmp_path / "download.sh"
    file.write_text(script(nasty))
    done = subprocess.run(["sh", str(file)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "".join(f"{word}|" for word in nasty[2:]) and not (tmp_path / "pwned").exists()
    assert shlex.join(nasty) in file.read_text()


def write_crawl(tools, folder, sizes):
    """One shard whose Parquet rows say (original sides, stored sides)."""
    samples = [tools.raw(f"00000{i:04d}", tools.encode(tools.photo(i, 120, 110))) for i in range(len(sizes))]
    tools.write_shard(folder, "00000", samples)
    table = pq.read_table(folder / "00000.parquet")
    for place, name in enumerate(("original_width", "original_height", "width", "height")):
        table = table.append_column(name, pa.array([size[place] for size in sizes], pa.int64()))
    pq.write_table(table, folder / "00000.parquet")


def test_a_download_that_shrank_images_below_the_filter_is_refused(tools, curate, tmp_path):
    write_crawl(tools, tmp_path / "raw", [(2000, 1500, 256, 256), (600, 600, 256, 256), (300, 300, 256, 256)])
    tree = tools.recipe(tmp_path / "raw", filter={"min_side": 448})
    tree["curation"]["stages"] = {name: tree["curation"]["stages"][name] for name in ("ingest", "filter")}
    error = curate(tree, code=2)["error"]
    assert "2 of 2 images" in error["what"] and "00000.tar" in error["where"]
    assert "--resize_mode" in error["fix"] and "448" in error["fix"]
    assert curate(tree, "curation.stages.filter.min_side=100", out="less")["funnel"][-1]["kept"] == 3


@pytest.mark.parametrize(
    "size", [(300, 300, 256, 256), (5000, 500, 1024, 102), (500, 500, None, None), (500, 500, 500, 500)]
)
def test_images_that_the_filter_drops_anyway_are_no_reason_to_refuse(size, tools, curate, tmp_path):
    write_crawl(tools, tmp_path / "raw", [size, (700, 800, 700, 800)])
    tree = tools.recipe(tmp_path / "raw", filter={"min_side": 448})
    tree["curation"]["stages"] = {name: tree["curation"]["stages"][name] for name in ("ingest", "filter")}
    assert curate(tree)["funnel"][0]["kept"] == 2


def test_rules_need_only_the_columns_of_those_that_are_set():
    assert set(LinkRules(min_side=0).needed()) == {"url", "caption"}
    assert set(LinkRules(max_punsafe=0.5).needed()) == {"url", "caption", "width", "height", "punsafe"}


def test_the_documented_recipe_is_one():
    section = PAGE.read_text().partition("## From LAION's links to a crawl")[2].partition("\n## ")[0]
    tree = yaml.safe_load(re.search(r"```yaml\n(.*?)```", section, re.S)[1])
    links = CurationConfig.parse(tree["curation"]).stages["links"]
    assert links.download.argv("tables", [], links.rules.min_side, links.rules.max_aspect)[0] == "img2dataset"
