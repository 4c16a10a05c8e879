"""AttGAN (He et al., "AttGAN: Facial Attribute Editing by Only Changing What You Want", IEEE TIP 2019).

An encoder of five stride-2 layers; a decoder that is told the wanted attributes, as +-intensity maps beside
the deepest features, and gets one encoder map by a shortcut. The discriminator shares its convolutions
between a WGAN-GP critic and an attribute classifier. Losses: adversarial, classification (10 for the
generator, 1 for the discriminator), reconstruction with the image's own attributes (100); penalty 10.

At its published size (64 channels, 5 layers, 13 attributes) the generator has 43,352,707 parameters (its
encoder 11,148,160) and the discriminator 44,718,990 at 128 px and 145,382,286 at 256 px; keys and shapes
are those of the public PyTorch checkpoint, which brings the generator only.

What TSDF attacks (its stage 1, as released) is the last encoder map: 1024 x 8 x 8 at 256 px. Attacked and
measured, the model is in eval mode, with the running statistics of its batch normalisation, as in the
released pipelines.
"""

import torch
import torch.nn.functional as F
from torch import nn

from holdfast.deepfakes.losses import critic_losses
from holdfast.deepfakes.model import DeepfakeModel
from holdfast.deepfakes.stargan import HAIR, with_label_maps
from holdfast.errors import HoldfastError

SETTINGS = {
    "attributes": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": [
            "Bald",
            "Bangs",
            "Black_Hair",
            "Blond_Hair",
            "Brown_Hair",
            "Bushy_Eyebrows",
            "Eyeglasses",
            "Male",
            "Mouth_Slightly_Open",
            "Mustache",
            "No_Beard",
            "Pale_Skin",
            "Young",
        ],
        "description": "Attributes that the model edits, in the order of its labels.",
    },
    "channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the first layer of encoder and decoder; the widest has 16 times as many.",
    },
    "layers": {
        "type": "integer",
        "minimum": 2,
        "default": 5,
        "description": "Stride-2 layers of encoder and decoder; 2 to this power divides the image side.",
    },
    "shortcuts": {
        "type": "integer",
        "minimum": 0,
        "default": 1,
        "description": "Decoder layers that get the encoder map of their size.",
    },
    "injections": {
        "type": "integer",
        "minimum": 0,
        "default": 0,
        "description": "Decoder layers, besides the first, that are told the attributes.",
    },
    "discriminator_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the discriminator's first layer.",
    },
    "discriminator_layers": {
        "type": "integer",
        "minimum": 1,
        "default": 5,
        "description": "Stride-2 layers of the discriminator.",
    },
    "hidden": {
        "type": "integer",
        "minimum": 1,
        "default": 1024,
        "description": "Width of the hidden layer of critic and classifier.",
    },
    "intensity": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.5,
        "description": "An attribute is told to the decoder as plus or minus this.",
    },
    "test_intensity": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.5,
        "description": "The same for the edited attribute when a trained model is used.",
    },
    "lambda_rec": {
        "type": "number",
        "minimum": 0,
        "default": 100,
        "description": "Weight of reconstruction.",
    },
    "lambda_cls": {
        "type": "number",
        "minimum": 0,
        "default": 10,
        "description": "Weight of classification for the generator.",
    },
    "lambda_cls_real": {
        "type": "number",
        "minimum": 0,
        "default": 1,
        "description": "Weight of classification for the discriminator.",
    },
    "lambda_gp": {"type": "number", "minimum": 0, "default": 10, "description": "Weight of the penalty."},
    "decay_after": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "Share of the iterations after which the rates fall to a tenth.",
    },
    "mirror": {
        "type": "boolean",
        "default": False,
        "description": "Faces are mirrored at random; the public PyTorch training does not.",
    },
}
# An attribute that is switched on switches off those that exclude it.
EXCLUDED = {
    "Bald": ("Bangs",),
    "Receding_Hairline": ("Bangs",),
    "Bangs": ("Bald", "Receding_Hairline"),
    **{name: tuple(other for other in HAIR if other != name) for name in HAIR},
    "Straight_Hair": ("Wavy_Hair",),
    "Wavy_Hair": ("Straight_Hair",),
    "Mustache": ("No_Beard",),
    "No_Beard": ("Mustache",),
}
WIDEST = 16  # times the first layer


class Block(nn.Module):
    """A convolution (or linear layer) with its normalisation and activation, as `layers`."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*[layer for layer in layers if layer is not None])

    def forward(self, x):
        return self.layers(x)


def widths(channels, layers):
    """Channels of each layer: they double up to WIDEST times `channels`."""
    return [channels * min(2**number, WIDEST) for number in range(layers)]


class Generator(nn.Module):
    """(N, 3, S, S) in [-1, 1] and told attributes (N, A) to (N, 3, S, S) in [-1, 1]."""

    def __init__(self, channels=64, layers=5, attributes=13, shortcuts=1, injections=0):
        super().__init__()
        self.shortcuts, self.injections = min(shortcuts, layers - 1), min(injections, layers - 1)
        sizes = widths(channels, layers)
        self.enc_layers = nn.ModuleList(
            Block(nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU())
            for before, after in zip([3, *sizes[:-1]], sizes, strict=True)
        )
        self.dec_layers = nn.ModuleList()
        before = sizes[-1] + attributes
        for number, after in enumerate(sizes[:0:-1]):
            self.dec_layers.append(
                Block(
                    nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
                )
            )
            before = after
            before += sizes[-2 - number] if number < self.shortcuts else 0
            before += attributes if number < self.injections else 0
        self.dec_layers.append(Block(nn.ConvTranspose2d(before, 3, 4, 2, 1), nn.Tanh()))

    def encode(self, x):
        """The maps of all encoder layers, the deepest last."""
        maps = []
        for layer in self.enc_layers:
            x = layer(x)
            maps.append(x)
        return maps

    def decode(self, maps, told):
        """(N, 3, S, S) in [-1, 1] of :meth:`encode`'s maps and told attributes (N, A)."""
        h = with_label_maps(maps[-1], told)
        for number, layer in enumerate(self.dec_layers):
            h = layer(h)
            if number < self.shortcuts:
                h = torch.cat([h, maps[-2 - number]], dim=1)
            if number < self.injections:
                h = with_label_maps(h, told)
        return h

    def forward(self, x, told):
        return self.decode(self.encode(x), told)


class Discriminator(nn.Module):
    """(N, 3, S, S) in [-1, 1] to realness (N, 1) and attribute logits (N, A)."""

    def __init__(self, image_size=128, channels=64, layers=5, attributes=13, hidden=1024):
        super().__init__()
        sizes = widths(channels, layers)
        self.conv = nn.Sequential(
            *[
                Block(
                    nn.Conv2d(before, after, 4, 2, 1, bias=False),
                    nn.InstanceNorm2d(after, affine=True),
                    nn.LeakyReLU(),
                )
                for before, after in zip([3, *sizes[:-1]], sizes, strict=True)
            ]
        )
        flat = sizes[-1] * (image_size // 2**layers) ** 2
        self.fc_adv = nn.Sequential(Block(nn.Linear(flat, hidden), nn.ReLU()), Block(nn.Linear(hidden, 1)))
        self.fc_cls = nn.Sequential(
            Block(nn.Linear(flat, hidden), nn.ReLU()), Block(nn.Linear(hidden, attributes))
        )

    def forward(self, x):
        # In the order of channels, rows, columns, whatever the layout in memory.
        h = self.conv(x).contiguous().flatten(1)
        return self.fc_adv(h), self.fc_cls(h)


class AttGAN(DeepfakeModel):
    """The deepfake model as the rest of Holdfast sees it (interface: deepfakes/model.py)."""

    title = "AttGAN"
    paper = "He et al., IEEE TIP 2019"
    licence = "MIT (code); weights for research on CelebA's terms"
    public_parts = {"generator": "G", "discriminator": "D"}
    public_order = SETTINGS["attributes"]["default"]

    def __init__(self, settings, image_size):
        self.settings, self.image_size = settings, image_size
        step = 2 ** max(settings["layers"], settings["discriminator_layers"])
        # Instance normalisation needs more than one value of a channel.
        if image_size % step or image_size < 2 * 2 ** settings["discriminator_layers"]:
            raise HoldfastError(
                f"AttGAN does not fit images of {image_size} px",
                expected=f"a multiple of {step}, at least {2 * 2 ** settings['discriminator_layers']}",
                repair="change image_size, or the model's layers and discriminator_layers",
            )
        self.attributes = tuple(settings["attributes"])
        self.generator = Generator(
            settings["channels"],
            settings["layers"],
            len(self.attributes),
            settings["shortcuts"],
            settings["injections"],
        )
        self.discriminator = Discriminator(
            image_size,
            settings["discriminator_channels"],
            settings["discriminator_layers"],
            len(self.attributes),
            settings["hidden"],
        )

    @property
    def networks(self):
        return {"generator": self.generator, "discriminator": self.discriminator}

    @property
    def target_names(self):
        return list(self.attributes)

    def targets(self, attributes):
        """Labels (T, N, A) of every edit: the attribute flipped; switched on, it excludes others.

        Where `test_intensity` is not `intensity`, the flipped label lies beyond 0 and 1 accordingly.
        """
        beyond = self.settings["test_intensity"] / self.settings["intensity"]
        targets = []
        for position, name in enumerate(self.attributes):
            target = attributes.clone()
            wanted = 1 - target[:, position]
            for other in set(EXCLUDED.get(name, ())) & set(self.attributes):
                target[:, self.attributes.index(other)] *= 1 - wanted
            target[:, position] = (1 + (2 * wanted - 1) * beyond) / 2
            targets.append(target)
        return torch.stack(targets)

    def told(self, labels):
        """Labels of 0 and 1 as the decoder is told them."""
        return (2 * labels - 1) * self.settings["intensity"]

    def labels_in(self, network, shapes):
        """See DeepfakeModel."""
        if network == "discriminator":
            count = shapes["fc_cls.1.layers.0.weight"][0]
        else:
            deepest = max(int(key.split(".")[1]) for key in shapes if key.startswith("enc_layers."))
            maps = shapes[f"enc_layers.{deepest}.layers.0.weight"][0]
            count = shapes["dec_layers.0.layers.0.weight"][0] - maps
        return f"{count} attributes"

    def features(self, x, attributes):
        """The attacked encoder; it knows no attributes."""
        return self.generator.encode(x)[-1]

    def edit(self, x, target):
        return self.generator(x, self.told(target))

    def edits(self, x, attributes):
        """(N, T, 3, S, S): every edit, with one run of the encoder."""
        maps = self.generator.encode(x)
        edits = [self.generator.decode(maps, self.told(target)) for target in self.targets(attributes)]
        return torch.stack(edits, dim=1)

    def rate_factor(self, step, iterations):
        """A tenth towards the end; in the public schedule, in the second half."""
        return 1.0 if step < iterations * self.settings["decay_after"] else 0.1

    def discriminator_loss(self, x, attributes, target, mix):
        """WGAN-GP and classification of real images. `mix`: (N, 1, 1, 1) in [0, 1], for the penalty."""
        settings = self.settings
        with torch.no_grad():
            fake = self.edit(x, target)
        adversarial, penalty, logits = critic_losses(self.discriminator, x, fake, mix)
        classification = F.binary_cross_entropy_with_logits(logits, attributes)
        total = adversarial + settings["lambda_gp"] * penalty + settings["lambda_cls_real"] * classification
        return total, {
            "d_adv": adversarial.item(),
            "d_gp": penalty.item(),
            "d_cls": classification.item(),
        }

    def generator_loss(self, x, attributes, target):
        """Fool the discriminator, show the target's attributes, and give x back when asked for its own."""
        settings, maps = self.settings, self.generator.encode(x)
        realness, logits = self.discriminator(self.generator.decode(maps, self.told(target)))
        adversarial = -realness.mean()
        classification = F.binary_cross_entropy_with_logits(logits, target)
        reconstruction = (x - self.generator.decode(maps, self.told(attributes))).abs().mean()
        total = (
            adversarial + settings["lambda_cls"] * classification + settings["lambda_rec"] * reconstruction
        )
        return total, {
            "g_adv": adversarial.item(),
            "g_cls": classification.item(),
            "g_rec": reconstruction.item(),
        }


REGISTER = {"attgan": AttGAN}
