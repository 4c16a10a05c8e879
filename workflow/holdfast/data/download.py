"""Files from the web, checked before they get their name; archives unpacked without leaving their folder."""

import contextlib
import hashlib
import http.client
import lzma
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from holdfast.errors import HoldfastError
from holdfast.files import writing, writing_folder
from holdfast.progress import Progress

PIECE = 1 << 20
MEGABYTE = 1_000_000
TIMEOUT = 60.0  # seconds without a byte
# Some hosts refuse urllib's own name.
_HEADERS = {"User-Agent": "holdfast"}
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


def fetch(url, path, sha256=None, md5=None, hint=None):
    """Download `url` to `path`; the file appears under its name only when its checksum is right.

    A file that is already there is checked and used, so one that was placed by hand needs no
    network. Proxies are taken from the environment (http_proxy, https_proxy, no_proxy).

    Args:
        sha256, md5: hexadecimal; each one that is given must be right.
        hint: a sentence that follows the instructions in error messages.

    Returns:
        `path`.

    Raises:
        HoldfastError: the host cannot be reached or refuses, the transfer breaks off, the checksum
            is wrong, or the disk does not take the file. Says what to place where by hand.
    """
    path = Path(path)
    wanted = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value}
    if path.exists():
        _check_present(path, wanted)
        return path
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in wanted}
    with writing(path) as temporary:
        start = b""
        with open(temporary, "wb") as file:
            for piece in _pieces(url, path, wanted, hint):
                start = start or piece[:512]
                file.write(piece)
                for digest in digests.values():
                    digest.update(piece)
        for name, digest in digests.items():
            if digest.hexdigest() != wanted[name]:
                page = start.lstrip().lower().startswith((b"<!doctype html", b"<html"))
                found = "a web page instead of the file" if page else f"{name} {digest.hexdigest()}"
                raise _refused(url, path, wanted, hint, found)
    return path


def _pieces(url, path, wanted, hint):
    """The body of `url`; every way in which the network may fail is a HoldfastError."""
    network = (OSError, http.client.HTTPException, ValueError)
    try:
        # An opener of our own: urlopen() keeps the proxies of its first call for the whole process.
        opener = urllib.request.build_opener()
        response = opener.open(urllib.request.Request(url, headers=_HEADERS), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(url, path, wanted, hint, f"HTTP {error.code} {error.reason}") from error
    except network as error:
        raise _refused(url, path, wanted, hint, getattr(error, "reason", None) or error) from error
    with response:
        length = response.headers.get("Content-Length")
        length = int(length) if length and length.isdigit() else None
        received = 0
        with _megabytes(length, f"downloading {path.name}") as reached:
            while True:
                try:
                    piece = response.read(PIECE)
                except network as error:
                    raise _refused(url, path, wanted, hint, f"the transfer broke off: {error}") from error
                if not piece:
                    break
                received += len(piece)
                reached(received)
                yield piece
            if length is not None and received != length:
                raise _refused(url, path, wanted, hint, f"{received} of {length} bytes")


@contextlib.contextmanager
def _megabytes(length, description):
    """A function to be told the number of bytes reached; silent where the length is unknown."""
    if length is None:
        yield lambda reached: None
        return
    with Progress(-(-length // MEGABYTE), f"{description} (MB)") as told:

        def reached(count):
            further = count // MEGABYTE - told.done
            if further > 0:
                told.advance(by=further)

        yield reached


def _refused(url, path, wanted, hint, found):
    checksums = _told(wanted)
    instructions = f"download {path.name} by hand, place it as {path} and run again"
    return HoldfastError(
        f"cannot download {path.name} from {url}",
        found=str(found),
        expected=f"the file{f' with {checksums}' if checksums else ''}",
        repair=f"{instructions}{f'; {hint}' if hint else ''}",
    )


def _check_present(path, wanted):
    for name, value in wanted.items():
        with open(path, "rb") as file:
            found = hashlib.file_digest(
                file, lambda name=name: hashlib.new(name, usedforsecurity=False)
            ).hexdigest()
        if found != value:
            raise HoldfastError(
                f"{path} is not the file that was expected",
                found=f"{name} {found}, {path.stat().st_size} bytes",
                expected=f"{name} {value}",
                repair="remove it, or place the complete file there",
            )


def _told(wanted):
    return ", ".join(f"{name} {value}" for name, value in wanted.items())


def extract(archive, folder):
    """Unpack a zip or tar archive (also .tar.gz, .tgz, .tar.xz, .tar.bz2) as `folder`.

    All or nothing: an archive with an absolute path, a '..', a link, a device or a name that comes
    twice is refused whole. Permissions and owners in the archive are ignored.

    Returns:
        `folder`.

    Raises:
        HoldfastError: not an archive, damaged, or with a member that is refused; a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        if zipfile.is_zipfile(archive):
            unpack = _unpack_zip
        elif tarfile.is_tarfile(archive):
            unpack = _unpack_tar
        else:
            raise HoldfastError(
                f"{archive} is not an archive",
                expected="a zip or tar file",
                repair="remove it, download it again or place the right file there",
            )
    except OSError as error:
        raise HoldfastError(
            f"cannot open the archive {archive}",
            found=(error.strerror or str(error)).lower(),
            expected="a zip or tar file",
            repair="place it there",
        ) from error
    with writing_folder(folder) as temporary:
        try:
            unpack(archive, temporary)
        except _ARCHIVE_ERRORS as error:
            raise HoldfastError(
                f"the archive {archive} is damaged",
                found=f"{type(error).__name__}: {error}",
                expected="an archive that can be unpacked",
                repair="remove it and run again, or place the complete file there",
            ) from error
    return folder


def _unpack_zip(archive, folder):
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            _inside(archive, member.orig_filename)
            # The upper 16 bits are the Unix mode, 0 where the archive was not made on Unix.
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, member.filename, "a link or special file")
        with Progress(len(members), f"unpacking {archive.name} (files)") as told:
            for member in members:
                if member.is_dir():
                    _inside(archive, member.filename, folder).mkdir(parents=True, exist_ok=True)
                else:
                    with opened.open(member) as content:
                        _write(content, _inside(archive, member.filename, folder))
                told.advance()


def _unpack_tar(archive, folder):
    # A compressed tar is read in one pass; that a late member is refused undoes the early ones.
    with (
        open(archive, "rb") as file,
        tarfile.open(fileobj=file) as opened,
        _megabytes(archive.stat().st_size, f"unpacking {archive.name}") as reached,
    ):
        for member in opened:
            target = _inside(archive, member.name, folder)
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.isreg():
                _write(opened.extractfile(member), target)
            else:
                raise _unsafe(archive, member.name, "a link or special file")
            reached(file.tell())


def _inside(archive, name, folder=Path()):
    parts = PurePosixPath(name).parts
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _unsafe(archive, name, "an absolute path")
    if ".." in parts or "\\" in name or "\0" in name:
        raise _unsafe(archive, name, "a path that leads out of its folder")
    return folder.joinpath(*parts)


def _write(content, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, open(target, "xb") as file:
        shutil.copyfileobj(content, file, PIECE)


def _unsafe(archive, name, reason):
    return HoldfastError(
        f"the archive {archive} is refused",
        found=f"{reason}: {name!r}",
        expected="plain files and folders within the archive's own folder",
        repair="do not use this archive: get it from the data set's own page and compare the checksum",
    )
