"""The attacker's crops: windows that lie inside the image, hold the face, and are cut to the pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.attacker.harvest import crop, square_window, windows
from holdfast.seeds import numpy_generator

SIZE = 64
sizes = st.integers(8, 300)
margins = st.floats(0, 2)


@st.composite
def boxes(draw, within=False):
    """(size, box); a detector's boxes may reach beyond the image."""
    size = draw(sizes)
    low, high = (0, 1) if within else (-0.5, 1.5)
    x1, x2, y1, y2 = (size * draw(st.floats(low, high, width=32)) for _ in range(4))
    return size, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))


@given(boxes(), margins)
def test_the_window_is_a_square_inside_the_image(given_box, margin):
    size, box = given_box
    left, top, side = square_window(box, margin, size)
    assert 1 <= side <= size
    assert left >= 0 and top >= 0
    assert left + side <= size + 1e-9 and top + side <= size + 1e-9
    wanted = max(box[2] - box[0], box[3] - box[1], 1.0) * (1 + 2 * margin)
    assert side == pytest.approx(min(wanted, size))


@given(boxes(within=True), margins)
def test_the_window_holds_the_box(given_box, margin):
    size, (x1, y1, x2, y2) = given_box
    left, top, side = square_window((x1, y1, x2, y2), margin, size)
    slack = 1e-6 * size
    assert left <= x1 + slack and top <= y1 + slack
    assert left + side >= x2 - slack and top + side >= y2 - slack


@given(boxes(), margins)
def test_the_window_holds_what_of_the_box_is_in_the_image(given_box, margin):
    size, (x1, y1, x2, y2) = given_box
    if max(x2 - x1, y2 - y1) > size or min(x2, y2) < 0 or max(x1, y1) > size:
        return
    left, top, side = square_window((x1, y1, x2, y2), margin, size)
    slack = 1e-6 * size
    assert left <= max(x1, 0) + slack and left + side >= min(x2, size) - slack
    assert top <= max(y1, 0) + slack and top + side >= min(y2, size) - slack


@given(st.data())
def test_away_from_the_edges_it_is_centred(data):
    size, margin = data.draw(sizes), data.draw(margins)
    width, height = (data.draw(st.floats(1, size / (2 * (1 + 2 * margin)) + 1)) for _ in range(2))
    side = max(width, height) * (1 + 2 * margin)
    if side > size:
        return
    x, y = (data.draw(st.floats(side / 2, size - side / 2)) for _ in range(2))
    window = square_window((x - width / 2, y - height / 2, x + width / 2, y + height / 2), margin, size)
    assert window == pytest.approx((x - side / 2, y - side / 2, side), abs=1e-6)


def test_windows_worked_out_by_hand():
    assert square_window((20, 20, 40, 40), 0, SIZE) == (20, 20, 20)
    assert square_window((20, 20, 40, 40), 0.25, SIZE) == (15, 15, 30)
    assert square_window((20, 25, 40, 35), 0.0, SIZE) == (20, 20, 20)  # square around its centre
    assert square_window((0, 0, 20, 20), 0.25, SIZE) == (0, 0, 30)  # moved inside
    assert square_window((50, 30, 64, 44), 0.5, SIZE) == (36, 23, 28)
    assert square_window((0, 0, 60, 64), 0.3, SIZE) == (0, 0, SIZE)  # shrunk to the image
    assert square_window((30, 30, 30, 30), 0, SIZE) == (29.5, 29.5, 1)  # an empty box


def noise(name, count=1, size=SIZE):
    return numpy_generator("harvest", name).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_a_window_of_whole_pixels_is_cut_exactly():
    (image,) = noise("cut")
    assert (crop(image, (10.0, 20.0, 30.0), 30) == image[20:50, 10:40]).all()
    assert (crop(image, (0.0, 0.0, float(SIZE)), SIZE) == image).all()


def test_a_window_is_enlarged_bilinearly():
    # A ramp stays a ramp: pixel k of the crop is the source at left + (k + 1/2) side / size - 1/2.
    ramp = np.broadcast_to((np.arange(SIZE) * 3).astype(np.uint8)[None, :, None], (SIZE, SIZE, 3)).copy()
    found = crop(ramp, (16.0, 8.0, 32.0), SIZE)
    expected = 3 * (16 + (np.arange(SIZE) + 0.5) / 2 - 0.5)
    inner = slice(2, -2)  # at its border the window has no neighbours to average with
    assert found.shape == (SIZE, SIZE, 3) and found.dtype == np.uint8
    assert np.abs(found[:, inner].astype(float) - expected[inner, None]).max() <= 1
    assert (found == found[0]).all()


@given(boxes(), margins)
def test_any_window_can_be_cut(given_box, margin):
    size, box = given_box
    image = np.full((size, size, 3), 77, np.uint8)
    found = crop(image, square_window(box, margin, size), 16)
    assert found.shape == (16, 16, 3) and (found == 77).all()


def detections(*images):
    return [
        (
            np.array([box for box, _ in found], np.float32).reshape(-1, 4),
            np.array([s for _, s in found], float),
        )
        for found in images
    ]


FOUND = detections(
    [((10, 10, 30, 30), 0.6), ((20, 20, 40, 40), 0.9), ((0, 0, 64, 64), 0.7)],  # the surest, not the largest
    [],
    [((10, 10, 30, 30), 0.5)],  # at the threshold, not above it
    [((10, 10, 30, 30), 0.51)],
)


OPTIONS = {"threshold": 0.5, "margin": 0.25, "no_detection": "drop"}


def test_the_surest_box_above_the_threshold_is_taken():
    assert windows(FOUND, SIZE, **OPTIONS) == [(15, 15, 30), None, None, (5, 5, 30)]


def test_images_without_a_face_may_be_taken_whole():
    whole = windows(FOUND, SIZE, **OPTIONS | {"no_detection": "whole"})
    assert whole == [(15, 15, 30), (0, 0, SIZE), (0, 0, SIZE), (5, 5, 30)]


def test_margin_and_threshold_are_heeded():
    close = OPTIONS | {"margin": 0.0}
    assert windows(FOUND, SIZE, **close)[0] == (20, 20, 20)
    counts = [
        sum(window is not None for window in windows(FOUND, SIZE, **close | {"threshold": threshold}))
        for threshold in (0.0, 0.5, 0.6, 0.9)
    ]
    assert counts == [3, 2, 1, 0]
