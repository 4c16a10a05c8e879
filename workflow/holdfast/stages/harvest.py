"""Stage harvest: the adaptive attacker finds the faces in the protected files and crops them.

Each detector looks at the files once; what it found is kept, so that the union of all needs no further look,
and only what the attacker retrains on is cropped.
"""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd

from holdfast.attacker.harvest import crop, union, windows
from holdfast.config import attackers_detectors, harvesters
from holdfast.data.faceset import write_faceset
from holdfast.errors import HoldfastError
from holdfast.files import write_text
from holdfast.metrics import METRICS
from holdfast.metrics.detection import definition_of_yield, harvest_yield
from holdfast.progress import Progress
from holdfast.records import record_of, write_records
from holdfast.stages.common import Work, batches, detections_of, open_faces
from holdfast.stages.protect import ProtectedSet

_EDGES = ["x1", "y1", "x2", "y2"]


def find_faces(config, protected_index, detector, weights, boxes_csv):
    """Run a detector of the config over the protected files; write its boxes above `attacker.threshold`.

    A row of `boxes_csv` is the image's position among the protected, the box in pixels, and its score; the
    best box of an image comes first.
    """
    work = Work(config)
    protected, network = ProtectedSet(protected_index), work.detector(detector, weights)
    found = []
    with Progress(len(protected), f"looking for faces with {network.title}") as bar:
        for part in batches(len(protected), config["measuring"]["batch"]):
            x = protected.pixels(part)
            found += detections_of(network, [x], work.device, config["attacker"]["threshold"])
            bar.advance(by=len(x))
    rows = [
        (image, *box, score)
        for image, pair in enumerate(found)
        for *box, score in np.column_stack(pair).tolist()
    ]
    table = pd.DataFrame(rows, columns=["image", *_EDGES, "score"])
    # Nine digits give every float32 back as it was.
    write_text(boxes_csv, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))


def read_boxes(boxes_csv, count):
    """What :func:`find_faces` wrote: of `count` images (boxes (k, 4), scores (k,)) in float32, best first.

    Raises:
        HoldfastError: it has a box of an image beyond them.
    """
    table = pd.read_csv(boxes_csv)
    image = table["image"].to_numpy(dtype=np.int64)
    if image.max(initial=-1) >= count:
        raise HoldfastError(
            f"{boxes_csv} is not of these images",
            found=f"a box of image {image.max()}",
            expected=f"images 0 to {count - 1}",
            repair="remove it and run again",
        )
    rows = table[[*_EDGES, "score"]].to_numpy(dtype=np.float32)
    cuts = np.searchsorted(image, np.arange(count + 1))
    return [(rows[start:stop, :4], rows[start:stop, 4]) for start, stop in itertools.pairwise(cuts)]


def measure_harvest(config, defence, seed, protected_index, index_csv, weights, boxes, records):
    """Record what the attacker would harvest with each detector, and with the union of several.

    `weights` and `boxes` are {detector: path} of its weights and of what it found. `harvest_yield` has in its
    extra how many images gave a crop (`n_harvested`), and how many of these crops are the whole image
    (`n_whole`): where the margin reaches beyond its edges. The records' device and time are those of this
    count, not of the search for faces.
    """
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    truth = faces.boxes(protected.source_positions)
    threshold, size = config["attacker"]["threshold"], config["image_size"]
    metric = replace(METRICS["harvest_yield"], definition=definition_of_yield(threshold))
    written = []
    for detector in harvesters(config):
        names = attackers_detectors(config, detector)
        read = [path[name] for name in names for path in (weights, boxes)]
        work = Work(config, [protected_index, *read], device="cpu")
        found, taken = _taken(config, [boxes[name] for name in names], len(protected))
        answer = harvest_yield(found, truth, score=threshold)
        answer.setdefault("extra", {}).update(
            n_harvested=sum(window is not None for window in taken),
            n_whole=sum(window is not None and window[2] == size for window in taken),
        )
        subject = {
            "kind": "harvest",
            "dataset": config["training_set"],
            "detector": detector,
            "defence": defence,
            "seed": seed,
        }
        provenance = work.provenance(perturbation_seed=seed)
        written.append(record_of(metric, answer, subject=subject, provenance=provenance))
    write_records(records, written)


def harvest(config, defence, protected_index, index_csv, boxes, folder):
    """Pack what the attacker crops out of the protected files as a face set: what he retrains on.

    `boxes` are the paths of what his detector, or each of several, found in them. He knows the attributes of
    what he collects (as in the paper's setting: the protected set is CelebA).
    """
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    labels = faces.labels(protected.source_positions, faces.attributes).numpy()
    size = config["image_size"]
    _, taken = _taken(config, boxes, len(protected))

    def rows():
        with Progress(len(protected), "cropping the harvest") as bar:
            for part in batches(len(protected), config["measuring"]["batch"]):
                for at, pixels in enumerate(protected.bytes(part), part.start):
                    bar.advance()
                    if taken[at] is not None:
                        file = protected.index["file"].iloc[at]
                        yield crop(pixels, taken[at], size), file, "train", None, labels[at]

    about = {
        "dataset": config["training_set"],
        "defence": defence,
        "detector": config["attacker"]["detector"],
        "found": len(protected),
        "attacker": config["attacker"],
    }
    write_faceset(folder, size, rows(), faces.attributes, about)


def _taken(config, boxes, count):
    """What was found in `count` images, and the window that the attacker takes of each."""
    found = union([read_boxes(path, count) for path in boxes])
    options = {key: config["attacker"][key] for key in ("threshold", "margin", "no_detection")}
    return found, windows(found, config["image_size"], **options)
