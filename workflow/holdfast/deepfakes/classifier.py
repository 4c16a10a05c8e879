"""The attribute classifier: judge of `edit_accuracy`, and feature network of `fid[attributes]`.

A small residual network trained on the same faces as the deepfake models. It sees only the clean
training split, never an edited or a protected image.
"""

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.seeds import generator, seed_of
from holdfast.tensors import write_tensors
from holdfast.training.loop import batch_positions, mirror, run_steps


class _Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, 2, bias=False)

    def forward(self, x):
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class AttributeClassifier(nn.Module):
    """(N, 3, S, S) in [-1, 1] to logits (N, A), one per attribute.

    Args:
        attributes: their names, in the order of the logits.
        channels: width of the first of four blocks; the features have 8 times as many.
    """

    def __init__(self, attributes, channels=32):
        super().__init__()
        self.attributes = tuple(attributes)
        self.channels = channels
        self.stem = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        widths = [channels, channels, 2 * channels, 4 * channels, 8 * channels]
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in zip(widths, widths[1:], strict=False)))
        self.head = nn.Linear(8 * channels, len(self.attributes))

    def features(self, x):
        """(N, 8 * channels): the pooled features before the last layer."""
        return self.blocks(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3))

    def forward(self, x):
        return self.head(self.features(x))

    @torch.no_grad()
    def predict(self, x):
        """bool (N, A)."""
        return self(x) > 0

    def columns_of(self, attributes):
        """Columns of the logits that answer for `attributes`, in their order.

        Raises:
            HoldfastError: it did not learn one of them.
        """
        unknown = [name for name in attributes if name not in self.attributes]
        if unknown:
            raise HoldfastError(
                "the attribute classifier cannot judge every edit",
                found=f"nothing learnt of {', '.join(unknown)}",
                expected=f"attributes among {', '.join(self.attributes)}",
                repair="remove its weights in the results folder (models/classifier) and run again",
            )
        return [self.attributes.index(name) for name in attributes]

    def save(self, path):
        about = {"attributes": ",".join(self.attributes), "channels": str(self.channels)}
        write_tensors(path, self.state_dict(), about)

    @classmethod
    def load(cls, path):
        """Raises:
        HoldfastError: the file is missing, damaged or not an attribute classifier."""
        from safetensors import safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
            model = cls(about["attributes"].split(","), int(about["channels"]))
            model.load_state_dict(load_file(path))
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise HoldfastError(
                f"cannot load the attribute classifier {path}",
                found=str(error).splitlines()[0],
                expected="a file that the rule train_classifier wrote",
                repair="remove it and run again",
            ) from error
        return model.eval().requires_grad_(False)


def train_classifier(faces, attributes, settings, seed_names, *, state_path=None, device="cpu"):
    """Train on the split `train`, augmented by mirroring and small shifts; test on `val` or `test`.

    Args:
        faces: a FaceSet.
        attributes: names of the attributes to learn.
        settings: channels, steps, batch, learning_rate.
        seed_names: names that seed weights and batches.

    Returns:
        (classifier in eval mode, log, {attribute: accuracy on unseen faces}).

    Raises:
        HoldfastError: no faces to train on or none to test on; no such attribute; the loss diverges.
    """
    train = faces.positions("train")
    if not len(train) or not len(unseen_positions(faces)):
        raise HoldfastError(
            f"the attribute classifier cannot be trained on {faces.folder}",
            found=f"{len(train)} training faces, {len(unseen_positions(faces))} unseen ones",
            expected="at least one of each",
            repair="set `limits` (or train, val, test) of the training set so that its splits have images",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*seed_names, "weights"))
        model = AttributeClassifier(attributes, settings["channels"]).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), settings["learning_rate"], weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings["learning_rate"], settings["steps"])

    def step_fn(step):
        model.train()
        chosen = batch_positions(train, settings["batch"], step, *seed_names)
        x = _augment(faces.pixels(chosen), generator(*seed_names, "augment", step)).to(device)
        loss = F.binary_cross_entropy_with_logits(model(x), faces.labels(chosen, attributes).to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        return {"loss": loss.item()}

    log = run_steps(
        settings["steps"],
        step_fn,
        {"model": model, "optimiser": optimiser, "schedule": schedule},
        state_path,
        description="attribute classifier",
    )
    model.eval().requires_grad_(False)
    return model, log, accuracy(model, faces, unseen_positions(faces), device)


def unseen_positions(faces):
    """The test split, or the validation split of a set that has no test split."""
    test = faces.positions("test")
    return test if len(test) else faces.positions("val")


def accuracy(model, faces, positions, device="cpu"):
    """{attribute: fraction of faces classified as labelled}."""
    right = []
    for start in range(0, len(positions), 128):
        chosen = positions[start : start + 128]
        predicted = model.predict(faces.pixels(chosen).to(device)).cpu()
        right.append(predicted == faces.labels(chosen, model.attributes).bool())
    return dict(zip(model.attributes, torch.cat(right).double().mean(dim=0).tolist(), strict=True))


def _augment(x, random):
    """Mirror half of the images and shift each by up to 1/16 of its side (edges repeated)."""
    x = mirror(x, random)
    reach = x.shape[2] // 16
    if reach == 0:
        return x
    padded = F.pad(x, [reach] * 4, mode="replicate")
    shifts = torch.randint(0, 2 * reach + 1, (len(x), 2), generator=random).tolist()
    size = x.shape[2]
    return torch.stack(
        [image[:, dy : dy + size, dx : dx + size] for image, (dy, dx) in zip(padded, shifts, strict=True)]
    )
