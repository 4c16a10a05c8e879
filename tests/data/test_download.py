import hashlib
import http.server
import io
import socket
import stat
import tarfile
import threading
import zipfile

import pytest

from holdfast.data import celeba, lfw
from holdfast.data.download import extract, fetch
from holdfast.errors import HoldfastError

BODY = bytes(range(256)) * 5000
MD5, SHA256 = hashlib.md5(BODY).hexdigest(), hashlib.sha256(BODY).hexdigest()


class Host(http.server.BaseHTTPRequestHandler):
    files = {}
    asked = []

    def do_GET(self):
        self.asked.append(self.path)
        body = self.files.get(self.path.rsplit("/", 1)[-1])
        if self.path.endswith("quota"):
            body = b"\n<!DOCTYPE html><title>Quota exceeded</title>"
        if body is None:
            self.send_error(403, "Forbidden")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) * (2 if self.path.startswith("/short/") else 1)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *details):
        pass


@pytest.fixture
def host(monkeypatch):
    """A host on this machine; its `files` by name, and the paths that it was `asked`."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Own(Host):
        files, asked = {"a.bin": BODY}, []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        Own.url = f"http://127.0.0.1:{server.server_port}"
        yield Own
        server.shutdown()


def test_a_file_with_its_checksums(tmp_path, host):
    path = fetch(f"{host.url}/a.bin", tmp_path / "new" / "a.bin", sha256=SHA256, md5=MD5.upper())
    assert path.read_bytes() == BODY and [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_file_placed_by_hand_needs_no_host(tmp_path, host):
    (tmp_path / "a.bin").write_bytes(BODY)
    fetch(f"{host.url}/a.bin", tmp_path / "a.bin", md5=MD5)
    assert host.asked == []
    (tmp_path / "a.bin").write_bytes(BODY[:-1])
    with pytest.raises(HoldfastError, match="not the file that was expected") as caught:
        fetch(f"{host.url}/a.bin", tmp_path / "a.bin", md5=MD5)
    assert MD5 in caught.value.expected and (tmp_path / "a.bin").exists()


@pytest.mark.parametrize(
    "path, found",
    [
        ("/b.bin", "HTTP 403 Forbidden"),
        ("/quota", "a web page instead of the file"),
        ("/short/a.bin", f"{len(BODY)} of {2 * len(BODY)} bytes"),
    ],
)
def test_a_refusal_says_what_to_place_where(tmp_path, host, path, found):
    with pytest.raises(HoldfastError) as caught:
        fetch(host.url + path, tmp_path / "a.bin", md5=MD5, hint="its page is X")
    error = caught.value
    assert found in error.found and MD5 in error.expected and host.url + path in error.what
    assert f"by hand, place it as {tmp_path / 'a.bin'}" in error.repair and "its page is X" in error.repair
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum(tmp_path, host):
    host.files["a.bin"] = BODY[::-1]
    with pytest.raises(HoldfastError, match=hashlib.sha256(BODY[::-1]).hexdigest()):
        fetch(f"{host.url}/a.bin", tmp_path / "a.bin", sha256=SHA256)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_host_and_a_bad_url(tmp_path, host):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(HoldfastError, match="refused"):
            fetch(f"http://127.0.0.1:{closed.getsockname()[1]}/a.bin", tmp_path / "a.bin")
    with pytest.raises(HoldfastError, match="unknown url type"):
        fetch("a.bin", tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_proxy(tmp_path, host, monkeypatch):
    monkeypatch.setenv("http_proxy", host.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fetch("http://faces.invalid/a.bin", tmp_path / "a.bin", md5=MD5)
    assert host.asked == ["http://faces.invalid/a.bin"]


# ---- archives ----


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def make_tar(path, members):
    """Members: (name, content) or a TarInfo."""
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_archives_are_unpacked(tmp_path):
    make_zip(tmp_path / "a.zip", [("d/", b"", stat.S_IFDIR), ("d/e/x.txt", b"one", 0), ("y.txt", b"two", 0)])
    make_tar(tmp_path / "a.tgz", [special("d", tarfile.DIRTYPE), ("./d/e/x.txt", b"one"), ("y.txt", b"two")])
    for name in ("a.zip", "a.tgz"):
        folder = extract(tmp_path / name, tmp_path / f"{name}.out")
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert found == {"d/e/x.txt": b"one", "y.txt": b"two"}


BAD_NAMES = ["../evil", "good/../../evil", "/tmp/holdfast-evil", "C:/evil", "..\\evil", "a/.."]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_out_of_the_folder_are_refused(tmp_path, kind, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    if kind == "zip":
        archive = make_zip(inner / "a.zip", [("fine.txt", b"x", 0), (name, b"evil", 0)])
    else:
        archive = make_tar(inner / "a.tgz", [("fine.txt", b"x"), (name, b"evil")])
    with pytest.raises(HoldfastError, match="is refused"):
        extract(archive, inner / "out")
    assert [path.name for path in inner.iterdir()] == [archive.name]
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    archive = make_tar(
        tmp_path / "a.tgz", [("fine", b"x"), special("s", kind, "/etc"), ("s/passwd", b"evil")]
    )
    with pytest.raises(HoldfastError, match="a link or special file: 's'"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_links_in_a_zip_are_refused(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [("s", b"/etc", stat.S_IFLNK | 0o777), ("s/passwd", b"evil", 0)])
    with pytest.raises(HoldfastError, match="a link or special file: 's'"):
        extract(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_name_that_comes_twice_is_refused(tmp_path):
    archive = make_tar(tmp_path / "a.tgz", [("x", b"one"), ("x", b"two")])
    with pytest.raises(HoldfastError, match="damaged"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "text", "missing"])
def test_a_damaged_archive(tmp_path, kind):
    path = tmp_path / "archive"
    content = hashlib.shake_256(b"noise").digest(50_000)
    if kind == "zip":
        make_zip(path, [("x", content, 0)])
        damaged = bytearray(path.read_bytes())
        damaged[20_000] ^= 255
        path.write_bytes(damaged)
    elif kind == "tar":
        make_tar(path, [("x", content)])
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "text":
        path.write_text("<html>quota</html>")
    with pytest.raises(HoldfastError, match="archive"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {p.name for p in tmp_path.iterdir()} <= {"archive"}


# ---- data sets from their archives ----


def test_celeba_is_downloaded_once(tmp_path, host, celeba_copy):
    source = celeba_copy(6)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((source / "img_align_celeba").iterdir()):
            archive.write(path, f"img_align_celeba/{path.name}")
    settings = {"size": [45, 55], "crop": 45}
    for key, path in (
        ("archive", tmp_path / "images.zip"),
        ("attribute_file", source / "list_attr_celeba.txt"),
        ("partition_file", source / "list_eval_partition.txt"),
    ):
        host.files[path.name] = path.read_bytes()
        settings[key] = {"url": f"{host.url}/{path.name}", "md5": hashlib.md5(path.read_bytes()).hexdigest()}
    downloaded = celeba.prepare(tmp_path / "out" / "celeba", settings, 16, 0)
    assert len(host.asked) == 3
    celeba.prepare(tmp_path / "out" / "celeba", settings, 16, 0)
    assert len(host.asked) == 3
    local = celeba.prepare(tmp_path / "local", settings | {"source": str(source)}, 16, 0)
    assert (downloaded.images == local.images).all() and downloaded.index.equals(local.index)


def test_celeba_says_what_to_place_where_if_the_host_refuses(tmp_path, host):
    refused = {"url": f"{host.url}/gone", "md5": "00d2c5bc6d35e252742224ab0c1e8fcb"}
    settings = dict.fromkeys(("archive", "attribute_file", "partition_file"), refused)
    with pytest.raises(HoldfastError) as caught:
        celeba.prepare(tmp_path / "celeba", settings | {"downloads": str(tmp_path / "down")}, 16, 0)
    assert f"place it as {tmp_path / 'down' / 'list_attr_celeba.txt'}" in caught.value.repair
    assert celeba.PAGE in caught.value.repair and "`source`" in caught.value.repair
    assert not (tmp_path / "celeba").exists()


def test_lfw_is_downloaded(tmp_path, host, draw):
    image = draw(tmp_path / "a.jpg", 50, 50).read_bytes()
    body = make_tar(tmp_path / "a.tgz", [("lfw-deepfunneled/Ann/Ann_0001.jpg", image)]).read_bytes()
    host.files["lfw.tgz"] = body
    archive = {"url": f"{host.url}/lfw.tgz", "md5": hashlib.md5(body).hexdigest()}
    faces = lfw.prepare(tmp_path / "out" / "lfw", {"archive": archive, "size": [50, 50], "crop": 40}, 16, 0)
    assert faces.index["file"].tolist() == ["Ann/Ann_0001.jpg"]
