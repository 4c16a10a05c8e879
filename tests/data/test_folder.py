import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import holdfast
from holdfast.data import DATASETS
from holdfast.data.faceset import read_report
from holdfast.data.folder import prepare
from holdfast.errors import HoldfastError


def run(source, tmp_path, size=16, **settings):
    return prepare(tmp_path / "out" / "set", {"source": str(source)} | settings, size, 0)


def test_it_is_registered():
    assert DATASETS["folder"] is prepare


def test_any_size_any_mode_any_depth(tmp_path, draw):
    source = tmp_path / "source"
    draw(source / "b" / "c" / "wide.JPG", 90, 40)
    draw(source / "a.png", 33, 64)
    Image.fromarray(np.full((40, 40), 9, np.uint8)).save(source / "grey.png")
    Image.fromarray(np.full((40, 40), 257 * 9, np.uint16)).save(source / "deep.png")
    Image.fromarray(np.zeros((40, 40, 4), np.uint8)).save(source / "clear.png")
    (source / "notes.txt").write_text("x")
    draw(source / ".cache" / "hidden.png", 40, 40)
    faces = run(source, tmp_path)
    names = ["a.png", "b/c/wide.JPG", "clear.png", "deep.png", "grey.png"]
    assert faces.index["file"].tolist() == names
    assert faces.positions("test").tolist() == [0, 1, 2, 3, 4] and np.isnan(faces.boxes([0])).all()
    assert [np.unique(faces.images[n]).tolist() for n in (2, 3, 4)] == [[255], [9], [9]]
    wide = Image.open(source / "b" / "c" / "wide.JPG").crop((25, 0, 65, 40))
    assert np.array_equal(faces.images[1], np.asarray(wide.resize((16, 16), Image.Resampling.BILINEAR)))
    assert read_report(tmp_path / "out" / "set")["other_files"] == 1


def test_black_pale_and_palette_images_are_as_good_as_any(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    Image.new("RGB", (40, 40)).save(source / "black.png")
    Image.new("1", (40, 40)).save(source / "black_1_bit.png")
    Image.new("LA", (40, 40), (7, 255)).save(source / "grey_alpha.png")
    Image.new("P", (40, 40)).save(source / "palette.png")
    Image.new("RGBA", (40, 40), (9, 9, 9, 255)).save(source / "rgba.png")
    faces = run(source, tmp_path)
    assert faces.images.shape == (5, 16, 16, 3)
    assert [np.unique(image).tolist() for image in faces.images] == [[0], [0], [7], [0], [9]]


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (31, 400)])
def test_an_image_of_a_pixel_is_counted_and_the_others_stay(tmp_path, draw, size):
    source = tmp_path / "source"
    for number in range(4):
        draw(source / f"{number}.png", 40, 40, seed=number)
    Image.new("RGB", size).save(source / "thin.png")
    with pytest.raises(HoldfastError, match=r"thin.png \(wrong_size: .* expected at least 32x32"):
        run(source, tmp_path)
    assert len(run(source, tmp_path, problem_limit=0.5)) == 4


def test_sub_folders_make_splits(tmp_path, draw):
    source = tmp_path / "source"
    for name in ("train/x/1.png", "val/2.png", "test/3.png", "other/4.png", "5.png", "x/train/6.png"):
        draw(source / name, 40, 40)
    index = run(source, tmp_path).index.set_index("file")["split"].to_dict()
    assert index == {
        "train/x/1.png": "train",
        "val/2.png": "val",
        "test/3.png": "test",
        "other/4.png": "test",
        "5.png": "test",
        "x/train/6.png": "test",
    }


def test_small_and_damaged_images_are_counted(tmp_path, draw):
    source = tmp_path / "source"
    for number in range(8):
        draw(source / f"{number}.png", 40, 40, seed=number)
    draw(source / "small.png", 40, 31)
    (source / "empty.jpg").write_bytes(b"")
    with pytest.raises(HoldfastError, match=r"empty.jpg \(damaged: empty file\)"):
        run(source, tmp_path)
    assert not (tmp_path / "out" / "set").exists()
    assert len(run(source, tmp_path, problem_limit=0.2)) == 8
    problems = read_report(tmp_path / "out" / "set")["problems"]
    assert problems == {"damaged": 1, "missing_attributes": 0, "wrong_size": 1}


def test_even_a_limit_of_one_needs_one_image(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(HoldfastError, match="no image is left"):
        run(tmp_path / "source", tmp_path, problem_limit=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_crop_and_a_box(tmp_path, draw):
    draw(tmp_path / "source" / "a.png", 60, 80)
    faces = run(tmp_path / "source", tmp_path, crop=40, face_box=[20, 30, 40, 70])
    assert np.allclose(faces.boxes([0]), [[4, 4, 12, 16]])  # (x - 10, y - 20) * 16/40, clipped
    draw(tmp_path / "source" / "b.png", 39, 80)
    with pytest.raises(HoldfastError, match="expected at least 40x40"):
        run(tmp_path / "source", tmp_path, crop=40)


def test_one_box_for_images_of_several_sizes_is_refused(tmp_path, draw):
    draw(tmp_path / "source" / "a.png", 50, 40)
    draw(tmp_path / "source" / "b.png", 100, 80)
    with pytest.raises(HoldfastError, match="differ in size") as caught:
        run(tmp_path / "source", tmp_path, face_box=[10, 5, 30, 35])
    assert caught.value.found == "b.png 100x80, a.png 50x40"
    assert list((tmp_path / "out").iterdir()) == []
    assert len(run(tmp_path / "source", tmp_path)) == 2


@pytest.mark.parametrize("source", [None, "nowhere", "file", "empty"])
def test_no_source(tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(HoldfastError) as caught:
        prepare(tmp_path / "out", {"source": source and str(tmp_path / source)}, 16, 0)
    assert "folder" in caught.value.what and "`source`" in caught.value.repair


@pytest.mark.parametrize("image_size", [0, 16.0, None])
def test_an_unusable_image_size(tmp_path, draw, image_size):
    draw(tmp_path / "source" / "a.png", 40, 40)
    with pytest.raises(HoldfastError, match="image size"):
        run(tmp_path / "source", tmp_path, size=image_size)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MB, where the system lets us make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(tmp_path, draw, tiny_disk):
    for number in range(30):
        draw(tmp_path / "source" / f"{number}.png", 32, 32, seed=number)
    with pytest.raises(HoldfastError) as caught:
        prepare(tiny_disk / "set", {"source": str(tmp_path / "source")}, 128, 0)  # 1.4 MB
    assert str(tiny_disk / "set") in caught.value.what and "no space" in caught.value.found
    assert list(tiny_disk.iterdir()) == []
    prepare(tiny_disk / "set", {"source": str(tmp_path / "source"), "limits": {"test": 10}}, 128, 0)
    assert [path.name for path in tiny_disk.iterdir()] == ["set"]


@pytest.mark.parametrize("closed", ["target", "source"])
def test_no_permission(draw, closed):
    """Permissions do not bind root: as root, the work is done in a process of user 65534."""
    code = """
import os, sys
from PIL import Image
from holdfast.data.folder import prepare
from holdfast.errors import HoldfastError
Image.init()
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    prepare(sys.argv[1], {"source": sys.argv[2]}, 16, 0)
except HoldfastError as error:
    print(error)
    sys.exit(3)
"""
    with tempfile.TemporaryDirectory() as base:
        base = Path(base)
        base.chmod(0o755)
        source, target = base / "source", base / "target"
        draw(source / "a.png", 40, 40)
        target.mkdir()
        # Without root this user owns both folders, so the mode is what closes them.
        target.chmod(0o555 if closed == "target" else 0o777)
        source.chmod(0o700 if os.geteuid() == 0 and closed == "source" else 0o755)
        if closed == "source" and os.geteuid() != 0:
            source.chmod(0)
        environment = os.environ | {"PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
        command = [sys.executable, "-c", code, str(target / "set"), str(source)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        source.chmod(0o755)
        target.chmod(0o755)
        assert done.returncode == 3, done.stderr
        assert "permission denied" in done.stdout
        assert str(source if closed == "source" else target / "set") in done.stdout
        assert list(target.iterdir()) == []
