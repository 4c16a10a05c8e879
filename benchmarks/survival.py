"""What JPEG compression and a resize by half leave of a protection.

    python benchmarks/survival.py results/lab celeba none tsdf tsdf_hidden --models stargan

For a finished run, of the protected test files of a data set (seed 0) as they are, after JPEG at quality 75,
and after a resize to half their side and back (bicubic): harvest_yield with every detector, l2_mask and
sr_mask of every deepfake model, against the edits of the clean faces. The defence `none` is the control: what
the change does by itself.
"""

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

import yaml  # noqa: E402

from holdfast.config import active  # noqa: E402
from holdfast.data.pixels import to_float  # noqa: E402
from holdfast.metrics import METRICS  # noqa: E402
from holdfast.metrics.detection import harvest_yield  # noqa: E402
from holdfast.metrics.metric import Stream  # noqa: E402
from holdfast.stages.common import Work, batches, detections_of, labels_of, open_faces  # noqa: E402
from holdfast.stages.protect import ProtectedSet  # noqa: E402


def jpeg(image, quality=75):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def halved(image):
    half = image.resize([side // 2 for side in image.size], Image.Resampling.BICUBIC)
    return half.resize(image.size, Image.Resampling.BICUBIC)


CHANGES = {"as stored": lambda image: image, "JPEG 75": jpeg, "half size and back": halved}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("defences", nargs="+")
    parser.add_argument("--models", nargs="*", help="deepfake models; by default all of the run")
    given = parser.parse_args()
    results, dataset = given.results, given.dataset
    config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    config["results"] = str(results)
    torch.set_num_threads(config["threads"])
    work, size = Work(config), config["measuring"]["batch"]
    faces = open_faces(results / f"data/{dataset}/index.csv")
    judge = work.classifier(results / "models/classifier/weights.safetensors")
    models = active(config, "deepfakes") if given.models is None else given.models
    for defence in given.defences:
        protected = ProtectedSet(results / f"protected/{dataset}/{defence}/0/test/index.csv")
        positions, parts = protected.source_positions, batches(len(protected), size)
        truth = faces.boxes(positions)
        for change, changed in CHANGES.items():
            pixels = [
                to_float(np.stack([np.asarray(changed(Image.fromarray(p))) for p in protected.bytes(part)]))
                for part in parts
            ]
            row = {"defence": defence, "change": change, "n": len(protected)}
            for name in active(config, "detectors"):
                detector = work.detector(name, results / f"detectors/{name}/weights.safetensors")
                found = detections_of(detector, pixels, work.device)
                row[f"harvest_yield {name}"] = round(harvest_yield(found, truth)["value"], 4)
            for name in models:
                model = work.deepfake(name, results / f"models/{name}/weights.safetensors")
                labels, _ = labels_of(faces, positions, model, judge)
                streams = [Stream(METRICS[metric]) for metric in ("l2_mask", "sr_mask")]
                for part, x_changed in zip(parts, pixels, strict=True):
                    x = faces.pixels(positions[part]).to(work.device)
                    for target in model.targets(labels[part].to(work.device)):
                        edits = (model.edit(images, target).clamp(-1, 1) for images in (x, x_changed))
                        triple = (x, *edits)
                        for stream in streams:
                            stream.update(*triple)
                for stream in streams:
                    row[f"{stream.metric.name} {name}"] = round(stream.result()["value"], 4)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
