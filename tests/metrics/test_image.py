import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from holdfast.errors import HoldfastError
from holdfast.metrics import METRICS
from holdfast.metrics.image import l2_mask, psnr, ssim, ssim_released
from holdfast.metrics.metric import PAIRS, Metric, Stream, mean_of, of_images, result

PER_IMAGE = ("l2_mask", "sr_mask", "psnr", "ssim", "ssim_released")


def draw(seed, n=4, size=16, scale=1.0):
    return (torch.rand((n, 3, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1) * scale


def triple(seed, n=4, size=16):
    """x, G(x), G(x') of which G changes about a half of the pixels strongly."""
    x = draw(seed, n, size, 0.4)
    y = (x + draw(seed + 1, n, size, 0.5)).clamp(-1, 1)
    return x, y, (y + draw(seed + 2, n, size, 0.4)).clamp(-1, 1)


def arguments(name, seed, n=4, size=16):
    x, y, y_protected = triple(seed, n, size)
    return (x, y, y_protected) if METRICS[name].inputs == "outputs" else (y, y_protected)


def to_unit(images):
    return (images.numpy().astype(np.float64).transpose(0, 2, 3, 1) + 1) / 2


# l2_mask and sr_mask


def l2_mask_plainly(x, y, y_protected):
    """The protocol's sentence, pixel by pixel."""
    values = []
    for xi, yi, pi in zip(x.numpy(), y.numpy(), y_protected.numpy(), strict=True):
        total, count = 0.0, 0
        for row in range(xi.shape[1]):
            for column in range(xi.shape[2]):
                before, edit, protected = (image[:, row, column].astype(float) for image in (xi, yi, pi))
                if np.abs(edit - before).sum() > 0.5:
                    total += ((edit - protected) ** 2).sum()
                    count += 1
        values.append(total / (3 * count) if count else math.nan)
    return np.array(values)


@pytest.mark.parametrize("seed", range(3))
def test_l2_mask_equals_a_transcription(seed):
    x, y, y_protected = triple(seed)
    y[1] = x[1]
    expected = l2_mask_plainly(x, y, y_protected)
    assert np.isnan(expected).tolist() == [False, True, False, False]
    np.testing.assert_allclose(l2_mask(x, y, y_protected), expected, rtol=1e-12)


def test_l2_mask_counts_only_the_pixels_that_the_edit_changes():
    x = torch.zeros(1, 3, 8, 8)
    y = x.clone()
    y[:, :, 2:4, 2:4] = 0.5
    y_protected = y.clone()
    y_protected[:, :, 2:4, 2:4] += 0.25  # inside the mask
    y_protected[:, :, 6:, 6:] = 1.0  # outside
    assert l2_mask(x, y, y_protected) == pytest.approx(0.0625, abs=1e-12)


def test_l2_mask_threshold_is_on_the_sum_over_channels_and_strict():
    x = torch.zeros(3, 3, 4, 4)
    y = x.clone()
    y[0, 0] = 0.5  # exactly 0.5: not in the mask
    y[1, 0], y[1, 1], y[1, 2] = 0.25, -0.25, 0.125  # 0.625 in sum, 0.125 without the magnitudes
    y[2, 0] = 0.75
    values = l2_mask(x, y, x)
    assert np.isnan(values[0])
    assert values[1] == pytest.approx((0.0625 * 2 + 0.015625) / 3)
    assert values[2] == pytest.approx(0.5625 / 3)


def test_empty_masks_are_left_out_and_counted():
    x, y, y_protected = triple(5)
    y[0] = x[0]
    y[3] = x[3]
    whole = METRICS["l2_mask"].compute(x, y, y_protected)
    assert whole["n"] == 2 and whole["extra"] == {"n_empty": 2}
    assert whole["value"] == pytest.approx(l2_mask_plainly(x, y, y_protected)[1:3].mean())


def test_all_masks_empty_gives_a_reason_and_not_a_number():
    x = draw(0)
    empty = METRICS["l2_mask"].compute(x, x, -x)
    assert empty["value"] is None and empty["n"] == 0 and empty["extra"] == {"n_empty": 4}
    assert "mask" in empty["why"]


def test_sr_mask_counts_an_empty_mask_as_failure_and_is_strict_at_the_threshold():
    rate = METRICS["sr_mask"].reduce(np.array([0.2, np.nan, 0.05, 0.0500001]))
    assert rate["value"] == 0.5 and rate["n"] == 4 and rate["extra"] == {"n_empty": 1}
    assert rate["std"] == pytest.approx(np.std([1, 0, 0, 1], ddof=1))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0, 1))
def test_ranges(seed, scale):
    x, y, y_protected = triple(seed, n=2, size=12)
    y_protected = y + scale * (y_protected - y)
    values = l2_mask(x, y, y_protected)
    assert (values >= 0).all() and (values <= 4).all()
    assert (np.abs(ssim(y, y_protected)) <= 1 + 1e-12).all()
    assert 0 <= METRICS["sr_mask"].reduce(values)["value"] <= 1


# psnr, ssim


def test_psnr_of_a_known_shift():
    a = draw(1, scale=0.5)
    # 0.05 in [-1,1] is 0.025 in [0,1]; the figure of a saturated perturbation.
    np.testing.assert_allclose(psnr(a, a + 0.05), 20 * math.log10(40), atol=1e-5)
    assert METRICS["psnr"].compute(a, a + 0.05)["value"] == pytest.approx(32.04, abs=0.005)


def test_identical_pairs():
    a = draw(2)
    assert np.isposinf(psnr(a, a)).all()
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-12)
    np.testing.assert_allclose(ssim_released(a, a), 1, atol=1e-9)
    b = a.clone()
    b[0] = -b[0]
    some = METRICS["psnr"].compute(a, b)
    assert some["n"] == 1 and some["extra"] == {"n_identical": 3} and math.isfinite(some["value"])
    none = METRICS["psnr"].compute(a, a)
    assert none["value"] is None and "identical" in none["why"]


@pytest.mark.parametrize("size", [11, 12, 33])
def test_ssim_equals_scikit_image_channel_by_channel(size):
    a, b = draw(3, size=size), draw(4, size=size)
    for value, p, q in zip(ssim(a, b), to_unit(a), to_unit(b), strict=True):
        channels = [
            structural_similarity(
                p[..., c],
                q[..., c],
                win_size=11,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1.0,
            )
            for c in range(3)
        ]
        assert value == pytest.approx(np.mean(channels), abs=1e-12)


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), 0.5)
    c1 = 0.01**2
    assert ssim(a, b)[0] == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1), abs=1e-9)


def test_symmetry():
    a, b = draw(6), draw(7, scale=0.5)
    np.testing.assert_allclose(psnr(a, b), psnr(b, a), rtol=1e-12)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), rtol=1e-12)
    # The released rule takes its data range from the first image alone, so order matters ...
    assert np.abs(ssim_released(a, b) - ssim_released(b, a)).max() > 1e-6
    # ... unless both have one range.
    for images in (a, b):
        images[:, :, 0, 0], images[:, :, 0, 1] = -1, 1
    np.testing.assert_allclose(ssim_released(a, b), ssim_released(b, a), rtol=1e-9)


# ssim_released


def ssim_of_volumes(a, b, data_range):
    """Wang et al. in 3x3x3 boxes with sample covariance, from box means."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def box(volume):
        return uniform_filter(volume, 3)

    mean_a, mean_b = box(a), box(b)
    sample = 27 / 26
    var_a = sample * (box(a * a) - mean_a**2)
    var_b = sample * (box(b * b) - mean_b**2)
    both = sample * (box(a * b) - mean_a * mean_b)
    values = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    values /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return values[1:-1, 1:-1, 1:-1].mean()


def test_ssim_released_equals_a_transcription_of_the_oddity():
    a, b = draw(8, scale=0.7), draw(9)
    expected = [ssim_of_volumes(p, q, p.max() - p.min()) for p, q in zip(to_unit(a), to_unit(b), strict=True)]
    np.testing.assert_allclose(ssim_released(a, b), expected, rtol=1e-9)


def test_ssim_released_equals_the_call_whose_channel_argument_is_missing():
    a, b = draw(10), draw(11)
    for value, p, q in zip(ssim_released(a, b), to_unit(a), to_unit(b), strict=True):
        assert value == pytest.approx(structural_similarity(p, q, win_size=3, data_range=p.max() - p.min()))
    # Its default window of 7 does not fit three channels: the released code cannot have used it.
    with pytest.raises(ValueError, match="win_size"):
        structural_similarity(p, q, data_range=1.0)


def test_ssim_released_is_another_measure_than_ssim():
    a = draw(12, size=32)
    b = (a + draw(13, size=32, scale=0.3)).clamp(-1, 1)
    assert np.abs(ssim(a, b) - ssim_released(a, b)).max() > 1e-3


def test_a_constant_first_image_has_no_released_ssim():
    a = draw(14)
    a[2] = 0.25
    flat = METRICS["ssim_released"].compute(a, draw(15))
    assert flat["n"] == 3 and flat["extra"] == {"n_flat": 1}


# all of them


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize("batch", [1, 3, 7])
def test_streaming_equals_the_whole_set(name, batch):
    metric = METRICS[name]
    images = arguments(name, 20, n=7)
    stream = Stream(metric)
    for start in range(0, 7, batch):
        stream.update(*(part[start : start + batch] for part in images))
    np.testing.assert_array_equal(stream.values(), metric.per_image(*images))
    assert stream.result() == metric.compute(*images)


@pytest.mark.parametrize("name", PER_IMAGE)
def test_no_images_give_a_reason(name):
    nothing = METRICS[name].compute(*arguments(name, 0, n=0))
    assert nothing["value"] is None and nothing["n"] == 0 and nothing["why"] == "no images were given"
    assert Stream(METRICS[name]).result() == nothing


@pytest.mark.parametrize("name", PER_IMAGE)
def test_inputs_are_left_as_they_were_and_gradients_do_not_matter(name):
    images = arguments(name, 30)
    copies = [image.clone() for image in images]
    expected = METRICS[name].compute(*images)
    assert METRICS[name].compute(*(image.clone().requires_grad_() for image in images)) == expected
    assert all(torch.equal(image, copy) for image, copy in zip(images, copies, strict=True))


@pytest.mark.parametrize("name", PER_IMAGE)
@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda images: images * 127.5, "leaves the range"),
        (lambda images: images.index_fill(3, torch.tensor([0]), math.nan), "leaves the range"),
        (lambda images: images[:, :1], "RGB"),
        (lambda images: images[0], "RGB"),
        (lambda images: images.numpy(), "RGB"),
        (lambda images: (images * 100).to(torch.uint8), "float"),
        (lambda images: images[:, :, :12], "differ in shape"),
    ],
)
def test_wrong_images_are_refused(name, spoil, words):
    *first, last = arguments(name, 40)
    with pytest.raises(HoldfastError, match=words):
        METRICS[name].compute(*first, spoil(last))


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(HoldfastError, match="smaller than the window"):
        ssim(draw(0, size=10), draw(1, size=10))
    with pytest.raises(HoldfastError, match="smaller than the window"):
        ssim_released(draw(0, size=2), draw(1, size=2))


def test_directions_are_the_defenders():
    assert METRICS["l2_mask"].better() == METRICS["sr_mask"].better() == "up"
    for name in ("psnr", "ssim", "ssim_released"):
        assert METRICS[name].better("outputs") == "down"
        assert METRICS[name].better("protected") == "up"
        assert METRICS[name].better() is None


# the contract in metric.py


def test_every_registered_metric_is_complete():
    for name, metric in METRICS.items():
        assert metric.name == name and metric.definition and isinstance(metric.unit, str)
        undirected = name == "false_positives"  # of detections, so of no pair of images either
        assert bool(metric.better() or metric.better_by_pair) != undirected
        assert set(metric.better_by_pair) in (set(), set(PAIRS))


def test_a_metric_with_an_unknown_kind_of_input_or_direction_is_refused():
    fields = {"name": "m", "definition": "d", "unit": "", "compute": len}
    with pytest.raises(HoldfastError, match="inputs"):
        Metric(better_defence="up", inputs="pixels", **fields)
    with pytest.raises(HoldfastError, match="better_defence"):
        Metric(better_defence="higher", inputs="images", **fields)
    with pytest.raises(HoldfastError, match="better_by_pair"):
        Metric(better_defence=None, inputs="images", better_by_pair={"output": "up"}, **fields)
    with pytest.raises(HoldfastError, match="only one of"):
        Metric(better_defence="up", inputs="images", per_image=len, **fields)
    with pytest.raises(HoldfastError, match="batch by batch"):
        Stream(Metric(better_defence="up", inputs="images", **fields))


def test_a_missing_value_must_say_why():
    for value in (None, math.nan, math.inf):
        with pytest.raises(HoldfastError, match="does not say why"):
            result(value, 3)
        assert result(value, 3, why="reason") == {"value": None, "n": 3, "why": "reason"}


def test_a_metric_without_a_name_for_missing_images_refuses_them():
    metric = of_images(
        name="m",
        definition="d",
        unit="",
        better_defence="up",
        inputs="images",
        per_image=lambda a, b: np.array([1.0, math.nan]),
        reduce=mean_of,
    )
    with pytest.raises(HoldfastError, match="1 of 2 images"):
        metric.compute(None, None)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_mean_of_is_the_mean_with_its_sample_deviation(values):
    answer = mean_of(values)
    assert answer["value"] == pytest.approx(math.fsum(values) / len(values), abs=1e-9)
    if len(values) > 1:
        assert answer["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    else:
        assert "std" not in answer
