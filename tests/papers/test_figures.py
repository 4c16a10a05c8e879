import numpy as np
import pandas as pd
import pytest
from PIL import Image

from holdfast.errors import HoldfastError
from holdfast.papers import figures


def faces(n=2, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def has(picture, colour, number=20):
    """Whether at least `number` pixels have about this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(picture - wanted).max(-1) < 12).sum() >= number


def draw_all(folder):
    x = faces()
    figures.figure_5(folder / "5.png", x, {"StarGAN": x, "AttGAN": x}, {"TSDF": {"StarGAN": x}})
    figures.figure_6(folder / "6.png", x, {"TSDF": x}, {"TSDF": "PSNR 33 dB"})
    boxes = [np.array([[4, 4, 20, 24]]), np.empty((0, 4))]
    figures.figure_7(folder / "7.png", x, {"TSDF": x}, {"S3FD": boxes}, {"TSDF": {"S3FD": boxes}})
    figures.sample_sheet(folder / "sheet.png", np.stack([x, x, x]), ["input", "Male"])
    log = pd.DataFrame({"step": range(40), "critic": np.linspace(3, 1, 40), "generator": 1.0})
    figures.loss_curves(folder / "loss.png", log)
    return sorted(folder.glob("*.png"))


def test_the_same_arrays_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, second = draw_all(tmp_path / "one"), draw_all(tmp_path / "two")
    assert len(first) == 5
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
        assert a.stat().st_size < figures.LIMIT
        assert b"matplotlib" not in a.read_bytes().lower()


def test_images_are_where_their_titles_say(tmp_path):
    plain = {
        name: np.full((1, 16, 16, 3), colour, np.uint8) for name, colour in (("x", 200), ("y", 90), ("z", 30))
    }
    figures.figure_5(
        tmp_path / "5.png", plain["x"], {"StarGAN": plain["y"]}, {"TSDF": {"StarGAN": plain["z"]}}
    )
    picture = read(tmp_path / "5.png")
    columns = [np.argwhere((picture == grey).all(-1))[:, 1].mean() for grey in (200, 90, 30)]
    assert columns == sorted(columns)
    assert columns[2] - columns[1] == pytest.approx(columns[1] - columns[0], abs=3)


def test_rows_of_figure_5_are_named_after_their_edits(tmp_path):
    x, named = faces(2), {"StarGAN": ["Blond_Hair", "Wearing_a_very_large_Hat"]}
    figures.figure_5(tmp_path / "5.png", x, {"StarGAN": x}, {})
    figures.figure_5(tmp_path / "named.png", x, {"StarGAN": x}, {}, named)
    plain, picture = read(tmp_path / "5.png"), read(tmp_path / "named.png")
    wider = picture.shape[1] - plain.shape[1]
    assert wider == pytest.approx(7 * (len("Wearing_a_very_large_Hat") - len("StarGAN")), abs=1)
    half = picture.shape[0] // 2
    # The second row has a name now, where nothing stood but the background.
    assert has(picture[half:, :wider], "#1a1a1a", 20) and not has(plain[half:, :30], "#1a1a1a", 1)


def test_the_difference_is_amplified_around_grey(tmp_path):
    x = np.full((1, 16, 16, 3), 100, np.uint8)
    figures.figure_6(tmp_path / "6.png", x, {"same": x, "TSDF": x + 6}, amplify=10)
    picture = read(tmp_path / "6.png")
    size = 144 * 144
    assert (picture == 128).all(-1).sum() == pytest.approx(size, rel=0.05)  # no difference
    assert (picture == 188).all(-1).sum() == pytest.approx(size, rel=0.05)  # 127.5 + 10 * 6


def test_boxes_have_the_papers_colours_and_empty_ones_are_fine(tmp_path):
    x = list(np.full((1, 64, 64, 3), 255, np.uint8))
    box, none = [np.array([[10.0, 10, 50, 54]])], [np.empty((0, 4))]
    before = {"S3FD": box, "DSFD": none, "Another": none}
    figures.figure_7(tmp_path / "7.png", x, {"TSDF": x}, before, {"TSDF": dict.fromkeys(before, none)})
    picture = read(tmp_path / "7.png")
    half = picture[:-30, : picture.shape[1] // 2], picture[:-30, picture.shape[1] // 2 :]
    assert has(half[0], figures.BOX_COLOURS["S3FD"], 200)
    assert not has(half[1], figures.BOX_COLOURS["S3FD"], 200)
    # The frame lies where the box is: 10/64 to 50/64 of the thumbnail's 144 pixels.
    wanted = np.array([0x1F, 0xA8, 0x2E])
    across = np.argwhere((np.abs(half[0] - wanted).max(-1) < 12).sum(0) > 60)[:, 0]
    assert across.max() - across.min() == pytest.approx(144 * 40 / 64, abs=4)


def test_large_noise_is_drawn_smaller_until_the_file_is_small(tmp_path):
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (6, 128, 128, 3), dtype=np.uint8) for _ in range(6)]
    protected = {defence: {"StarGAN": x} for defence, x in zip("ABCD", noise, strict=False)}
    figures.figure_5(tmp_path / "5.png", noise[4], {"StarGAN": noise[5]}, protected)
    assert figures.LIMIT < (tmp_path / "5.png").stat().st_size <= figures.LIMIT_OF_MANY
    figures.sample_sheet(tmp_path / "sheet.png", np.stack(noise), [f"edit {i}" for i in range(6)])
    assert figures.LIMIT / 2 < (tmp_path / "sheet.png").stat().st_size <= figures.LIMIT


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(HoldfastError, match="outputs of StarGAN"):
        figures.figure_5(tmp_path / "a.png", faces(2), {"StarGAN": faces(3)}, {})
    with pytest.raises(HoldfastError, match="TSDF"):
        figures.figure_6(tmp_path / "a.png", faces(2), {"TSDF": faces(2, 16)})
    with pytest.raises(HoldfastError, match="titles"):
        figures.sample_sheet(tmp_path / "a.png", faces(2)[None], ["one"])
    with pytest.raises(HoldfastError, match="no numbers"):
        figures.loss_curves(tmp_path / "a.png", pd.DataFrame({"step": [1, 2]}))
    assert not list(tmp_path.iterdir())
