"""edit_accuracy as a function of labels and answers. Values by hand."""

import numpy as np

from holdfast.metrics import METRICS

COMPUTE = METRICS["edit_accuracy"].compute


def test_only_images_whose_label_changes_count():
    before, wanted, told = [1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 1, 0, 1]
    assert COMPUTE(*(np.array(values, dtype=bool) for values in (before, wanted, told))) == {
        "value": 2 / 3,
        "n": 3,
    }


def test_an_edit_that_changes_no_label_has_no_value():
    answer = COMPUTE([True], [True], [False])
    assert answer["value"] is None and answer["n"] == 0 and "no image's label" in answer["why"]
