"""StarGAN (Choi et al., CVPR 2018): one generator for all attributes of a face.

Input is the image with the target labels as constant maps beside its channels. Losses: WGAN-GP
(lambda 10), attribute classification (1) and cycle reconstruction (10). A generator that makes dark
backgrounds light, and back again, satisfies all three, and a short training may end there; `lambda_identity`
adds CycleGAN's identity loss (Zhu et al., ICCV 2017, 5.2) against that. At its published size (256 px,
64 channels, 5 attributes) the generator has 8,430,528 parameters and the discriminator 44,884,928;
keys and shapes are those of the public checkpoints.

What TSDF attacks (its stage 1, as released) is the generator's trunk through all six residual blocks:
256 x 64 x 64 at 256 px.
"""

import torch
import torch.nn.functional as F
from torch import nn

from holdfast.deepfakes.losses import attribute_loss, critic_losses
from holdfast.deepfakes.model import DeepfakeModel
from holdfast.errors import HoldfastError
from holdfast.training.loop import linear_decay

SETTINGS = {
    "attributes": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"],
        "description": "Attributes that the model edits, in the order of its labels.",
    },
    "generator_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the generator's first layer.",
    },
    "discriminator_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the discriminator's first layer.",
    },
    "discriminator_layers": {
        "type": "integer",
        "minimum": 2,
        "default": 6,
        "description": "Stride-2 layers of the discriminator; the image side is at least 2 to this power.",
    },
    "lambda_cls": {"type": "number", "minimum": 0, "default": 1, "description": "Weight of classification."},
    "lambda_rec": {"type": "number", "minimum": 0, "default": 10, "description": "Weight of reconstruction."},
    "lambda_identity": {
        "type": "number",
        "minimum": 0,
        "default": 0,
        "description": "Weight of what an edit to a face's own attributes changes; 0 as published.",
    },
    "lambda_gp": {"type": "number", "minimum": 0, "default": 10, "description": "Weight of the penalty."},
    "decay_after": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Share of the iterations after which the rates fall, linearly to 0; 1: they do not.",
    },
}
HAIR = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")


class InstanceNorm(nn.InstanceNorm2d):
    """Affine instance normalisation that always uses the image's own statistics.

    The public checkpoints carry running statistics, so the buffers exist; but the released pipelines
    never call eval() on this model, so nothing ever reads them. Not updating them
    either keeps an attacked model bit for bit what it was.
    """

    def __init__(self, channels):
        super().__init__(channels, affine=True, track_running_stats=True)

    def forward(self, x):
        return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class ResidualBlock(nn.Module):
    """(N, C, h, w) to the same shape."""

    def __init__(self, channels):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            InstanceNorm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            InstanceNorm(channels),
        )

    def forward(self, x):
        return x + self.main(x)


class Generator(nn.Module):
    """(N, 3, S, S) in [-1, 1] and labels (N, A) to (N, 3, S, S) in [-1, 1]."""

    def __init__(self, channels=64, attributes=5, blocks=6):
        super().__init__()
        width = channels
        layers = [nn.Conv2d(3 + attributes, width, 7, 1, 3, bias=False), InstanceNorm(width), nn.ReLU(True)]
        for _ in range(2):
            layers += [
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                InstanceNorm(2 * width),
                nn.ReLU(True),
            ]
            width *= 2
        layers += [ResidualBlock(width) for _ in range(blocks)]
        self.trunk_length = len(layers)
        for _ in range(2):
            layers += [
                nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
                InstanceNorm(width // 2),
                nn.ReLU(True),
            ]
            width //= 2
        layers += [nn.Conv2d(width, 3, 7, 1, 3, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def trunk(self, x, labels):
        """The features that the interruption attacks: (N, 4 * channels, S / 4, S / 4)."""
        return self.main[: self.trunk_length](with_label_maps(x, labels))

    def forward(self, x, labels):
        return self.main(with_label_maps(x, labels))


class Discriminator(nn.Module):
    """(N, 3, S, S) in [-1, 1] to realness (N, 1, S / 64, S / 64) and attribute logits (N, A)."""

    def __init__(self, image_size=128, channels=64, attributes=5, layers=6):
        super().__init__()
        width, stack = channels, [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.01)]
        for _ in range(layers - 1):
            stack += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.01)]
            width *= 2
        self.main = nn.Sequential(*stack)
        self.conv1 = nn.Conv2d(width, 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(width, attributes, image_size // 2**layers, bias=False)

    def forward(self, x):
        h = self.main(x)
        return self.conv1(h), self.conv2(h).flatten(1)


def with_label_maps(x, labels):
    """(N, C + A, h, w): images or maps (N, C, h, w) and each label of (N, A) as a constant map."""
    maps = labels.to(x.dtype)[:, :, None, None].expand(-1, -1, x.shape[2], x.shape[3])
    return torch.cat([x, maps], dim=1)


class StarGAN(DeepfakeModel):
    """The deepfake model as the rest of Holdfast sees it (interface: deepfakes/model.py)."""

    title = "StarGAN"
    paper = "Choi et al., CVPR 2018"
    licence = "MIT (code); weights for research on CelebA's terms"
    public_parts = {}  # a file for each network
    public_order = SETTINGS["attributes"]["default"]
    make_generator = Generator

    def __init__(self, settings, image_size):
        self.settings, self.image_size = settings, image_size
        if image_size % 4 or image_size < 2 ** settings["discriminator_layers"]:
            raise HoldfastError(
                f"{self.title} does not fit images of {image_size} px",
                expected=f"a multiple of 4, at least {2 ** settings['discriminator_layers']} "
                f"for {settings['discriminator_layers']} discriminator layers",
                repair="change image_size, or the model's discriminator_layers",
            )
        self.attributes = tuple(settings["attributes"])
        self.generator = self.make_generator(settings["generator_channels"], len(self.attributes))
        self.discriminator = Discriminator(
            image_size,
            settings["discriminator_channels"],
            len(self.attributes),
            settings["discriminator_layers"],
        )

    @property
    def networks(self):
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def target_names(self):
        return list(self.attributes)

    def targets(self, attributes):
        """Labels (T, N, A) of every edit: a hair colour replaces the others, anything else is flipped."""
        hair = [self.attributes.index(name) for name in HAIR if name in self.attributes]
        targets = []
        for position in range(len(self.attributes)):
            target = attributes.clone()
            if position in hair:
                target[:, hair] = 0
                target[:, position] = 1
            else:
                target[:, position] = 1 - target[:, position]
            targets.append(target)
        return torch.stack(targets)

    def labels_in(self, network, shapes):
        """See DeepfakeModel."""
        count = shapes["main.0.weight"][1] - 3 if network == "generator" else shapes["conv2.weight"][0]
        return f"{count} attributes"

    def features(self, x, attributes):
        """The attacked encoder with the image's own labels, as released; the decoder is not run."""
        return self.generator.trunk(x, attributes)

    def edit(self, x, target):
        return self.generator(x, target)

    def rate_factor(self, step, iterations):
        return linear_decay(step, iterations, self.settings["decay_after"])

    def discriminator_loss(self, x, attributes, target, mix):
        """WGAN-GP and classification of real images. `mix`: (N, 1, 1, 1) in [0, 1], for the penalty."""
        settings = self.settings
        with torch.no_grad():
            fake = self.generator(x, target)
        adversarial, penalty, logits = critic_losses(self.discriminator, x, fake, mix)
        classification = attribute_loss(logits, attributes)
        total = adversarial + settings["lambda_gp"] * penalty + settings["lambda_cls"] * classification
        return total, {
            "d_adv": adversarial.item(),
            "d_gp": penalty.item(),
            "d_cls": classification.item(),
        }

    def generator_loss(self, x, attributes, target):
        """Fool the discriminator, show the target's attributes, and give x back when asked for its own."""
        settings = self.settings
        fake = self.generator(x, target)
        realness, logits = self.discriminator(fake)
        adversarial = -realness.mean()
        classification = attribute_loss(logits, target)
        reconstruction = (x - self.generator(fake, attributes)).abs().mean()
        total = (
            adversarial + settings["lambda_cls"] * classification + settings["lambda_rec"] * reconstruction
        )
        shown = {
            "g_adv": adversarial.item(),
            "g_cls": classification.item(),
            "g_rec": reconstruction.item(),
        }
        if settings["lambda_identity"]:
            identity = (x - self.generator(x, attributes)).abs().mean()
            total = total + settings["lambda_identity"] * identity
            shown["g_identity"] = identity.item()
        return total, shown


REGISTER = {"stargan": StarGAN}
