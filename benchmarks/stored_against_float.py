"""What storing protected images in 8 bits changes: the released code clips and rounds nothing.

    python benchmarks/stored_against_float.py results/lab celeba tsdf

For a finished run: l2_mask and sr_mask of x + W as float32, unclipped, and of the stored files (and PSNR,
of both clipped), on the protected test split of a data set, for each deepfake model; all edits.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

import yaml  # noqa: E402

from holdfast.config import active  # noqa: E402
from holdfast.metrics import METRICS  # noqa: E402
from holdfast.metrics.metric import Stream  # noqa: E402
from holdfast.stages.common import Work, batches, labels_of, open_faces  # noqa: E402
from holdfast.stages.perturb import opened_defence  # noqa: E402
from holdfast.stages.protect import ProtectedSet  # noqa: E402


@torch.no_grad()
def main(results, dataset, defence, seed=0):
    results = Path(results)
    config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    config["results"] = str(results)
    torch.set_num_threads(config["threads"])
    work = Work(config)
    index = results / f"data/{dataset}/index.csv"
    training_index = results / f"data/{config['training_set']}/index.csv"
    models = {name: results / f"models/{name}/weights.safetensors" for name in active(config, "deepfakes")}
    detectors = {
        name: results / f"detectors/{name}/weights.safetensors" for name in active(config, "detectors")
    }
    learnt = results / f"perturbations/{defence}/{seed}/perturbation.safetensors"
    opened = opened_defence(work, defence, seed, learnt, training_index, models, detectors)
    protected = ProtectedSet(results / f"protected/{dataset}/{defence}/{seed}/test/index.csv")
    faces, judge = open_faces(index), work.classifier(results / "models/classifier/weights.safetensors")
    positions = protected.source_positions
    for name, path in models.items():
        model = work.deepfake(name, path)
        labels, _ = labels_of(faces, positions, model, judge)
        forms = ("float32, unclipped", "8 bits, stored")
        streams = {
            form: {metric: Stream(METRICS[metric]) for metric in ("l2_mask", "sr_mask")} for form in forms
        }
        quality = {form: Stream(METRICS["psnr"]) for form in forms}
        for part in batches(len(protected), config["measuring"]["batch"]):
            x = faces.pixels(positions[part]).to(work.device)
            images = (x + opened.perturbation.to(work.device), protected.pixels(part).to(work.device))
            for form, image in zip(forms, images, strict=True):
                quality[form].update(x, image.clamp(-1, 1))
            for target in model.targets(labels[part].to(work.device)):
                y = model.edit(x, target).clamp(-1, 1)
                for form, image in zip(forms, images, strict=True):
                    edited = model.edit(image, target).clamp(-1, 1)
                    for stream in streams[form].values():
                        stream.update(x, y, edited)
        for form in forms:
            found = {metric: stream.result()["value"] for metric, stream in streams[form].items()}
            print(json.dumps({"model": name, "x'": form, **found, "psnr": quality[form].result()["value"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
