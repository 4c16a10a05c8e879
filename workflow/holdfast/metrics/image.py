"""Measures of images: l2_mask, sr_mask, psnr, ssim, ssim_released.

All take float (N,3,H,W) in [-1,1] on any device and give float64 NumPy (N,), one number per image;
the arithmetic is float64 on the CPU, so that the batch size and the device change nothing.

Sources: L2_mask and SR_mask: CMUA (AAAI 2022), "Evaluation metrics", used by the TSDF paper's Tables I
and III; PSNR and SSIM: Wang et al. 2004, as scikit-image computes them; ssim_released: what the code
released with the TSDF paper computes, and hence the rule behind the SSIM of its tables.

scikit-image is imported where it is used: with it comes SciPy, which every job would wait for at its start.
"""

import numpy as np
import torch

from holdfast.errors import HoldfastError
from holdfast.metrics.metric import mean_of, of_images, result

MASK_THRESHOLD = 0.5  # on the sum over channels of |G(x) - x|, in [-1,1]
SUCCESS_THRESHOLD = 0.05  # on l2_mask
SSIM_SIGMA, SSIM_WINDOW = 1.5, 11  # skimage truncates the Gaussian at 3.5 sigma: radius 5
RELEASED_WINDOW = 3
_ROUNDING = 1e-3  # a float32 tanh or resize may end this far outside [-1,1], not further


def _float64(images, what):
    """float64 CPU (N,3,H,W), checked for shape and range."""
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
        raise HoldfastError(
            f"{what} is not a batch of RGB images",
            found=f"shape {tuple(getattr(images, 'shape', ()))} of {type(images).__name__}",
            expected="a torch tensor (N, 3, H, W)",
        )
    if not images.is_floating_point():
        raise HoldfastError(
            f"{what} is not a float tensor",
            found=str(images.dtype),
            expected="float32 in [-1, 1]",
            repair="pass 8-bit pixels through holdfast.data.pixels.to_float",
        )
    images = images.detach().to("cpu", torch.float64)
    if images.numel():
        largest = images.abs().max().item()
        if not largest <= 1 + _ROUNDING:  # also true for NaN
            raise HoldfastError(
                f"{what} leaves the range of the models' images",
                found=f"largest magnitude {largest}",
                expected="[-1, 1]",
                repair="clip the images first, as a stored file would be",
            )
    return images


def _same(names, *batches):
    batches = [_float64(images, name) for name, images in zip(names, batches, strict=True)]
    if len({images.shape for images in batches}) > 1:
        raise HoldfastError(
            f"{', '.join(names)} differ in shape",
            found=", ".join(str(tuple(images.shape)) for images in batches),
            expected="one shape",
        )
    return batches


def _unit_range(images):
    """float64 torch (N,3,H,W) in [-1,1] to NumPy (N,H,W,3) in [0,1]."""
    return ((images + 1) / 2).permute(0, 2, 3, 1).numpy()


def l2_mask(x, y, y_protected):
    """Mean squared change of the edit where the edit changes the image.

    With m = 1[sum over channels of |y - x| > 0.5] per pixel: sum of m (y - y_protected)^2 over pixels
    and channels, divided by 3 sum of m.

    Args:
        x: clean inputs, float (N,3,H,W) in [-1,1].
        y: their edits G(x).
        y_protected: the edits of the protected inputs, G(x').

    Returns:
        float64 (N,), in squared [-1,1] units (0 to 4); NaN where the mask is empty.

    Raises:
        HoldfastError: a wrong shape, dtype or range.
    """
    x, y, y_protected = _same(("x", "y", "y_protected"), x, y, y_protected)
    mask = ((y - x).abs().sum(1) > MASK_THRESHOLD).to(torch.float64)
    changed = (mask * (y - y_protected).square().sum(1)).sum((1, 2))
    pixels = mask.sum((1, 2))
    # 0/0 is NaN, which is what an image without a mask has.
    return (changed / (3 * pixels)).numpy()


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of each pair, on [0,1]: 10 log10(1 / MSE).

    Args:
        a, b: float (N,3,H,W) in [-1,1].

    Returns:
        float64 (N,); infinite where a and b are identical.

    Raises:
        HoldfastError: a wrong shape, dtype or range.
    """
    from skimage.metrics import peak_signal_noise_ratio

    a, b = (_unit_range(images) for images in _same(("a", "b"), a, b))
    with np.errstate(divide="ignore"):
        return np.array([peak_signal_noise_ratio(p, q, data_range=1) for p, q in zip(a, b, strict=True)])


def ssim(a, b):
    """Structural similarity of each pair, on [0,1], as Wang et al. 2004: Gaussian windows of sigma 1.5
    (11x11), population covariance, data range 1, mean over the three channels.

    Args:
        a, b: float (N,3,H,W) in [-1,1], H and W at least 11.

    Returns:
        float64 (N,), in [-1, 1]; 1 where a and b are identical.

    Raises:
        HoldfastError: a wrong shape, dtype or range, or images smaller than the window.
    """
    from skimage.metrics import structural_similarity

    a, b = (_unit_range(images) for images in _same(("a", "b"), a, b))
    _at_least(SSIM_WINDOW, a)
    settings = {
        "gaussian_weights": True,
        "sigma": SSIM_SIGMA,
        "use_sample_covariance": False,
        "data_range": 1,
        "channel_axis": 2,
    }
    return np.array([structural_similarity(p, q, **settings) for p, q in zip(a, b, strict=True)])


def ssim_released(a, b):
    """Structural similarity as the released code has it: each image is taken for a grey volume HxWx3.

    The released code names the channel axis with an argument that scikit-image ignores. So: uniform
    windows of 3x3x3 (win_size=3, stated because skimage's own default of 7 does not fit a depth of 3,
    and would be an error), sample covariance (27/26), data range = max - min of the *first* image.
    skimage drops a border of one voxel, so only the windows centred on the green channel count, each
    of which holds all three channels. On [0,1]. Not symmetric, unless both images have one range.

    Args:
        a, b: float (N,3,H,W) in [-1,1], H and W at least 3; a is the first image.

    Returns:
        float64 (N,); NaN where the first image is one constant (its data range is 0).

    Raises:
        HoldfastError: a wrong shape, dtype or range, or images smaller than the window.
    """
    from skimage.metrics import structural_similarity

    a, b = (_unit_range(images) for images in _same(("a", "b"), a, b))
    _at_least(RELEASED_WINDOW, a)
    values = np.full(len(a), np.nan)
    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        data_range = p.max() - p.min()
        if data_range > 0:
            values[i] = structural_similarity(
                p, q, win_size=RELEASED_WINDOW, data_range=data_range, channel_axis=None
            )
    return values


def _at_least(window, images):
    height, width = images.shape[1:3]
    if min(height, width) < window:
        raise HoldfastError(
            "the images are smaller than the window of the similarity",
            found=f"{height}x{width}",
            expected=f"at least {window}x{window}",
        )


def _success_rate(values):
    """Fraction of l2_mask > 0.05. NaN > 0.05 is false: an empty mask is a failure of the protection."""
    values = np.asarray(values, dtype=np.float64)
    empty = int(np.isnan(values).sum())
    if not len(values):
        return result(None, 0, why="no images were given", n_empty=0)
    success = values > SUCCESS_THRESHOLD
    std = success.std(ddof=1) if len(values) > 1 else None
    return result(success.mean(), len(values), std=std, n_empty=empty)


_LIKENESS = {"outputs": "down", "protected": "up", "model": "down"}

REGISTER = {
    "l2_mask": of_images(
        name="l2_mask",
        definition="m = 1[sum_c |G(x)-x| > 0.5] per pixel, in [-1,1]; sum m (G(x)-G(x'))^2 / (3 sum m) "
        "per image, then the mean; n counts the images in the mean, n_empty those without a mask",
        unit="squared [-1,1] units",
        better_defence="up",
        inputs="outputs",
        per_image=l2_mask,
        reduce=lambda values: mean_of(
            values, left_out="n_empty", why="the edit leaves the mask of every image empty"
        ),
    ),
    "sr_mask": of_images(
        name="sr_mask",
        definition="fraction of images with l2_mask > 0.05; an empty mask counts as failure",
        unit="fraction",
        better_defence="up",
        inputs="outputs",
        per_image=l2_mask,
        reduce=_success_rate,
    ),
    "psnr": of_images(
        name="psnr",
        definition="10 log10(1/MSE) on [0,1] per pair of images, then the mean; identical pairs "
        "(infinite) are left out and counted in n_identical",
        unit="dB",
        better_defence=None,
        better_by_pair=_LIKENESS,
        inputs="images",
        per_image=psnr,
        reduce=lambda values: mean_of(
            values, left_out="n_identical", why="every pair is identical: the ratio is infinite"
        ),
    ),
    "ssim": of_images(
        name="ssim",
        definition="SSIM of Wang et al. 2004 on [0,1] per pair of images: Gaussian windows, sigma 1.5, "
        "11x11, population covariance, mean over channels, data range 1; then the mean",
        unit="",
        better_defence=None,
        better_by_pair=_LIKENESS,
        inputs="images",
        per_image=ssim,
        reduce=mean_of,
    ),
    "ssim_released": of_images(
        name="ssim_released",
        definition="SSIM of the released code on [0,1] per pair of images: HxWx3 taken as a volume, "
        "uniform 3x3x3 windows, sample covariance, data range = max - min of the first image; then the "
        "mean; pairs whose first image is constant are left out and counted in n_flat",
        unit="",
        better_defence=None,
        better_by_pair=_LIKENESS,
        inputs="images",
        per_image=ssim_released,
        reduce=lambda values: mean_of(
            values, left_out="n_flat", why="the first image of every pair is constant"
        ),
    ),
}
