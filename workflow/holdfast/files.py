"""Files that are either whole or absent: write to a temporary name in the same folder, then rename.

One writer a path at a time, which the workflow sees to: a writer removes what a killed one left behind.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from holdfast.errors import HoldfastError

_MENDING = {
    errno.ENOSPC: "free some space there, or point `results` in the config to another disk",
    errno.EDQUOT: "raise the quota, or point `results` in the config to another disk",
    errno.EACCES: "give yourself write permission, or point `results` in the config elsewhere",
    errno.EPERM: "give yourself write permission, or point `results` in the config elsewhere",
    errno.EROFS: "this disk is read-only: point `results` in the config to another one",
}
# What tempfile puts into a name: exactly eight characters, so that a.txt's writer spares a.b.txt's file.
_RANDOM = "?" * 8


@contextlib.contextmanager
def clear_disk_errors(path):
    """Turn a full disk or a missing permission into a :class:`HoldfastError` that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save covers the disk's error by one of its own.
        number = getattr(error if isinstance(error, OSError) else error.__context__, "errno", None)
        if number not in _MENDING:
            raise
        raise HoldfastError(
            f"cannot write {path}",
            found=os.strerror(number).lower(),
            expected="a folder that can be written, with room for the file",
            repair=_MENDING[number],
        ) from error


def remove_leftovers(path):
    """Remove the temporary files of a writer of `path` that was killed."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.{_RANDOM}{glob.escape(path.suffix)}"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path):
    """A temporary path beside `path`, renamed to it when the block ends well, removed otherwise.

    Raises:
        HoldfastError: no space, or no permission.
    """
    path = Path(path)
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path):
    """As :func:`writing`, for a folder: it appears under its name complete, or not at all."""
    path = Path(path)
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{_RANDOM}"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """JSON with two spaces of indent and a final newline; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """Raises:
    HoldfastError: the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HoldfastError(
            f"cannot read {path}", found=str(error), expected="a JSON file", repair="remove it and run again"
        ) from error


def sha256_of(path):
    """The hexadecimal sha256 of a file, read in pieces of 1 MiB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
