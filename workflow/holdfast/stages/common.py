"""What several stages do: open models and detectors, label faces, keep states apart."""

import time
from pathlib import Path

import torch

from holdfast import sources
from holdfast.config import digest, hash_of
from holdfast.data.faceset import FaceSet, read_report
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes import model as deepfake_model
from holdfast.deepfakes.classifier import AttributeClassifier
from holdfast.detectors import DETECTORS
from holdfast.files import sha256_of
from holdfast.jobs import device_of
from holdfast.modules import PIPELINE_KEYS
from holdfast.records import provenance


class Work:
    """A job's clock, device and inputs, for the provenance of its records.

    Args:
        config: the completed config.
        inputs: paths that are read; their sha256 enter the records under their path within results.
        device: of a job that runs no network, "cpu"; by default, the config's.
    """

    def __init__(self, config, inputs=(), device=None):
        self.config, self.started, self.device = config, time.monotonic(), device or device_of(config)
        self.inputs = [Path(path) for path in inputs]

    @staticmethod
    def sha256(path):
        return sha256_of(path)

    def provenance(self, **seeds):
        """Provenance of a record; `seeds` are what besides the config's root seed was used."""
        root = Path(self.config["results"])
        hashes = {
            (path.relative_to(root) if path.is_relative_to(root) else Path(path.name)).as_posix(): sha256_of(
                path
            )
            for path in self.inputs
        }
        return provenance(
            config_sha256=hash_of(self.config),
            seeds={"seed": self.config["seed"], **seeds},
            inputs=hashes,
            started=self.started,
            device=self.device,
        )

    def deepfake(self, name, weights):
        """The model `name` with `weights`, frozen."""
        model = deepfake_model.build(
            DEEPFAKES, name, self.config["deepfakes"][name], self.config["image_size"]
        )
        return deepfake_model.freeze(deepfake_model.load(model, weights), self.device)

    def detector(self, name, weights):
        """The detector `name` with `weights`, frozen."""
        detector = DETECTORS[name](own_settings(self.config["detectors"][name]))
        detector.load(weights)
        return detector.to(self.device)

    def classifier(self, weights):
        # Channels last: its convolutions take about half the time so on a CPU.
        return AttributeClassifier.load(weights).to(self.device, memory_format=torch.channels_last)


def own_settings(entry):
    """A config entry without the keys of the pipeline."""
    return {key: value for key, value in entry.items() if key not in PIPELINE_KEYS}


def state_file(config, rule, *identity, code):
    """Where a training keeps its state: a folder of its own for everything that determines its result.

    Without the hash, a state from before a change of settings would be taken up silently. The kind of device
    and the threads belong to it: they change the last bits of sums. `code`: the modules (sources.py).
    """
    kind = device_of(config).partition(":")[0]
    settled = digest([kind, config["threads"], sources.hash_of(code), *identity])
    return Path(config["results"]) / "state" / rule / settled[:16] / "state.pt"


def fingerprint(folder):
    """sha256 of a face set's index and pixels, as its report has them."""
    return read_report(folder)["sha256"]


def labels_of(faces, positions, model, classifier):
    """((n, A) labels in the model's order, "annotated" or "predicted").

    Sets without annotated attributes (LFW, a folder) get those that the attribute classifier sees:
    an edit needs to know what is there.
    """
    if set(model.attributes) <= set(faces.attributes):
        return faces.labels(positions, model.attributes), "annotated"
    columns = classifier.columns_of(model.attributes)
    device = next(classifier.parameters()).device
    predicted = [
        classifier.predict(faces.pixels(positions[start : start + 64]).to(device)).cpu()
        for start in range(0, len(positions), 64)
    ]
    return torch.cat(predicted)[:, columns].float(), "predicted"


def batches(count, size):
    """Slices of `size` that cover `count`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def detections_of(detector, images, device, threshold=0.05):
    """Detections of images given as batches: list of (boxes, scores) as NumPy arrays."""
    found = []
    for x in images:
        for boxes, scores in detector.detect(x.to(device), threshold):
            found.append((boxes.cpu().numpy(), scores.cpu().numpy()))
    return found


def open_faces(path):
    """The face set whose index.csv (or another of its files) `path` is."""
    return FaceSet.open(Path(path).parent)
