"""How far a direct attack gets on a run's deepfake models: an estimate of what any defence could reach.

    python benchmarks/ceiling.py results/lab [FACES [STEPS]]

For each deepfake model, on the first FACES (16) test faces of the training set: for each edit, STEPS (40) of
projected gradient ascent on MSE(G(x + delta), G(x)), steps of epsilon / 10, from uniform noise, on that edit
alone and with all of its gradient; once per image, and once as one delta for all of them (fitted to the very
faces it is measured on). Nothing here is a proof: a better optimiser may get further. But where so direct an
attack fails, a low number in Table I is the model's rather than the defence's. Float32, not stored in 8 bits.
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
from holdfast.seeds import generator  # noqa: E402
from holdfast.stages.common import Work, labels_of, open_faces  # noqa: E402


def ascended(model, x, target, steps, epsilon, shape):
    """The delta that the ascent finds, |delta| <= epsilon.

    Args:
        x: faces (N, 3, S, S) in [-1, 1]; target: their targets, as of `model.targets`.
        shape: that of delta, (N, 3, S, S) or (1, 3, S, S).
    """
    with torch.no_grad():
        clean = model.edit(x, target)
    start = torch.rand(shape, generator=generator("ceiling")) * 2 - 1
    delta = (start * epsilon).to(x.device)
    for _ in range(steps):
        delta.requires_grad_(True)
        error = (model.edit((x + delta).clamp(-1, 1), target) - clean).square().mean()
        (slope,) = torch.autograd.grad(error, delta)
        delta = (delta.detach() + epsilon / 10 * slope.sign()).clamp(-epsilon, epsilon)
    return delta


def main(results, count=16, steps=40):
    results, count, steps = Path(results), int(count), int(steps)
    config = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    torch.set_num_threads(config["threads"])
    work = Work(config)
    faces = open_faces(results / f"data/{config['training_set']}/index.csv")
    positions = faces.positions("test", count)
    judge = work.classifier(results / "models/classifier/weights.safetensors")
    x = faces.pixels(positions).to(work.device)
    for name in active(config, "deepfakes"):
        model = work.deepfake(name, results / f"models/{name}/weights.safetensors")
        labels, _ = labels_of(faces, positions, model, judge)
        for kind, shape in (("per image", x.shape), ("universal", (1, *x.shape[1:]))):
            streams = {metric: Stream(METRICS[metric]) for metric in ("l2_mask", "sr_mask", "ssim")}
            for target in model.targets(labels.to(work.device)):
                delta = ascended(model, x, target, steps, config["epsilon"], shape)
                with torch.no_grad():
                    y = model.edit(x, target).clamp(-1, 1)
                    y_protected = model.edit((x + delta).clamp(-1, 1), target).clamp(-1, 1)
                for metric, stream in streams.items():
                    stream.update(*((y, y_protected) if metric == "ssim" else (x, y, y_protected)))
            found = {metric: stream.result()["value"] for metric, stream in streams.items()}
            told = {"model": name, "delta": kind, "faces": len(x), "edits": len(model.target_names)}
            print(json.dumps(told | {metric: round(value, 4) for metric, value in found.items()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
