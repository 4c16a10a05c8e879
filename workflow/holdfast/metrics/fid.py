"""The Frechet distance between two sets of images, in the features of a named network.

Source: Heusel et al. 2017; computed by the ``pytorch-fid`` package, whose ``calculate_frechet_distance``
and Inception are used as they are. A set never has to be in memory: :class:`FeatureStatistics` keeps
its mean and its covariance. ``fid`` is the distance in the pool3 features of the FID Inception and
nothing else; in another network's features the metric is called ``fid[<network>]``.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.metrics.metric import Metric, result

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # the prefix that the file's name carries
INCEPTION = "inception"


@dataclass(frozen=True)
class FeatureNetwork:
    """A named map from images to features.

    Attributes:
        name: stands in the name of the metric; :data:`INCEPTION` for the FID Inception only.
        features: float (N,3,H,W) in [-1,1] -> (N,D), one row per image.
    """

    name: str
    features: Callable


class FeatureStatistics:
    """Mean and covariance of features that arrive batch by batch, in float64.

    Batches are merged by the update of Chan et al. 1979, which does not lose digits where the mean is
    large beside the deviation, as sums of squares would.
    """

    def __init__(self):
        self.n = 0
        self._mean = self._scatter = None

    def update(self, features):
        """Add features (N,D), torch or NumPy.

        Raises:
            HoldfastError: not two-dimensional, another D than before, or not finite.
        """
        if isinstance(features, torch.Tensor):
            features = features.detach().cpu().numpy()
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or (self._mean is not None and features.shape[1] != len(self._mean)):
            raise HoldfastError(
                "the features do not have the shape of the earlier ones",
                found=features.shape,
                expected="(N, D)" if self._mean is None else f"(N, {len(self._mean)})",
            )
        if not np.isfinite(features).all():
            raise HoldfastError(
                "the feature network gave a value that is not finite",
                expected="finite features",
                repair="look at the images and the network's weights",
            )
        if len(features):
            mean = features.mean(0)
            centred = features - mean
            self._merge(len(features), mean, centred.T @ centred)
        return self

    def merge(self, other):
        """Add what `other` has seen."""
        if other.n:
            if self.n and self.dimensions != other.dimensions:
                raise HoldfastError(
                    "statistics of features of different width cannot be merged",
                    found=f"{self.dimensions} and {other.dimensions} dimensions",
                )
            self._merge(other.n, other._mean, other._scatter)
        return self

    def _merge(self, n, mean, scatter):
        if not self.n:
            self.n, self._mean, self._scatter = n, mean.copy(), scatter.copy()
            return
        total = self.n + n
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + np.outer(shift, shift) * (self.n * n / total)
        self._mean = self._mean + shift * (n / total)
        self.n = total

    @property
    def dimensions(self):
        return 0 if self._mean is None else len(self._mean)

    @property
    def mean(self):
        """float64 (D,)."""
        self._need(1)
        return self._mean

    @property
    def covariance(self):
        """float64 (D,D), divided by n - 1 as ``numpy.cov`` and pytorch-fid do."""
        self._need(2)
        return self._scatter / (self.n - 1)

    def constant_features(self):
        """How many features have one value in all images, up to rounding."""
        return int((np.diagonal(self.covariance) <= (1e-10 * np.abs(self._mean)) ** 2).sum())

    def _need(self, n):
        if self.n < n:
            raise HoldfastError(
                "too few images for the statistics of their features", found=self.n, expected=f"at least {n}"
            )


def statistics_of(batches, network):
    """:class:`FeatureStatistics` of an iterable of image batches (N,3,H,W) in [-1,1]."""
    statistics = FeatureStatistics()
    with torch.inference_mode():
        for images in batches:
            statistics.update(network.features(images))
    return statistics


def _as_statistics(features):
    return features if isinstance(features, FeatureStatistics) else FeatureStatistics().update(features)


def frechet_distance(features_a, features_b):
    """||mu_a - mu_b||^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    Args:
        features_a, features_b: features (N,D), or :class:`FeatureStatistics`, of at least two images.

    Returns:
        float, at least 0 (rounding below 0 is cut off), in squared feature units. 2048 dimensions take
        about 40 s on two busy cores.

    Raises:
        HoldfastError: fewer than two images, different widths, or a matrix root that fails.
    """
    from holdfast import compat  # noqa: F401  (pytorch_fid imports torchvision)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from pytorch_fid.fid_score import calculate_frechet_distance
    from scipy.linalg import LinAlgWarning

    a, b = _as_statistics(features_a), _as_statistics(features_b)
    moments = (a.mean, a.covariance, b.mean, b.covariance)
    if a.dimensions != b.dimensions:
        raise HoldfastError(
            "the two sets of features differ in width", found=f"{a.dimensions} and {b.dimensions} dimensions"
        )
    # pytorch-fid prints and SciPy warns where a covariance is singular, which `_measure` puts on record;
    # and it calls SciPy with a deprecated argument.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for kind in (DeprecationWarning, LinAlgWarning, RuntimeWarning):
            warnings.simplefilter("ignore", kind)
        try:
            distance = float(calculate_frechet_distance(*moments))
        except ValueError as error:
            raise HoldfastError(
                "the root of the covariances' product is not real",
                found=str(error),
                repair="use more images than the network has features, or a narrower network",
            ) from error
    return max(distance, 0.0)


def _measure(a, b):
    """The result for two sets; what the number of images does to its trustworthiness stands in extra."""
    a, b = _as_statistics(a), _as_statistics(b)
    n = min(a.n, b.n)
    dimensions = max(a.dimensions, b.dimensions)
    # The covariance of n points has rank n - 1 at most, and less where a feature never changes.
    constant = 0 if n < 2 else max(part.constant_features() for part in (a, b))
    extra = {
        "n_first": a.n,
        "n_second": b.n,
        "features": dimensions,
        "constant_features": constant,
        "rank_deficient": n <= dimensions or constant > 0,
    }
    if n < 2:
        return result(None, n, why="a covariance needs at least two images in each set", **extra)
    try:
        return result(frechet_distance(a, b), n, **extra)
    except HoldfastError as error:
        if a.dimensions != b.dimensions:
            raise
        return result(None, n, why=f"{error.what}: {error.found}", **extra)


REGISTER = {
    "fid": Metric(
        name="fid",
        definition="Frechet distance between the sets {G(x)} and {G(x')}, pool3 features of the FID "
        "Inception (pytorch-fid)",
        unit="squared feature units",
        better_defence="up",
        compute=_measure,
        inputs="images",
    ),
    "fid_clean": Metric(
        name="fid_clean",
        definition="Frechet distance between the sets {x} and {G(x)} on clean inputs, pool3 features of "
        "the FID Inception (pytorch-fid)",
        unit="squared feature units",
        better_defence="up",
        compute=_measure,
        inputs="images",
    ),
}


def in_features_of(metric, network):
    """`metric` (``REGISTER["fid"]`` or ``["fid_clean"]``) under the name that `network` gives it.

    Returns:
        Metric: itself for the FID Inception, else ``fid[<network>]`` with the network in its definition.
    """
    if network.name == INCEPTION:
        return metric
    definition = metric.definition.rsplit(", pool3", 1)[0] + f", features of the network '{network.name}'"
    return replace(metric, name=f"{metric.name}[{network.name}]", definition=definition)


def inception_weights(path=None):
    """The file with the FID Inception's weights, or None where it is not at hand. Downloads nothing.

    Args:
        path: a file from the config; without it ``$TORCH_HOME/hub/checkpoints`` is looked at.
    """
    if path is None:
        home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
        path = Path(home).expanduser() / "hub" / "checkpoints" / INCEPTION_FILE
    path = Path(path)
    return path if path.is_file() else None


def inception(path=None, device="cpu", sha256=INCEPTION_SHA256):
    """The FID Inception as a :class:`FeatureNetwork` with 2048 features.

    Args:
        path: its weights; see :func:`inception_weights`.
        device: where it runs.
        sha256: hexadecimal, how the file's sha256 must begin.

    Raises:
        HoldfastError: the weights are not at hand, are other weights, or do not fit.
    """
    from holdfast import compat  # noqa: F401  (pytorch_fid imports torchvision)

    found = inception_weights(path)
    if found is None:
        raise HoldfastError(
            "the weights of the FID Inception are not at hand",
            found=f"no file {path or '$TORCH_HOME/hub/checkpoints/' + INCEPTION_FILE}",
            expected=f"{INCEPTION_FILE} of pytorch-fid's release 'fid_weights'",
            repair="place the file there, or name another feature network in the config",
        )
    digest = sha256_of(found)
    if not digest.startswith(sha256):
        raise HoldfastError(
            f"{found} does not hold the weights of the FID Inception",
            found=f"sha256 {digest}",
            expected=f"sha256 {sha256}...",
            repair="remove the file and get it anew",
        )
    try:
        weights = torch.load(found, map_location="cpu", weights_only=True)
        network = _build_inception(weights)
    except Exception as error:
        raise HoldfastError(
            f"{found} is not a state of the FID Inception",
            found=str(error).splitlines()[0],
            repair="remove the file and get it anew",
        ) from error
    network = network.to(device).eval()

    @torch.inference_mode()
    def features(images):
        return network((images.to(device).clamp(-1, 1) + 1) / 2)[0].flatten(1)

    return FeatureNetwork(INCEPTION, features)


def _build_inception(weights):
    """pytorch-fid's network with these weights.

    Its constructor fetches and unpickles a file by itself; for the moment of the construction it is
    handed ours, which was checked and read as plain tensors.
    """
    import pytorch_fid.inception as package

    fetch = package.load_state_dict_from_url
    package.load_state_dict_from_url = lambda *_, **__: weights
    try:
        return package.InceptionV3()
    finally:
        package.load_state_dict_from_url = fetch
