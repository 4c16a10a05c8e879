import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from holdfast.data.preparing import (
    Tally,
    UnusableImage,
    Window,
    centre_window,
    checked,
    crop_and_resize,
    read_image,
    to_rgb,
    transform_box,
)
from holdfast.errors import HoldfastError

DEFAULTS = {"size": [178, 218], "crop": 178, "face_box": None, "problem_limit": 0.01, "limits": None}


@pytest.mark.parametrize(
    "size, crop, expected",
    [
        ((178, 218), 178, (0, 20, 178)),
        ((178, 218), 170, (4, 24, 170)),
        ((89, 109), 89, (0, 10, 89)),
        ((250, 250), 200, (25, 25, 200)),
        ((101, 60), None, (20, 0, 60)),
    ],
)
def test_the_window_in_pixels(size, crop, expected):
    assert centre_window(*size, crop) == expected


def test_the_box_in_closed_form():
    # CelebA at crop 170 to 256: x' = (x - 4) 256/170, y' = (y - 24) 256/170.
    found = transform_box((39, 58, 140, 180), centre_window(178, 218, 170), 256)
    assert found == pytest.approx((35 * 256 / 170, 34 * 256 / 170, 136 * 256 / 170, 156 * 256 / 170))


def test_a_box_is_clipped_to_the_crop_and_refused_outside():
    assert transform_box((0, 0, 178, 218), Window(4, 24, 170), 256) == (0, 0, 256, 256)
    with pytest.raises(ValueError, match="outside"):
        transform_box((0, 0, 178, 24), Window(4, 24, 170), 256)


@given(st.integers(40, 300), st.integers(40, 300), st.integers(1, 40), st.integers(16, 300), st.data())
def test_the_box_follows_the_pixels_back(width, height, crop, size, data):
    window = centre_window(width, height, crop)
    inner = [data.draw(st.integers(0, crop)) for _ in range(4)]
    x1, x2 = sorted(inner[:2])
    y1, y2 = sorted(inner[2:])
    if x1 == x2 or y1 == y2:
        return
    box = (window.left + x1, window.top + y1, window.left + x2, window.top + y2)
    back = np.array(transform_box(box, window, size)) * crop / size + np.array([window.left, window.top] * 2)
    assert np.allclose(back, box)


def test_the_box_marks_the_pixels_that_it_marked_before():
    """A white rectangle, cropped and resized, fills its transformed box and nothing else."""
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[60:180, 40:140] = 255
    window = centre_window(178, 218, 178)
    prepared = crop_and_resize(Image.fromarray(pixels), window, 89)
    x1, y1, x2, y2 = transform_box((40, 60, 140, 180), window, 89)
    assert (x1, y1, x2, y2) == (20, 20, 70, 80)
    ys, xs = np.nonzero(prepared[..., 0] > 127)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (20, 20, 70, 80)


def test_shrinking_does_not_alias_and_nothing_leaks_into_the_crop():
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = crop_and_resize(Image.fromarray(stripes), Window(0, 0, 128), 32).astype(int)
    assert abs(shrunk[:, 2:-2] - 127.5).max() < 3
    framed = np.full((60, 60, 3), 255, np.uint8)
    framed[10:50, 10:50] = 0
    assert crop_and_resize(Image.fromarray(framed), Window(10, 10, 40), 16).max() == 0


def test_a_crop_at_the_same_size_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    assert np.array_equal(crop_and_resize(Image.fromarray(pixels), Window(4, 8, 32), 32), pixels[8:40, 4:36])


def test_every_truncation_of_a_jpeg_is_seen(tmp_path, draw):
    whole = draw(tmp_path / "whole.jpg", 40, 48).read_bytes()
    cut = tmp_path / "cut.jpg"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(UnusableImage) as caught:
            read_image(cut)
        assert caught.value.problem == "damaged" and str(tmp_path) not in caught.value.detail


def test_a_truncated_image_is_refused_where_other_code_allowed_it(tmp_path, draw, monkeypatch):
    path = draw(tmp_path / "cut.jpg", 40, 48)
    path.write_bytes(path.read_bytes()[:-200])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(path) as image:
        image.load()
    with pytest.raises(UnusableImage, match="truncated"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "tiff", "gif"])
def test_other_formats_cut_in_half_are_damaged(tmp_path, draw, ending):
    path = draw(tmp_path / f"cut.{ending}", 64, 64)
    assert read_image(path).size == (64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnusableImage, match="damaged"):
        read_image(path)


def test_sizes_are_checked(tmp_path, draw):
    path = draw(tmp_path / "a.png", 40, 31)
    with pytest.raises(UnusableImage, match="wrong_size: 40x31 pixels, expected 40x32"):
        read_image(path, {"size": [40, 32]})
    with pytest.raises(UnusableImage, match="at least 32x32"):
        read_image(path, {"size": None, "crop": None})
    assert read_image(path, {"size": [40, 31]}).size == (40, 31)


def test_greys_alpha_palette_and_sixteen_bits(tmp_path):
    def saved(image):
        stream = io.BytesIO()
        image.save(stream, "PNG")
        (tmp_path / "x.png").write_bytes(stream.getvalue())
        return np.asarray(read_image(tmp_path / "x.png", {"size": image.size}))[0].tolist()

    assert saved(Image.fromarray(np.array([[0, 77]], np.uint8))) == [[0] * 3, [77] * 3]
    deep = Image.fromarray(np.array([[0, 257 * 77, 65535]], np.uint16))
    assert saved(deep) == [[0] * 3, [77] * 3, [255] * 3]
    clear = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert saved(Image.fromarray(clear)) == [[10, 20, 30], [255] * 3, [204] * 3]
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    assert saved(Image.fromarray(grey)) == [[10] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 100, 50, 0, 0, 9])
    palette.putpixel((1, 0), 1)
    assert saved(palette) == [[200, 100, 50], [0, 0, 9]]
    with pytest.raises(UnusableImage, match="unknown range"):
        to_rgb(Image.new("F", (2, 2)))
    with pytest.raises(UnusableImage, match="0 to 65535"):
        to_rgb(Image.new("I", (2, 2), 70000))


def test_a_photograph_is_turned_upright(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "a.png", upright=True))
    assert upright.shape == (60, 40, 3) and upright[:30].min() == 255 and upright[30:].max() == 0
    assert read_image(tmp_path / "a.png").size == (60, 40)


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", [178]),
        ("size", [178, "218"]),
        ("size", [16, 218]),
        ("crop", 0),
        ("crop", 178.5),
        ("crop", True),
        ("crop", 200),
        ("face_box", [1, 2, 3]),
        ("face_box", [50, 10, 40, 60]),
        ("face_box", [0, 0, 178, 219]),
        ("face_box", [10, 0, 20, 15]),  # above the crop
        ("problem_limit", 1.5),
        ("problem_limit", None),
        ("limits", {"training": 5}),
        ("limits", {"train": -1}),
        ("limits", 5),
    ],
)
def test_an_unusable_setting_is_named(key, value):
    with pytest.raises(HoldfastError) as caught:
        checked("celeba", DEFAULTS, {key: value})
    assert f"`{key}`" in caught.value.what and caught.value.repair


def test_the_settings_lie_over_the_defaults():
    found = checked("celeba", DEFAULTS, {"crop": 170, "limits": {"val": 3}})
    assert found["crop"] == 170 and found["size"] == [178, 218]
    assert found["limits"] == {"train": None, "val": 3, "test": None}
    assert DEFAULTS["crop"] == 178


def test_the_limit_is_a_fraction_of_the_examined_images():
    at_limit = Tally("x", 200, 0.01)
    for number in range(200):
        at_limit.examined += 1
        if number in (3, 150):
            at_limit.add(f"{number}.jpg", "damaged", "cut")
    assert at_limit.close()["problem_fraction"] == 0.01
    few_examined = Tally("x", 200, 0.01)
    few_examined.examined = 100
    few_examined.add("1.jpg", "damaged", "cut")
    few_examined.add("2.jpg", "wrong_size", "3x3")
    with pytest.raises(HoldfastError, match="damaged 1, wrong_size 1"):
        few_examined.close()


def test_hopeless_input_stops_early():
    tally = Tally("x", 9000, 0.01)
    with pytest.raises(HoldfastError, match="too many") as caught:
        for number in range(9000):
            tally.examined += 1
            tally.add(f"{number}.jpg", "wrong_size", "89x109 pixels, expected 178x218")
    assert tally.examined == 91
    assert "0.jpg (wrong_size: 89x109 pixels" in caught.value.found and "`size`" in caught.value.repair


def test_the_first_thousand_problems_are_listed():
    tally = Tally("x", 5000, 1)
    for number in range(1500):
        tally.examined += 1
        tally.add(f"{number}.jpg", "damaged", "cut")
    tally.examined += 1
    report = tally.close()
    assert report["problems"]["damaged"] == 1500 and len(report["files"]) == 1000
    assert report["files"][0] == {"file": "0.jpg", "problem": "damaged", "detail": "cut"}
