"""edit_accuracy: which faces count, and which of the classifier's answers. Values by hand."""

import numpy as np
import pytest
import torch

from holdfast import config as configs
from holdfast.data.faceset import write_faceset
from holdfast.deepfakes.classifier import AttributeClassifier
from holdfast.stages.common import Work
from holdfast.stages.health import health_records


def shown(x, count):
    """(N, count) of 0 and 1: faces here wear their attributes as light and dark pixels of the first row."""
    return (x[:, 0, 0, :count] > 0).float()


class Editor:
    """A deepfake model that draws attributes; `outcome(own, target)` says which."""

    def __init__(self, attributes, target_names, targets, outcome):
        self.attributes, self.target_names = attributes, target_names
        self.targets, self.outcome = targets, outcome

    def edit(self, x, target):
        y, count = x.clone(), len(self.attributes)
        y[:, :, 0, :count] = 2 * self.outcome(shown(x, count), target)[:, None] - 1
        return y


class Judge(AttributeClassifier):
    """A classifier that reads them without error, in an order of its own, with Young before all others."""

    def __init__(self, *attributes):
        super().__init__(("Young", *reversed(attributes)), channels=4)
        self.of_faces = attributes

    def predict(self, x):
        read = shown(x, len(self.of_faces)).bool()
        return torch.cat([torch.ones(len(x), 1, dtype=torch.bool), read.flip(1)], dim=1)

    def features(self, x):
        return x.mean(dim=(2, 3))


@pytest.fixture
def accuracies(tmp_path):
    """accuracies(editor, labels) -> {edit: (value, n)} of health_records on faces with these labels."""
    config = configs.complete(
        {
            "training_set": "synthetic",
            "image_size": 32,
            "device": "cpu",
            "results": str(tmp_path / "results"),
            "datasets": {"synthetic": {}},
            "deepfakes": {"stargan": {}},
            "detectors": {"retinaface": {}},
            "defences": {"none": {}},
            "measuring": {"batch": 3},
            "fid_features": "attributes",
        }
    )

    def measure(editor, labels):
        def rows():
            for number, own in enumerate(labels):
                pixels = np.full((32, 32, 3), 60 + 40 * number, dtype=np.uint8)
                pixels[0, : len(own)] = 255 * np.array(own)[:, None]
                yield pixels, f"{number}.png", "test", None, own

        faces = write_faceset(tmp_path / "faces", 32, rows(), list(editor.attributes), {"dataset": "drawn"})
        subject, history = {"dataset": "drawn", "model": "editor", "state": "healthy"}, {"fresh": ["critic"]}
        records = health_records(Work(config), editor, faces, Judge(*editor.attributes), subject, history)
        assert all(record["extra"]["fresh"] == ["critic"] for record in records)
        return {
            record["subject"]["attribute"]: (record["value"], record["n"])
            for record in records
            if record["metric"] == "edit_accuracy"
        }

    return measure


def test_only_faces_whose_label_the_edit_changes_count(accuracies):
    """Four faces; the black-haired lose their hair when black is asked for, which nobody counts."""
    names = ("Black_Hair", "Blond_Hair", "Male")

    def targets(labels):
        black, blond, male = labels.clone(), labels.clone(), labels.clone()
        black[:, :2] = torch.tensor([1.0, 0.0])
        blond[:, :2] = torch.tensor([0.0, 1.0])
        male[:, 2] = 1 - male[:, 2]
        return torch.stack([black, blond, male])

    def outcome(own, target):
        drawn = target.clone()
        drawn[:, 0] *= 1 - own[:, 0]  # what is black cannot stay black
        drawn[:, 1] *= 1 - own[:, 2]  # no man becomes blond
        drawn[:, 2] = torch.maximum(own[:, 2], target[:, 2])  # and none becomes a woman
        return drawn

    found = accuracies(
        Editor(names, list(names), targets, outcome), [(1, 0, 0), (1, 0, 1), (0, 1, 0), (0, 0, 1)]
    )
    assert found == {
        "Black_Hair": (1.0, 2),  # both without; with those that had it, 2 of 4
        "Blond_Hair": (pytest.approx(1 / 3), 3),  # of the three who are not, two are men
        "Male": (0.5, 4),
        "mean": (pytest.approx((1 + 1 / 3 + 1 / 2) / 3), 9),
    }


def test_attributes_that_an_edit_leaves_alone_do_not_count(accuracies):
    """HiSD's targets are NaN there. Glasses are put on and never taken off; all are blond already."""
    names = ("Male", "Eyeglasses", "Blond_Hair", "Black_Hair")

    def targets(labels):
        glasses, blond = torch.full_like(labels, torch.nan), torch.full_like(labels, torch.nan)
        glasses[:, 1] = 1 - labels[:, 1]
        blond[:, 2:] = torch.tensor([1.0, 0.0])
        return torch.stack([glasses, blond])

    def outcome(own, target):
        drawn = torch.where(target.isnan(), own, target)
        drawn[:, 1] = torch.maximum(own[:, 1], drawn[:, 1])
        return drawn

    labels = [(1, 0, 1, 0), (0, 1, 1, 0), (1, 0, 1, 0), (0, 0, 1, 0), (1, 1, 1, 0)]
    found = accuracies(Editor(names, ["Eyeglasses", "Blond_Hair"], targets, outcome), labels)
    assert found == {"Eyeglasses": (0.6, 5), "Blond_Hair": (None, 0), "mean": (0.6, 5)}
