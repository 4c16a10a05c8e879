"""HiSD (Li et al., "Image-to-image Translation via Hierarchical Style Disentanglement", CVPR 2021).

Attributes are grouped by tag (Bangs, Eyeglasses, HairColor). An encoder; per tag a translator that moves
the encoded image to a style, by adaptive instance normalisation and a mask; a decoder. The style comes from
noise through the mapper of tag and attribute (latent-guided) or from a reference image through the extractor
(reference-guided). The discriminator judges image, style and the tag-irrelevant conditions (Male, Young)
together, per tag and attribute. Losses: hinge with R1 on reals, reconstruction of x untranslated,
translated to its own style and translated there and back, reconstruction of the style. The networks that
are used are a running average of the generator, as in the public code.

At its published size (256 px) the generator has 19,043,939 parameters (encoder 595,520; decoder 595,651;
extractors 12,883,232; translators 3,167,808; mappers 1,801,728) and the discriminator 12,500,042; keys and
shapes are those of the public checkpoint. At 128 px the public discriminator and extractor are wider:
`discriminator_channels` 64, `discriminator_layers` 5, `discriminator_widest` 32. Unlike in the public
training, colours are not jittered, and grey hair counts as none of the three colours.

What TSDF attacks (its stage 1, as released) is the encoder: 256 x 64 x 64.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.deepfakes.model import DeepfakeModel
from holdfast.errors import HoldfastError
from holdfast.seeds import generator

SETTINGS = {
    "attributes": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 2,
        "uniqueItems": True,
        "default": ["Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"],
        "description": "Attributes that the model knows; those of no tag are its tag-irrelevant conditions.",
    },
    "tags": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "attributes"],
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "attributes": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 1,
                    "uniqueItems": True,
                },
            },
        },
        "default": [
            {"name": "Bangs", "attributes": ["Bangs"]},
            {"name": "Eyeglasses", "attributes": ["Eyeglasses"]},
            {"name": "HairColor", "attributes": ["Black_Hair", "Blond_Hair", "Brown_Hair"]},
        ],
        "description": "Tags in their order. One attribute: with and without it; several exclude each other.",
    },
    "edited": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "Tags whose edits are attacked and measured, of all that are trained; null: all.",
    },
    "guidance": {
        "enum": ["reference", "latent"],
        "default": "reference",
        "description": "Where the style of an edit comes from: a face of the validation split, or noise.",
    },
    "channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the encoder's first layer; its last has 4 times as many.",
    },
    "translator_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Width of the translators.",
    },
    "discriminator_channels": {
        "type": "integer",
        "minimum": 1,
        "default": 32,
        "description": "Width of the first layer of discriminator and extractor; it doubles layer by layer.",
    },
    "discriminator_widest": {
        "type": "integer",
        "minimum": 1,
        "default": 16,
        "description": "The widest layer, as a multiple of the first; the public 128 px settings: 32.",
    },
    "discriminator_layers": {
        "type": "integer",
        "minimum": 1,
        "default": 6,
        "description": "Halvings in discriminator and extractor.",
    },
    "mapper_channels": {"type": "integer", "minimum": 1, "default": 256, "description": "Of the mappers."},
    "style": {"type": "integer", "minimum": 1, "default": 256, "description": "Length of a style."},
    "noise": {"type": "integer", "minimum": 1, "default": 32, "description": "Length of the noise."},
    "mapper_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.01,
        "description": "Learning rate of the mappers, in units of generator_rate.",
    },
    "average": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0.99,
        "description": "Share that the running average keeps of itself in a step.",
    },
    "lambda_rec": {"type": "number", "minimum": 0, "default": 1, "description": "Weight of reconstruction."},
    "lambda_style": {"type": "number", "minimum": 0, "default": 1, "description": "Weight of the style's."},
    "lambda_adv": {"type": "number", "minimum": 0, "default": 1, "description": "Weight of realness."},
    "critic_steps": {
        "const": 1,
        "default": 1,
        "description": "Discriminator steps per generator step; they share their images.",
    },
}
TRANSLATOR_BLOCKS, MAPPER_LAYERS = 7, 2
EPS = 1e-5


def standardised(x, weight, bias):
    """(x - mean) / (sd + eps) * weight + bias, sd being unbiased; weight, bias: (1 or N, C, 1, 1)."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    mean = wide.mean(dim=(2, 3), keepdim=True)
    # Not the root of the variance: its slope is infinite where a channel is constant.
    deviation = wide.std(dim=(2, 3), keepdim=True)
    return ((wide - mean) / (deviation + EPS) * weight + bias).to(x.dtype)


class InstanceNorm(nn.Module):
    """Instance normalisation (N, C, h, w), with the public code's weights."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x):
        return standardised(x, self.weight[..., None], self.bias[..., None])


def activate(x):
    return F.leaky_relu(x, 0.2)


class Down(nn.Module):
    """Residual block that halves the image; with instance normalisation in the encoder."""

    def __init__(self, before, after, normalise=False):
        super().__init__()
        self.conv1 = nn.Conv2d(before, before, 3, 1, 1)
        self.conv2 = nn.Conv2d(before, after, 3, 1, 1)
        if normalise:
            self.in1, self.in2 = InstanceNorm(before), InstanceNorm(before)
        else:
            self.in1 = self.in2 = nn.Identity()
        self.sc = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x):
        h = F.avg_pool2d(self.conv1(activate(self.in1(x))), 2)
        # A 1 x 1 convolution and a mean commute; on the smaller image it costs a quarter.
        return (self.conv2(activate(self.in2(h))) + self.sc(F.avg_pool2d(x, 2))) / math.sqrt(2)


class Up(nn.Module):
    """Residual block that doubles the image, with instance normalisation."""

    def __init__(self, before, after):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, 1, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.in1, self.in2 = InstanceNorm(before), InstanceNorm(after)
        self.sc = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x):
        h = self.conv1(F.interpolate(activate(self.in1(x)), scale_factor=2))
        h = self.conv2(activate(self.in2(h)))
        return (h + F.interpolate(self.sc(x), scale_factor=2)) / math.sqrt(2)


class Middle(nn.Module):
    """Residual block whose normalisations take their weight and bias from the style."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.sc = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x, parameters):
        """`parameters`: (N, 4, C): bias and weight - 1 of the first normalisation, then of the second."""
        bias1, weight1, bias2, weight2 = parameters[..., None, None].unbind(1)
        h = self.conv1(activate(standardised(x, weight1 + 1, bias1)))
        h = self.conv2(activate(standardised(h, weight2 + 1, bias2)))
        return (h + self.sc(x)) / math.sqrt(2)


class Linear(nn.Module):
    """ReLU, then a linear layer."""

    def __init__(self, before, after):
        super().__init__()
        self.linear = nn.Linear(before, after)

    def forward(self, x):
        return self.linear(F.relu(x))


def halvings(settings):
    """A convolution, blocks that halve, the mean over what is left, (N, C, 1, 1); and C."""
    channels, widest = settings["discriminator_channels"], settings["discriminator_widest"]
    sizes = [channels * min(2**number, widest) for number in range(settings["discriminator_layers"] + 1)]
    blocks = [Down(before, after) for before, after in zip(sizes[:-1], sizes[1:], strict=True)]
    return [nn.Conv2d(3, channels, 1), *blocks, nn.AdaptiveAvgPool2d(1)], sizes[-1]


class Extractors(nn.Module):
    """Images to the styles of all tags, (N, T, style)."""

    def __init__(self, settings, tags):
        super().__init__()
        stack, width = halvings(settings)
        self.model = nn.Sequential(*stack, nn.Conv2d(width, settings["style"] * tags, 1))
        self.tags = tags

    def forward(self, x):
        return self.model(x).reshape(len(x), self.tags, -1)


class Translator(nn.Module):
    """A tag's change of what the encoder has made, under a mask of its own, as a style asks for."""

    def __init__(self, encoded, channels, style):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(encoded, channels, 1), *[Middle(channels) for _ in range(TRANSLATOR_BLOCKS)]
        )
        self.style_to_params = nn.Linear(style, TRANSLATOR_BLOCKS * 4 * channels)
        self.features = nn.Sequential(nn.Conv2d(channels, encoded, 1))
        self.masks = nn.Sequential(nn.Conv2d(channels, encoded, 1), nn.Sigmoid())

    def forward(self, encoded, style):
        """Encoded images (N, C, h, w) and styles (N, style) to encoded images."""
        parameters = self.style_to_params(style).reshape(len(style), TRANSLATOR_BLOCKS, 4, -1)
        h = self.model[0](encoded)
        for number, block in enumerate(self.model[1:]):
            h = block(h, parameters[:, number])
        mask = self.masks(h)
        return self.features(h) * mask + encoded * (1 - mask)


class Mapper(nn.Module):
    """A tag's latent-guided styles: of noise, for each of its attributes."""

    def __init__(self, noise, channels, style, attributes):
        super().__init__()
        self.pre_model = nn.Sequential(
            nn.Linear(noise, channels), *[Linear(channels, channels) for _ in range(MAPPER_LAYERS)]
        )
        self.post_models = nn.ModuleList(
            nn.Sequential(
                *[Linear(channels, channels) for _ in range(MAPPER_LAYERS)], nn.Linear(channels, style)
            )
            for _ in range(attributes)
        )

    def forward(self, noise, attribute):
        """Noise (N, noise) to the styles (N, style) of an attribute, by its number within the tag."""
        return self.post_models[attribute](self.pre_model(noise))


class Generator(nn.Module):
    """Encoder, decoder, and by tag: extractor, translator, mapper. `attributes`: how many each tag has."""

    def __init__(self, settings, attributes):
        super().__init__()
        width, style = settings["channels"], settings["style"]
        sizes = [width, 2 * width, 4 * width]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 1), *[Down(a, b, True) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        )
        self.decoder = nn.Sequential(
            *[Up(b, a) for a, b in reversed(list(zip(sizes[:-1], sizes[1:], strict=True)))],
            nn.Conv2d(width, 3, 1),
        )
        self.extractors = Extractors(settings, len(attributes))
        self.translators = nn.ModuleList(
            Translator(sizes[-1], settings["translator_channels"], style) for _ in attributes
        )
        self.mappers = nn.ModuleList(
            Mapper(settings["noise"], settings["mapper_channels"], style, count) for count in attributes
        )
        self.apply(kaiming)


class Discriminator(nn.Module):
    """How real an image (N, 3, S, S) is as one of an attribute of a tag, given its style and the attributes
    that condition the tag.
    """

    def __init__(self, settings, attributes, conditions):
        super().__init__()
        stack, width = halvings(settings)
        self.conv = nn.Sequential(*stack)
        self.fcs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width + settings["style"] + conditions, 2 * count, 1))
            for count in attributes
        )
        self.apply(kaiming)

    def forward(self, x, style, conditions, tag, attribute):
        """Realness (N, 2) as an image of `attribute`: of a translated one, and of one translated back."""
        told = torch.cat([self.conv(x), style[..., None, None], conditions[..., None, None]], dim=1)
        return self.fcs[tag](told).reshape(len(x), 2, -1)[:, :, attribute]


def kaiming(module):
    """The public initialisation."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.01)


class References(nn.Module):
    """The reference image of every tag's every attribute, uint8 (K, 3, S, S), in the order of the tags."""

    def __init__(self, count, size):
        super().__init__()
        self.register_buffer("images", torch.zeros(count, 3, size, size, dtype=torch.uint8))


def order_of(attributes, tags):
    """Attributes and tags in their order."""
    return [*attributes, *(f"{tag['name']}={'/'.join(tag['attributes'])}" for tag in tags)]


class HiSD(DeepfakeModel):
    """The deepfake model as the rest of Holdfast sees it (interface: deepfakes/model.py).

    Which style an edit takes is fixed, so that it is a function of the image: that of a reference face
    with the wanted attribute, the last such of the validation split, or that of one noise, the same for
    every image.
    """

    title = "HiSD"
    paper = "Li et al., CVPR 2021"
    licence = "CC BY-NC-SA 4.0 (code and weights)"
    public_parts = {"generator": "gen", "average": "gen_test", "discriminator": "dis"}
    public_order = order_of(SETTINGS["attributes"]["default"], SETTINGS["tags"]["default"])
    clip_norm = 100.0

    def __init__(self, settings, image_size):
        self.settings, self.image_size = settings, image_size
        self.attributes = tuple(settings["attributes"])
        self.tags = {tag["name"]: tuple(tag["attributes"]) for tag in settings["tags"]}
        named = [tag["name"] for tag in settings["tags"]]
        grouped = [name for tag in settings["tags"] for name in tag["attributes"]]
        wrong = sorted(set(grouped) - set(self.attributes))
        wrong += [name for names in (named, grouped) for name in names if names.count(name) > 1]
        if wrong:
            raise HoldfastError(
                "the tags of HiSD do not fit its attributes",
                found=f"{wrong[0]} in {', '.join(named)}",
                expected=f"each tag once, with attributes of its own, of {', '.join(self.attributes)}",
                repair="mend deepfakes.hisd.tags or deepfakes.hisd.attributes",
            )
        self.edited = settings["edited"] or list(self.tags)
        step = max(4, 2 ** settings["discriminator_layers"])
        # The encoded image has a quarter of the side, and a single pixel has no deviation.
        if image_size % step or image_size < 8:
            raise HoldfastError(
                f"HiSD does not fit images of {image_size} px",
                expected=f"a multiple of {step} for {settings['discriminator_layers']} discriminator layers, "
                "at least 8",
                repair="change image_size, or deepfakes.hisd.discriminator_layers",
            )
        # A tag of one attribute has two values, with and without it, in this order.
        counts = [max(2, len(known)) for known in self.tags.values()]
        self.columns = [[self.attributes.index(name) for name in known] for known in self.tags.values()]
        self.conditions = [i for i, name in enumerate(self.attributes) if name not in grouped]
        self.generator = Generator(settings, counts)
        self.average = copy.deepcopy(self.generator)
        self.discriminator = Discriminator(settings, counts, len(self.conditions))
        self.references = References(sum(counts), image_size)
        self.firsts = [sum(counts[:tag]) for tag in range(len(counts))]
        self.counts = counts

    @property
    def networks(self):
        return {
            "generator": self.generator,
            "average": self.average,
            "discriminator": self.discriminator,
            "references": self.references,
        }

    @property
    def label_order(self):
        return order_of(self.attributes, self.settings["tags"])

    @property
    def target_names(self):
        return [name for tag, known in self.tags.items() if tag in self.edited for name in known]

    def targets(self, attributes):
        """Labels (T, N, A) of every edit: a tag of one attribute is flipped, another gets one of its own.

        NaN: the attributes of other tags and the conditions, which are left alone.
        """
        targets = []
        for tag, columns in zip(self.tags, self.columns, strict=True):
            for column in columns if tag in self.edited else ():
                target = torch.full_like(attributes, torch.nan)
                target[:, columns] = 0
                target[:, column] = 1 - attributes[:, column] if len(columns) == 1 else 1
                targets.append(target)
        return torch.stack(targets)

    def labels_in(self, network, shapes):
        """See DeepfakeModel: the generator has a mapper for every tag, with a branch for every value."""
        branches = {tuple(key.split(".")[1:4:2]) for key in shapes if ".post_models." in key}
        tags = [tag for tag, _ in branches]
        counts = [str(tags.count(tag)) for tag in sorted(set(tags), key=int)]
        return f"tags of {', '.join(counts)} values" if counts else None

    def prepare(self, faces):
        """Choose the reference faces: the last with each attribute, unseen ones before training ones.

        The first of the validation split are those that perturbations are learnt on.

        Raises:
            HoldfastError: no face has one of them.
        """
        if self.settings["guidance"] == "latent":
            return
        positions = [*reversed(faces.positions("val")), *faces.positions("train")]
        values = self._values(faces.labels(positions, self.attributes))
        images = []
        for tag, (name, known) in enumerate(self.tags.items()):
            for value in range(self.counts[tag]):
                rows = (values[:, tag] == value).nonzero().flatten()
                if not len(rows):
                    raise HoldfastError(
                        f"no face of {faces.folder} can be HiSD's reference for {name}",
                        found=f"none {'without ' if value and len(known) == 1 else 'with '}"
                        f"{known[value % len(known)]}",
                        expected="one or more",
                        repair="use more faces, or set deepfakes.hisd.guidance: latent",
                    )
                images.append(faces.pixels([positions[rows[0]]]))
        self.references.images.copy_(((torch.cat(images) + 1) * 127.5).round())

    def features(self, x, attributes):
        """The attacked encoder; it knows no attributes."""
        return self.average.encoder(x)

    def edit(self, x, target):
        """Move every tag that `target` has values for (not NaN) to the style of these values."""
        encoded, values = self.average.encoder(x), self._values(target)
        for tag in range(len(self.tags)):
            rows = (values[:, tag] >= 0).nonzero().flatten()
            if len(rows):
                styles = self._styles(tag)[values[rows, tag]]
                if len(rows) == len(x):
                    encoded = self.average.translators[tag](encoded, styles)
                else:
                    moved = self.average.translators[tag](encoded[rows], styles)
                    encoded = encoded.index_copy(0, rows, moved)
        return self.average.decoder(encoded)

    def _values(self, labels):
        """(N, T) of the number of each tag's value in labels (N, A); -1: none, several, or NaN."""
        values = []
        for columns in self.columns:
            own = labels[:, columns]
            if len(columns) == 1:
                value = torch.where(own[:, 0] == 1, 0, torch.where(own[:, 0] == 0, 1, -1))
            else:
                value = torch.where((own == 1).sum(1) == 1, (own == 1).int().argmax(1), -1)
            values.append(value)
        return torch.stack(values, dim=1)

    def _pools(self, labels):
        """{(tag, value): rows of `labels` that have it}, in order; those that none has are left out."""
        values = self._values(labels).numpy()
        pools = {
            (tag, value): np.flatnonzero(values[:, tag] == value)
            for tag, count in enumerate(self.counts)
            for value in range(count)
        }
        return {key: rows for key, rows in pools.items() if len(rows)}

    def obstacle(self, labels):
        """See DeepfakeModel: a face moves from one value of a tag to another that some face has."""
        tags = [tag for tag, _ in self._pools(labels)]
        if len(set(tags)) < len(tags):
            return None
        return f"training faces of which no two differ in one of {', '.join(self.tags)}"

    def _styles(self, tag):
        """(values of the tag, style): what edits move to."""
        first, count = self.firsts[tag], self.counts[tag]
        if self.settings["guidance"] == "reference":
            images = self.references.images[first : first + count].float() / 127.5 - 1
            return self.average.extractors(images)[:, tag]
        noise = torch.randn(1, self.settings["noise"], generator=generator("hisd", "noise of edits"))
        noise = noise.to(self.references.images.device)
        return torch.cat([self.average.mappers[tag](noise, value) for value in range(count)])

    def optimisers(self, settings):
        """Adam(0, 0.99); the mappers learn a hundred times slower than the rest of the generator."""
        slow = list(self.generator.mappers.parameters())
        others = [p for name, p in self.generator.named_parameters() if not name.startswith("mappers.")]
        rate, betas = settings["generator_rate"], (0.0, 0.99)
        groups = [{"params": others}, {"params": slow, "lr": rate * settings["mapper_rate"]}]
        return {
            "generator": torch.optim.Adam(groups, rate, betas, fused=True),
            "discriminator": torch.optim.Adam(
                self.discriminator.parameters(), settings["discriminator_rate"], betas, fused=True
            ),
        }

    def rate_factor(self, step, iterations):
        """Constant rates."""
        return 1.0

    def training_step(self, batches, step, random, settings):
        """A tag, a value and another; a generator step on faces with the first, then the discriminator's."""
        # Rows of the faces by (tag, value), and the pairs of values that faces have on both sides.
        pools = batches.once("pools", lambda: self._pools(batches.labels))
        moves = [(tag, a, b) for tag, a in pools for other, b in pools if tag == other and a != b]
        tags = sorted({tag for tag, _, _ in moves})
        tag = tags[torch.randint(len(tags), (), generator=random)]
        moves = [move for move in moves if move[0] == tag]
        _, value, aim = moves[torch.randint(len(moves), (), generator=random)]
        rows = pools[tag, value]
        x, attributes = batches.at(step, rows, tag, value)
        conditions = 2 * attributes[:, self.conditions] - 1
        noise = torch.randn(len(x), settings["noise"], generator=random).to(x.device)
        self.discriminator.requires_grad_(False)
        loss, shown, made = self.generator_loss(x, conditions, tag, value, aim, noise)
        yield "generator", loss, shown
        self.discriminator.requires_grad_(True)
        yield "discriminator", *self.discriminator_loss(x, conditions, tag, value, aim, *made)
        with torch.no_grad():
            mixing = 1 - settings["average"]
            for own, other in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                own.lerp_(other, mixing)

    def generator_loss(self, x, conditions, tag, value, aim, noise):
        """The loss, the log, and (translated, translated back, own style, aimed style), detached."""
        g, settings = self.generator, self.settings
        translate = g.translators[tag]
        encoded = g.encoder(x)
        style, style_aimed = g.extractors(x)[:, tag], g.mappers[tag](noise, aim)
        translated = g.decoder(translate(encoded, style_aimed))
        back = g.decoder(translate(g.encoder(translated), style))
        reconstruction = (
            F.l1_loss(g.decoder(encoded), x)
            + F.l1_loss(g.decoder(translate(encoded, style)), x)
            + F.l1_loss(back, x)
        )
        of_style = F.l1_loss(g.extractors(translated)[:, tag], style_aimed)
        # As in the public code, no gradient of realness reaches the styles of fakes.
        judge = self.discriminator
        adversarial = (
            judge(x, style, conditions, tag, value).sum(1).mean()
            - judge(translated, style_aimed.detach(), conditions, tag, aim)[:, 0].mean()
            - judge(back, style.detach(), conditions, tag, value)[:, 1].mean()
        )
        loss = (
            settings["lambda_adv"] * adversarial
            + settings["lambda_style"] * of_style
            + settings["lambda_rec"] * reconstruction
        )
        shown = {"g_adv": adversarial.item(), "g_style": of_style.item(), "g_rec": reconstruction.item()}
        return loss, shown, [made.detach() for made in (translated, back, style, style_aimed)]

    def discriminator_loss(self, x, conditions, tag, value, aim, translated, back, style, style_aimed):
        """Hinge loss of reals and fakes, and R1 on the reals."""
        x = x.detach().requires_grad_(True)
        real = self.discriminator(x, style, conditions, tag, value)
        penalty = 0.0
        for column in (0, 1):
            (slope,) = torch.autograd.grad(real[:, column].sum(), x, create_graph=True)
            penalty = penalty + slope.square().flatten(1).sum(1).mean()
        fake = self.discriminator(translated, style_aimed, conditions, tag, aim)[:, 0]
        fake_back = self.discriminator(back, style, conditions, tag, value)[:, 1]
        hinge = F.relu(1 - real).mean(0).sum() + F.relu(1 + fake).mean() + F.relu(1 + fake_back).mean()
        return hinge + penalty, {"d_adv": hinge.item(), "d_r1": penalty.item()}


REGISTER = {"hisd": HiSD}
