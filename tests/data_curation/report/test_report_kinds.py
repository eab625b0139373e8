"""Reports of runs that are not pictures alone: evaluation leaks, captions, texts and links."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megavlm.data_curation.report.words import CONTEXT, around, marked

LEAK = "How many of the nineteen wooden boats that left the harbour at dawn came back before the storm?"


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>([^<]*)</h2>", html)


@pytest.fixture
def leaky(tools, curate, tmp_path):
    """Three of six samples are an evaluation image: its bytes, recompressed and resized."""
    photos = [tools.photo(70 + i, 200, 160) for i in range(3)]
    (tmp_path / "bench").mkdir()
    for i, photo in enumerate(photos):
        (tmp_path / "bench" / f"item{i}.jpg").write_bytes(tools.encode(photo))
    leaks = [tools.encode(photos[0]), tools.encode(photos[1], quality=25), tools.encode(photos[2].resize((120, 96)))]
    samples = [tools.raw(f"leak{i}", data) for i, data in enumerate(leaks)]
    samples += [tools.raw(f"clean{i}", tools.encode(tools.photo(i, 200, 160))) for i in range(3)]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    tree = tools.recipe(tmp_path / "raw")
    against = {"mmbench": str(tmp_path / "bench")}
    tree["curation"]["stages"] = {"ingest": {}, "filter": {"min_side": 50}, "decontaminate": {"against": against}}
    curate(tree)
    return tmp_path / "run"


def test_a_leak_stands_beside_the_evaluation_image(leaky, told, shown):
    html = told(leaky)
    assert sections(html) == ["Curation", "Distributions", "Evaluation images", "Dropped"]
    pictures = shown(html)
    for i in range(3):
        sample = next(data for alt, data in pictures.items() if alt.startswith(f"dropped: leak{i}, "))
        known = pictures[f"mmbench: 00000/item{i}"]
        small = [np.asarray(data[:96, :120], float) for data in (sample, known)]
        assert np.abs(small[0] - small[1]).mean() < 25
    assert html.index("dropped: leak0") > max(html.index("dropped: leak1"), html.index("dropped: leak2"))
    assert "equal bytes" in html and ">dropped up to 64</text>" in html
    assert not list(leaky.glob("decontaminate/members/*/*/*")), "looking changes nothing in the run"


def test_without_the_evaluation_set_the_sample_is_still_shown(leaky, told, shown, tmp_path):
    shutil.rmtree(tmp_path / "bench")
    alts = set(shown(told(leaky)))
    assert any(alt.startswith("dropped: leak1") for alt in alts) and not any("item" in alt for alt in alts)


@pytest.fixture
def endpoint():
    """A server that answers every question about a picture with the next of some captions."""
    captions = iter(
        ["The first picture shows a field.", "I'm sorry, I can't help with that.", "A red, red hat that"] * 9
    )

    class Answer(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.respond({"data": []})

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            message = {"role": "assistant", "content": next(captions)}
            self.respond({"choices": [{"message": message, "finish_reason": "stop"}]})

        def respond(self, value):
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_captions_before_and_after_and_those_that_were_dropped(tools, curate, told, shown, endpoint, tmp_path):
    samples = [tools.raw(f"k{i}", tools.encode(tools.photo(i)), caption=f"old words {i}") for i in range(3)]
    tools.write_shard(tmp_path / "raw", "00000", samples)
    tree = tools.recipe(tmp_path / "raw")
    asking = {"endpoints": [endpoint], "model": "tiny", "asking": {"concurrency": 1}}
    stages = {"ingest": {}, "filter": {"min_side": 50}, "recaption": asking, "check_captions": {}}
    tree["curation"]["stages"] = stages
    curate(tree)
    html = told(tmp_path / "run")
    assert sections(html) == ["Curation", "Distributions", "Captions", "Dropped"]
    assert "New captions by tiny, asked with the prompt" in html
    for words in ("old words 0", "The first picture shows a field.", "I&#39;m sorry, I can&#39;t help", "refusal: "):
        assert words in html
    assert "check_captions: refusal: 1" in html and "check_captions: incomplete_sentence: 1" in html
    assert "Words of the new caption" in html and ">dropped below 5</text>" in html
    assert set(shown(html)) == {"k0", "k1", "k2"}


@pytest.fixture
def texts(curate, tmp_path):
    """Two sets with a bad row, a repeated one and two leaks."""
    rows = [{"question": f"What is {i} times {i + 3}?", "answer": f"It is {i * (i + 3)}."} for i in range(20)]
    rows += [{"question": "", "answer": "x"}, {"question": "what is 3 times 6", "answer": "It is 18"}]
    riddles = [{"instruction": "Riddle", "input": "", "response": f"Here it is: {LEAK.upper()} <b>Nobody</b> knows."}]
    riddles += [{"instruction": "Tell me:", "input": LEAK, "response": "Four."}]
    for name, some in (("orca", rows), ("teacher", riddles)):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "a.jsonl").write_text("\n".join(map(json.dumps, some)))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gsm8k.jsonl").write_text(json.dumps({"question": LEAK, "answer": "4"}))
    stages = {
        "text_ingest": {},
        "text_deduplicate": {},
        "text_decontaminate": {"folder": str(tmp_path / "bench"), "benchmarks": ["gsm8k"]},
        "text_export": {},
    }
    sets = {"orca": "orca_math", "teacher": "gpteacher"}
    source = {"kind": "text", "path": str(tmp_path / "text"), "sets": sets}
    executor = {"name": "in_process", "workers": 0}
    curate({"name": "texts", "curation": {"source": source, "stages": stages, "executor": executor}})
    return tmp_path / "run"


def test_a_run_over_texts_shows_sets_lengths_and_marked_leaks(texts, told):
    html = told(texts)
    assert sections(html) == ["Curation", "Text sets", "Benchmark leaks", "Dropped"]
    assert "<img" not in html and "The counts add up: 24 in = 20 kept + 4 dropped" in html
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in html.split("<tr>")]
    assert ["orca", "22", "20", "–", "1", "1"] in rows and ["teacher", "2", "0", "2", "–", "–"] in rows
    assert html.count("<mark>") == 2 and "gsm8k, number 0" in html
    marks = re.findall(r"<mark>([^<]*)</mark>", html)
    assert all(len(mark.split()) == 13 for mark in marks)
    assert any(mark.startswith("HOW MANY OF THE NINETEEN") for mark in marks)
    assert "&lt;b&gt;Nobody&lt;/b&gt;" in html
    assert "Characters of a conversation" in html and "23 samples" in html


def test_text_drops_are_listed_without_pictures(texts, told):
    html = told(texts)
    assert "text_ingest: examples" in html and "empty_turn" in html
    assert "text_deduplicate: examples" in html and "of orca--a-00000003" in html


@pytest.mark.parametrize(
    ("text", "ngram", "found"),
    [
        ("He said: “The Quick, brown fox!” And left.", "the quick brown", "“The Quick, brown"),
        ("a b c", "b c", "b c"),
        ("ﬁne ½ cup", "fine 12 cup", "ﬁne ½ cup"),
        ("a b c", "x y", None),
        ("", "a", None),
    ],
)
def test_the_words_are_marked_where_they_stand(text, ngram, found):
    runs = marked(text, ngram)
    assert "".join(piece for piece, _ in runs) == text
    assert [piece for piece, mark in runs if mark] == ([found] if found else [])


def test_a_long_text_is_cut_around_the_mark():
    runs = around(marked("x " * 500 + "one two three" + " y" * 500, "one two three"))
    assert [mark for _, mark in runs] == [False, True, False] and runs[1][0] == "one two three"
    assert all(len(runs[place][0]) <= CONTEXT + 2 for place in (0, 2))


def test_links_show_what_stays_and_the_reasons(curate, told, tmp_path):
    rng = np.random.default_rng(2)
    rows = [
        {"url": f"https://example.org/{i}.jpg", "caption": "a red fox " * int(rng.integers(1, 5)), "hash": i,
         "width": int(rng.integers(100, 2000)), "height": int(rng.integers(100, 2000)),
         "similarity": float(rng.uniform(0.2, 0.4)), "punsafe": float(rng.uniform(0, 1))}
        for i in range(300)
    ]  # fmt: skip
    (tmp_path / "meta").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "meta" / "part.parquet")
    source = {"kind": "laion_metadata", "path": str(tmp_path / "meta")}
    rules = {"min_side": 448, "min_similarity": 0.28, "max_punsafe": 0.5}
    curation = {"source": source, "stages": {"links": {"rules": rules}}, "executor": {"name": "in_process"}}
    line = curate({"name": "links", "curation": curation})["funnel"][0]
    html = told(tmp_path / "run")
    assert sections(html) == ["Curation", "Links"] and "<img" not in html
    assert f"{line['kept']} rows are left to download" in html and "img2dataset --url_list=tables" in html
    assert all(f"links: {reason}" in html for reason in line["dropped"])
    for limit in ("below 448", "below 0.28", "above 0.5"):
        assert f">dropped {limit}</text>" in html and f"{limit}: 0 (0\N{NO-BREAK SPACE}%)" in html
    assert f"The counts add up: 300 in = {line['kept']} kept + {300 - line['kept']} dropped" in html
