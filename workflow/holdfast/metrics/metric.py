"""What a metric is: a name, a definition, a unit, a direction, and the function that measures it.

Two ways to measure, one result:

- **over the whole set**: ``metric.compute(...)`` returns a result. Every metric has it, and metrics
  that cannot be split by image (``f1_released``, ``f1_truth``, ``ap``, ``fid``) have only this.
- **batch by batch**: a metric that is a statistic of one number per image also has
  ``per_image(...) -> float64 array (N,)``, NaN where the image has no value (an empty mask), and
  ``reduce(values) -> result``. Build it with :func:`of_images`; then ``compute`` is
  ``reduce(per_image(...))``, and :class:`Stream` collects a set that is too large for the memory.

What the functions take is told by ``inputs``:

- ``"outputs"``: ``(x, y, y_protected)``, clean inputs x, edits y = G(x) and edits of the protected
  inputs y_protected = G(x'), each float (N,3,H,W) in [-1,1];
- ``"images"``: ``(a, b)``, any two sets of images, each float (N,3,H,W) in [-1,1] (``fid``: their two
  :class:`holdfast.metrics.fid.FeatureStatistics`);
- ``"detections"``: what the functions of ``metrics/detection.py`` say, boxes (k,4) and scores (k,);
- ``"model"``: what the function says, for measures of a trained model.

A **result** is a dictionary: ``value`` (float, or None with ``why``, the reason in words), ``n`` (what
the value was computed from: images, unless the definition says otherwise), and optionally ``std``
(sample standard deviation of the per-image values, None below two) and ``extra`` (further numbers,
such as ``n_empty``). Make one with :func:`result`; ``records.make_record`` takes it as it is.

The direction is the defender's. A measure of likeness has no direction of its own: between G(x) and
G(x') the defender wants it low, between x and x' high. Such a metric has ``better_defence=None`` and
``better_by_pair``; ask ``metric.better(pair)``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from holdfast.errors import HoldfastError

INPUTS = ("outputs", "images", "detections", "model")
DIRECTIONS = ("up", "down", None)

#: The pairs of image sets that the tables compare, by name.
PAIRS = {
    "outputs": "G(x) and G(x'): what the protection does to the edit",
    "protected": "x and x': what the protection does to the photograph",
    "model": "x and G(x): the health of a deepfake model on clean inputs",
}


@dataclass(frozen=True)
class Metric:
    """A metric as the registry holds it; see the module's text for the contract of its functions.

    Attributes:
        name: the name in records and tables, unique.
        definition: one sentence that another implementer could work from.
        unit: "dB", "fraction", "squared [-1,1] units", "" for a pure number.
        better_defence: "up", "down", or None where it depends on what is compared, or neither is better.
        compute: whole set -> result.
        inputs: one of :data:`INPUTS`.
        per_image: a batch -> float64 array (N,), or None.
        reduce: float64 array (N,) -> result, or None.
        better_by_pair: direction by name of pair (a key of :data:`PAIRS`), if it depends on the pair.
    """

    name: str
    definition: str
    unit: str
    better_defence: str | None
    compute: Callable
    inputs: str
    per_image: Callable | None = None
    reduce: Callable | None = None
    better_by_pair: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for key, value, allowed in (
            ("inputs", self.inputs, INPUTS),
            ("better_defence", self.better_defence, DIRECTIONS),
        ):
            if value not in allowed:
                raise HoldfastError(
                    f"metric '{self.name}': {key} is not one of the known",
                    found=repr(value),
                    expected=", ".join(str(name) for name in allowed),
                )
        for pair, direction in self.better_by_pair.items():
            if pair not in PAIRS or direction not in ("up", "down"):
                raise HoldfastError(
                    f"metric '{self.name}': better_by_pair has an unknown pair or direction",
                    found=f"{pair}: {direction}",
                    expected=f"{', '.join(PAIRS)}: up or down",
                )
        if (self.per_image is None) != (self.reduce is None):
            raise HoldfastError(f"metric '{self.name}' has only one of per_image and reduce", expected="both")

    def better(self, pair=None):
        """The direction that is better for the defender, for `pair` where it depends on one."""
        return self.better_by_pair.get(pair, self.better_defence)


def of_images(*, name, definition, unit, better_defence, inputs, per_image, reduce, better_by_pair=None):
    """A :class:`Metric` whose value is a statistic of one number per image."""
    return Metric(
        name=name,
        definition=definition,
        unit=unit,
        better_defence=better_defence,
        compute=lambda *images: reduce(per_image(*images)),
        inputs=inputs,
        per_image=per_image,
        reduce=reduce,
        better_by_pair=better_by_pair or {},
    )


class Stream:
    """A per-image metric over a set that arrives batch by batch; equal to the whole set at once."""

    def __init__(self, metric):
        if metric.per_image is None:
            raise HoldfastError(
                f"metric '{metric.name}' cannot be measured batch by batch",
                repair="call its compute with the whole set",
            )
        self.metric, self._values = metric, []

    def update(self, *images):
        """Measure one batch; the images are not kept."""
        self._values.append(np.asarray(self.metric.per_image(*images), dtype=np.float64))

    def values(self):
        """float64 (N,) of all images so far, in order; NaN where an image has no value."""
        return np.concatenate(self._values) if self._values else np.zeros(0)

    def result(self):
        return self.metric.reduce(self.values())


def result(value, n, *, std=None, why=None, **extra):
    """A metric's result. A value that is missing or not finite becomes None and needs `why`.

    Raises:
        HoldfastError: no finite value, and no reason given.
    """
    if value is None or not math.isfinite(value):
        if not why:
            raise HoldfastError(
                "a measurement without a finite value does not say why",
                found=value,
                repair="pass why=..., in words that a reader of the table understands",
            )
        answer = {"value": None, "n": int(n), "why": why}
    else:
        answer = {"value": float(value), "n": int(n)}
        if std is not None:
            answer["std"] = float(std)
    if extra:
        answer["extra"] = extra
    return answer


def mean_of(values, *, left_out=None, why="no image has a value"):
    """The mean of the finite values with their sample standard deviation, as a result.

    Args:
        values: float64 (N,); NaN or infinite = this image has no value and is left out of the mean.
        left_out: the key under which ``extra`` counts the images left out; without one an image
            without a value is an error of the metric.
        why: the reason given when nothing remains.
    """
    values = np.asarray(values, dtype=np.float64)
    kept = values[np.isfinite(values)]
    missing = len(values) - len(kept)
    if missing and left_out is None:
        raise HoldfastError(f"{missing} of {len(values)} images have no value", expected="finite values")
    extra = {left_out: missing} if left_out else {}
    if not len(values):
        why = "no images were given"
    if not len(kept):
        return result(None, 0, why=why, **extra)
    return result(kept.mean(), len(kept), std=kept.std(ddof=1) if len(kept) > 1 else None, **extra)
