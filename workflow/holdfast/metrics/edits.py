"""Whether an edit shows the attribute that it was asked for, as a classifier tells it."""

import numpy as np

from holdfast.metrics.metric import Metric, result


def edit_accuracy(before, wanted, told):
    """Fraction of the images whose label an edit changes that show the new one.

    Args:
        before: bool (N,), the edited attribute as it is annotated.
        wanted: bool (N,), as the edit is asked for.
        told: bool (N,), as the classifier tells it of the edited image.

    Returns:
        A result (metrics/metric.py); ``n`` counts the images whose label changes.
    """
    before, wanted, told = (np.asarray(values, dtype=bool) for values in (before, wanted, told))
    changed = before != wanted
    right = np.mean((told == wanted)[changed]) if changed.any() else None
    return result(right, changed.sum(), why="no image's label is changed by this edit")


REGISTER = {
    "edit_accuracy": Metric(
        name="edit_accuracy",
        definition="Accuracy of the attribute classifier on G(x, target), for the edited attribute, among "
        "the images whose label the edit changes.",
        unit="fraction",
        better_defence="down",
        compute=edit_accuracy,
        inputs="model",
    )
}
