"""The response cache: whole lines only, whoever wrote them and however they died."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.data_curation.recaption import cache as module
from megavlm.data_curation.recaption.cache import ResponseCache, address
from megavlm.data_curation.recaption.reply import Reply

REPLIES = st.builds(
    Reply, st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.text("ab"), st.integers(1, 9)
)


@given(st.dictionaries(st.binary(max_size=4), REPLIES, max_size=20))
def test_what_was_put_is_found_by_any_reader_and_nothing_else_is(replies):
    with tempfile.TemporaryDirectory() as folder:
        one, other, reader = (ResponseCache(Path(folder) / "cache") for _ in range(3))
        for number, (image, reply) in enumerate(replies.items()):
            (one, other)[number % 2].put(address(image), reply)
            if number == len(replies) // 2:
                reader.refresh()
        reader.refresh()
        assert {image: reader.get(address(image)) for image in replies} == replies
        assert reader.get(address(b"five!")) is None


def test_blocks_smaller_than_a_line_lose_nothing(tmp_path, monkeypatch):
    writer = ResponseCache(tmp_path)
    keys = [address(bytes([i])) for i in range(30)]
    for key in keys:
        writer.put(key, Reply("words " * 20, "stop"))
    monkeypatch.setattr(module, "BLOCK", 1000)
    reader = ResponseCache(tmp_path)
    reader.refresh()
    assert all(reader.get(key) == Reply("words " * 20, "stop") for key in keys)


def test_everything_that_decides_a_caption_is_part_of_its_address():
    base = {"model": "m", "text": "t", "parameters": {"max_tokens": 5, "temperature": 0.0}, "max_side": 9}
    other = [base | {name: value} for name, value in (("model", "n"), ("text", "u"), ("max_side", 8))]
    other += [base | {"parameters": {"max_tokens": 6, "temperature": 0.0}}, base | {"dtype": "float16"}]
    keys = [address(b"image", **one) for one in [base, *other]] + [address(b"other", **base)]
    assert len(set(keys)) == len(keys)
    swapped = dict(reversed(base.items()))
    assert address(b"image", **swapped) == keys[0]


@pytest.mark.parametrize("cut", [1, 2, 40, 90])
def test_a_torn_line_costs_itself(tmp_path, cut):
    writer = ResponseCache(tmp_path)
    keys = [address(bytes([i])) for i in range(3)]
    writer.put(keys[0], Reply("first }", "stop"))
    writer.put(keys[1], Reply("brace }", "stop"))
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-cut])
    writer.put(keys[2], Reply("third", None, 2))
    reader = ResponseCache(tmp_path)
    reader.refresh()
    assert reader.get(keys[0]) == Reply("first }", "stop")
    assert reader.get(keys[1]) in (None, Reply("brace }", "stop"))  # only its line break may have gone
    assert reader.get(keys[2]) == Reply("third", None, 2)


def test_a_killed_writer_leaves_what_it_said_it_kept(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from megavlm.data_curation.recaption.cache import ResponseCache, address\n"
        "from megavlm.data_curation.recaption.reply import Reply\n"
        "cache = ResponseCache(Path(sys.argv[1]))\n"
        "for n in range(10**6):\n"
        "    cache.put(address(str(n).encode()), Reply(f'caption {n} ' * 50, 'stop')); print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    while last < 200:
        last = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    told = [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait()
    reader = ResponseCache(tmp_path)
    reader.refresh()
    for n in range(max([last, *told[:-1]])):
        assert reader.get(address(str(n).encode())) == Reply(f"caption {n} " * 50, "stop")
