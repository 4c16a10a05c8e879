"""Files are whole or absent, whatever happens while they are written."""

import contextlib
import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import files
from holdfast.errors import HoldfastError


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    with files.writing(path) as temporary:
        temporary.write_bytes(b"weights")
        assert temporary.parent == path.parent and temporary.suffix == path.suffix
        assert not path.exists()
    assert path.read_bytes() == b"weights" and listing(path.parent) == [path.name]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, interruption):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(interruption), files.writing(path) as temporary:
        temporary.write_text("half of the n")
        raise interruption
    assert path.read_text() == "old" and listing(tmp_path) == ["a.txt"]


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    mask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a.txt", "x")
        with files.writing_folder(tmp_path / "set"):
            pass
    finally:
        assert os.umask(mask) == 0o027  # asking for the mask has not changed it
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o750


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "set"
    for content in ("first", "second"):
        with files.writing_folder(path) as temporary:
            (temporary / f"{content}.txt").write_text(content)
            assert not (path / f"{content}.txt").exists()
        assert listing(path) == [f"{content}.txt"]
    assert listing(tmp_path) == ["set"]


def test_an_interrupted_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "set"
    with files.writing_folder(path) as temporary:
        (temporary / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), files.writing_folder(path) as temporary:
        (temporary / "a.txt").write_text("new")
        raise RuntimeError
    assert (path / "a.txt").read_text() == "old" and listing(tmp_path) == ["set"]


@pytest.mark.parametrize("name", ["a.txt", "a[1].tar.gz", "plain"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, name):
    path = tmp_path / name
    script = (
        "import os, signal, sys\n"
        "from holdfast import files\n"
        "with files.writing(sys.argv[1]), files.writing_folder(sys.argv[1] + '.set'):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", script, path], env=env)
    assert len(listing(tmp_path)) == 2
    files.write_text(path, "new")
    assert len(listing(tmp_path)) == 2
    with files.writing_folder(f"{path}.set"):
        pass
    assert listing(tmp_path) == [name, f"{name}.set"]


def test_a_writer_spares_the_temporary_files_of_others(tmp_path):
    names = ["a.txt", "a.b.txt", "a.12345678.txt", "b.txt", "a.csv", "a"]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(files.writing(tmp_path / name)).write_text(name)
        for name in ("set", "set.12345678", "set.x"):
            (stack.enter_context(files.writing_folder(tmp_path / name)) / "here").touch()
        (tmp_path / ".a.backup.txt").touch()
    assert listing(tmp_path) == sorted([*names, "set", "set.12345678", "set.x", ".a.backup.txt"])
    assert all((tmp_path / name).read_text() == name for name in names)


@pytest.mark.parametrize(
    "number, found, repair",
    [
        (errno.ENOSPC, "no space left", "free some space"),
        (errno.EDQUOT, "quota", "quota"),
        (errno.EACCES, "permission denied", "permission"),
        (errno.EROFS, "read-only", "read-only"),
    ],
)
@pytest.mark.parametrize("write", [files.writing, files.writing_folder])
def test_a_full_or_forbidden_disk_is_told_clearly(tmp_path, write, number, found, repair):
    path = tmp_path / "a"
    with pytest.raises(HoldfastError, match="cannot write") as caught, write(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in str(caught.value)
    assert found in caught.value.found and repair in caught.value.repair
    assert listing(tmp_path) == []


def test_other_system_errors_pass(tmp_path):
    with pytest.raises(FileNotFoundError), files.writing(tmp_path / "a"):
        (tmp_path / "missing").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(HoldfastError, match="cannot write"):
        files.write_text(tmp_path / "a.txt", "x")


def test_a_full_disk_for_real(tmp_path):
    # The kernel refuses what goes past the limit, in the middle of the write.
    script = (
        "import errno, resource, signal, sys\n"
        "from holdfast import files\n"
        "from holdfast.errors import HoldfastError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files._MENDING[errno.EFBIG] = 'raise the limit'\n"
        "try:\n"
        "    files.write_text(sys.argv[1], 'x' * 5000)\n"
        "except HoldfastError as error:\n"
        "    print(error.repair)\n"
    )
    path = tmp_path / "a.txt"
    path.write_text("old")
    env = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "raise the limit\n"
    assert path.read_text() == "old" and listing(tmp_path) == ["a.txt"]


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text() | st.none()


@given(st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_text().endswith("\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_json_refuses_what_is_no_json(tmp_path, value):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError):
        files.write_json(path, value)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "{", '{"a": 1', "\x00"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HoldfastError) as caught:
        files.read_json(path)
    assert str(path) in str(caught.value) and caught.value.repair


def test_text_is_utf8_with_the_newlines_given(tmp_path):
    files.write_text(tmp_path / "a.txt", "naïve … 顔\n")
    assert (tmp_path / "a.txt").read_bytes() == "naïve … 顔\n".encode()


def test_sha256(tmp_path):
    path = tmp_path / "a.bin"
    content = bytes(range(256)) * 5000  # more than one piece
    path.write_bytes(content)
    assert files.sha256_of(path) == hashlib.sha256(content).hexdigest()
