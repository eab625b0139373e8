"""The storage seam over local paths, file:// and memory://: one behaviour."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megavlm.platform.errors import InputError
from megavlm.platform.storage import (
    exists,
    file_size,
    join,
    list_files,
    make_parent,
    open_atomic,
    open_file,
    read_range,
    remove,
    safe_join,
    write_atomic,
)


@pytest.fixture(params=["path", "text", "file", "memory"])
def root(request, tmp_path: Path) -> Iterator[str | Path]:
    """The same empty folder, named in each way a user may name one."""
    if request.param != "memory":
        yield {"path": tmp_path, "text": str(tmp_path), "file": f"file://{tmp_path}"}[request.param]
        return
    memory = fsspec.filesystem("memory")
    yield f"memory://storage-test-{tmp_path.name}"
    if memory.exists(f"/storage-test-{tmp_path.name}"):
        memory.rm(f"/storage-test-{tmp_path.name}", recursive=True)


def test_written_whole_and_read_back(root):
    url = join(root, "deep/er/a.bin")
    assert not exists(url)
    write_atomic(url, b"0123456789")
    assert exists(url) and file_size(url) == 10
    with open_file(url) as file:
        assert file.read() == b"0123456789"
    assert read_range(url, 3, 4) == b"3456"
    assert open_file(url, offset=6).read() == b"6789"
    assert open_file(url, offset=2, length=3).read() == b"234"
    assert open_file(url, length=2).read() == b"01"
    write_atomic(url, b"new")
    assert open_file(url).read() == b"new"
    remove(url)
    assert not exists(url)
    remove(url)


def test_text_modes_and_make_parent(root):
    url = join(root, "x/y.txt")
    make_parent(url)
    with open_file(url, "w") as file:
        file.write("naïve")
    with open_file(url, "r") as file:
        assert file.read() == "naïve"


def test_a_range_past_the_end_is_an_error(root):
    url = join(root, "a")
    write_atomic(url, b"0123")
    with pytest.raises(InputError, match="got 2 of 3"):
        read_range(url, 2, 3)


def test_a_range_is_not_written(root):
    with pytest.raises(ValueError, match="'wb'"):
        open_file(join(root, "a"), "wb", offset=3)


def test_list_files_sorted_by_suffix_without_folders_and_temporaries(root):
    for name in ("b.tar", "a.tar", "c.txt", ".b.tar.x.tmp", "folder.tar/inner.tar"):
        write_atomic(join(root, name), b"x")
    assert [name.rsplit("/", 1)[1] for name in list_files(root, ".tar")] == ["a.tar", "b.tar"]
    assert len(list_files(root)) == 3
    for name in list_files(root):  # what is listed can be opened
        assert open_file(name).read() == b"x"


def test_missing_files_and_folders_are_named(root):
    for look in (open_file, file_size, lambda url: read_range(url, 0, 1)):
        with pytest.raises(InputError) as caught:
            look(join(root, "no/such"))
        assert "no/such" in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        list_files(join(root, "nowhere"))


def test_nothing_is_left_by_a_failed_write(root):
    write_atomic(join(root, "kept"), b"old")
    with pytest.raises(RuntimeError), open_atomic(join(root, "kept")) as file:
        file.write(b"half")
        raise RuntimeError
    assert open_file(join(root, "kept")).read() == b"old"
    assert [Path(name).name for name in list_files(root)] == ["kept"]


def test_local_writes_leave_no_temporary_and_honour_the_umask(tmp_path):
    write_atomic(tmp_path / "a", b"x")
    with open(tmp_path / "b", "w"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_unknown_protocol():
    with pytest.raises(InputError, match="nonesuch"):
        open_file("nonesuch://x/y")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", "a\0b", "..\\x", "a/.."])
def test_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(InputError):
        safe_join(tmp_path, name)
    with pytest.raises(InputError):
        join("memory://x", name)


def test_links_that_leave_the_folder(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path)
    (tmp_path / "root" / "in").symlink_to(tmp_path / "root")
    with pytest.raises(InputError, match="link"):
        safe_join(tmp_path / "root", "out/secret")
    assert safe_join(tmp_path / "root", "in/fine") == tmp_path / "root" / "in" / "fine"


@given(st.text(alphabet="a./\\ \0", max_size=12))
def test_safe_join_never_leaves(name):
    root = Path("/nowhere/root")
    try:
        joined = safe_join(root, name)
    except InputError:
        return
    assert os.path.normpath(joined).startswith("/nowhere/root")
