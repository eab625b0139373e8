"""Foreign tars: cut off, tampered with, or carelessly written."""

from __future__ import annotations

import errno
import io
import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megavlm.platform.errors import InputError, StorageFault
from megavlm.platform.shards import BadMember, Sample, ShardReader, ShardWriter, scan_tar, split_name
from megavlm.platform.shards.scan import scan_members

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PAIRS = [(f"{number}.{ext}", f"{ext} {number}".encode() * 99) for number in range(3) for ext in ("jpg", "txt")]


def split(items) -> tuple[dict[str, dict[str, bytes]], list[BadMember]]:
    items = list(items)
    good = [item for item in items if isinstance(item, Sample)]
    assert len({sample.key for sample in good}) == len(good)
    return {sample.key: sample.fields for sample in good}, [item for item in items if isinstance(item, BadMember)]


def whole(pairs=PAIRS) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    for name, data in pairs:
        key, ext = name.split(".", 1)
        samples.setdefault(key, {})[ext] = data
    return samples


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_good_tar(make_tar, format):
    long = [("folder/" + "n" * 90 + ".jpg", b"x")]
    assert split(scan_tar(make_tar(PAIRS + long, format))) == (whole(PAIRS + long), [])


def test_members_before_the_cut_are_kept(make_tar):
    path = make_tar(PAIRS)
    with tarfile.open(path) as tar:
        cut = tar.getmember("2.jpg").offset_data + 10
    path.write_bytes(path.read_bytes()[:cut])
    good, bad = split(scan_tar(path))
    assert good == whole(PAIRS[:4])
    assert bad == [BadMember("2.jpg", "truncated_tar", "2")]


@FUZZ
@given(data=st.data(), part=st.floats(0, 1, exclude_max=True))
def test_a_cut_anywhere(tmp_path, samples_strategy, data, part):
    """Never an exception, never a wrong byte: exactly the members that lie whole before the cut, in order."""
    samples = data.draw(samples_strategy)
    folder = tmp_path / os.urandom(8).hex()
    with ShardWriter(folder) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    path = folder / "00000.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    content_end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    cut = int(os.path.getsize(path) * part)
    os.truncate(path, cut)
    expected: dict[str, dict[str, bytes]] = {}
    names = [(key, ext) for key, fields in samples.items() for ext in fields]
    for member, (key, ext) in zip(members, names, strict=True):
        if member.offset_data + member.size <= cut:
            expected.setdefault(key, {})[ext] = samples[key][ext]
    good, bad = split(scan_tar(path))
    assert good == expected and list(good) == list(expected)
    assert [item.reason for item in bad] == (["truncated_tar"] if cut < content_end + 512 else [])
    reader = ShardReader(str(path))  # its index no longer fits, so it is rebuilt
    assert [reader.read(number) for number in range(len(reader))] == [Sample(*item) for item in expected.items()]
    assert reader.bad == bad


@FUZZ
@given(data=st.data())
def test_damage_anywhere_raises_nothing(tmp_path, make_tar, data):
    path = make_tar(PAIRS)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 6 * 1536), min_size=1, max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    list(scan_tar(path))
    reader = ShardReader(path)
    for number in range(len(reader)):
        reader.read(number)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=3000))
def test_noise_is_no_tar(tmp_path, noise):
    (tmp_path / "noise.tar").write_bytes(noise)
    good, bad = split(scan_tar(tmp_path / "noise.tar"))
    assert good == {} and len(bad) <= 1
    assert bad or not any(noise[:512])


def header(name: str, size_field: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a right checksum around any size field: what a hostile tar would carry."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size_field, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


HUGE, NEGATIVE = b"\x80" + b"\x7f" * 11, b"\xff" * 10 + b"\xfc\x00"


@pytest.mark.parametrize("size", [HUGE, NEGATIVE, b"77777777777\0"])
@pytest.mark.parametrize("kind", [b"0", b"5", b"x", b"g", b"L", b"K", b"S", b"1", b"V", b"?"])
@pytest.mark.timeout(20)
def test_sizes_that_lie(make_tar, size, kind):
    path = make_tar(PAIRS[:2])
    start = path.read_bytes()[: 2 * 1024]
    path.write_bytes(start + header("x.jpg", size, kind) + b"\0" * 2048)
    good, bad = split(scan_tar(path))
    assert good == whole(PAIRS[:2])
    assert {item.reason for item in bad} <= {"corrupt_tar", "truncated_tar", "not_a_file"}


@pytest.mark.parametrize(
    "name", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg", "..\\a.jpg", "c:/a.jpg", "a/..", "x/..hidden/../../b.txt"]
)
def test_unsafe_names(make_tar, name):
    good, bad = split(scan_tar(make_tar([*PAIRS[:2], (name, b"evil"), *PAIRS[2:]])))
    assert good == whole()
    assert bad == [BadMember(name, "unsafe_name")]


def test_dots_that_are_harmless(make_tar):
    good, bad = split(scan_tar(make_tar([("./a/b.jpg", b"1"), ("a/c..d.txt", b"2"), ("v1.2/e.txt", b"3")])))
    assert good == {"a/b": {"jpg": b"1"}, "a/c": {".d.txt": b"2"}, "v1.2/e": {"txt": b"3"}} and not bad


def test_the_first_of_a_duplicated_key_is_kept(make_tar):
    again = [("0.jpg", b"later"), ("0.txt", b"later")]
    good, bad = split(scan_tar(make_tar(PAIRS + again)))
    assert good == whole()
    assert bad == [BadMember("0.jpg", "duplicate_key", "0"), BadMember("0.txt", "duplicate_key", "0")]


def test_a_duplicate_right_behind_and_in_other_case(make_tar):
    pairs = [("a.jpg", b"first"), ("a.JPG", b"second"), ("a.txt", b"t"), ("a.txt", b"u")]
    good, bad = split(scan_tar(make_tar(pairs)))
    assert good == {"a": {"jpg": b"first", "txt": b"t"}}
    assert [(item.name, item.reason) for item in bad] == [("a.JPG", "duplicate_key"), ("a.txt", "duplicate_key")]


def test_a_bad_member_does_not_split_its_sample(make_tar):
    good, bad = split(scan_tar(make_tar([("a.jpg", b"1"), ("../a.txt", b"2"), ("a.txt", b"3")])))
    assert good == {"a": {"jpg": b"1", "txt": b"3"}}
    assert [item.reason for item in bad] == ["unsafe_name"]


def test_links_devices_folders_and_nameless(make_tar):
    link, device, folder = (tarfile.TarInfo(name) for name in ("l.jpg", "d.jpg", "folder.d"))
    link.type, link.linkname, device.type, folder.type = (
        tarfile.SYMTYPE,
        "/etc/passwd",
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
    )
    members = [(link, b""), (device, b""), (folder, b""), ("README", b"r"), (".hidden", b"h"), *PAIRS]
    good, bad = split(scan_tar(make_tar(members)))
    assert good == whole()
    reasons = [(item.name, item.reason) for item in bad]
    assert reasons[:2] == [("l.jpg", "not_a_file"), ("d.jpg", "not_a_file")]
    assert reasons[2:] == [("README", "no_extension"), (".hidden", "no_extension")]


def test_a_compressed_tar_is_named_corrupt(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 2000
        tar.addfile(info, io.BytesIO(os.urandom(2000)))
    assert list(scan_tar(tmp_path / "a.tar")) == [BadMember("", "corrupt_tar")]


def test_an_empty_file_and_an_empty_tar(tmp_path, make_tar):
    (tmp_path / "zero.tar").write_bytes(b"")
    assert list(scan_tar(tmp_path / "zero.tar")) == [BadMember("", "truncated_tar")]
    assert list(scan_tar(make_tar([]))) == []


def test_a_missing_tar(tmp_path):
    with pytest.raises(InputError):
        list(scan_tar(tmp_path / "absent.tar"))


@given(st.text(alphabet="ab./", max_size=12))
def test_split_name_follows_webdataset(name):
    from webdataset.tariterators import base_plus_ext

    base, ext = base_plus_ext(name)
    plain = name.split("/")
    if base and ext and not base.endswith("/") and "" not in plain and "." not in plain[:-1]:
        assert split_name(name) == (base, ext.lower())


class Faulty(io.FileIO):
    """A file on a disk that fails once a number of bytes was read."""

    left = 0

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return data


@pytest.mark.parametrize("bytes_read", [0, 100, 600, 1200, 3000])
def test_a_disk_that_fails_is_not_a_damaged_tar(make_tar, bytes_read):
    path = make_tar([(f"{k}.txt", b"x" * 900) for k in range(4)])
    with Faulty(path) as file, pytest.raises(StorageFault, match="Input/output error"):
        file.left = bytes_read
        list(scan_members(file, path.stat().st_size))
