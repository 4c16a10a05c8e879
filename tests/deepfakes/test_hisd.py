"""HiSD: the published network to the parameter, its blocks and losses written out, its styles."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.hisd import HiSD, standardised
from holdfast.deepfakes.model import freeze, load, save
from holdfast.deepfakes.training import Batches, train_deepfake
from holdfast.errors import HoldfastError
from holdfast.seeds import generator

NAN = float("nan")
NAMES = ("test", 0)
VALUES = [2, 2, 3]  # with and without a fringe, with and without glasses, three hair colours


@pytest.fixture
def tiny(tiny_of):
    return tiny_of("hisd")


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(3)
    return torch.rand(4, 3, 16, 16, generator=random) * 2 - 1


@pytest.fixture
def model(tiny, tagged_faces, randomised):
    """Frozen, with references, and weights among which none is 0 or 1."""
    made = tiny()
    made.prepare(tagged_faces)
    for number, network in enumerate((made.generator, made.average, made.discriminator)):
        randomised(network, number)
    return freeze(made)


#                      Bangs glasses black blond brown male young
LABELS = torch.tensor(
    [[1.0, 0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]]
)


# Architecture


def test_parameter_counts_are_those_of_the_public_networks(published, count):
    model = published("hisd", 256)
    g = model.generator
    parts = (g.encoder, g.decoder, g.extractors, g.translators, g.mappers)
    assert [count(part) for part in parts] == [595_520, 595_651, 12_883_232, 3_167_808, 1_801_728]
    assert count(g) == count(model.average) == 19_043_939
    assert count(model.discriminator) == 12_500_042 and count(model.references) == 0


def layer(name, *shape, bias=True):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def block(name, first, second, skip, norms=()):
    """Two 3 x 3 convolutions and a skip, each (to, from), and the widths of the normalisations."""
    entries = layer(f"{name}.conv1", *first, 3, 3) | layer(f"{name}.conv2", *second, 3, 3)
    entries |= layer(f"{name}.sc", *skip, 1, 1, bias=False)
    for number, width in enumerate(norms, 1):
        entries |= {f"{name}.in{number}.{kind}": (1, width, 1) for kind in ("weight", "bias")}
    return entries


def halvings(name):
    """Entries of discriminator and extractor down to their last block."""
    sizes = [32, 64, 128, 256, 512, 512, 512]
    entries = layer(f"{name}.0", 32, 3, 1, 1)
    for number, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True), 1):
        entries |= block(f"{name}.{number}", (before, before), (after, before), (after, before))
    return entries


def test_generator_has_the_keys_of_the_public_checkpoint(published, shapes):
    expected = layer("encoder.0", 64, 3, 1, 1)
    for number, (before, after) in ((1, (64, 128)), (2, (128, 256))):
        pairs = (before, before), (after, before), (after, before)
        expected |= block(f"encoder.{number}", *pairs, (before, before))
    for number, (before, after) in ((0, (256, 128)), (1, (128, 64))):
        pairs = (after, before), (after, after), (after, before)
        expected |= block(f"decoder.{number}", *pairs, (before, after))
    expected |= layer("decoder.2", 3, 64, 1, 1)
    expected |= halvings("extractors.model") | layer("extractors.model.8", 3 * 256, 512, 1, 1)
    for tag, values in enumerate(VALUES):
        name = f"translators.{tag}"
        expected |= layer(f"{name}.model.0", 64, 256, 1, 1)
        for number in range(1, 8):
            expected |= block(f"{name}.model.{number}", (64, 64), (64, 64), (64, 64))
        expected |= layer(f"{name}.style_to_params", 7 * 4 * 64, 256)
        for head in ("features", "masks"):
            expected |= layer(f"{name}.{head}.0", 256, 64, 1, 1)
        name = f"mappers.{tag}"
        expected |= layer(f"{name}.pre_model.0", 256, 32)
        for number in (1, 2):
            expected |= layer(f"{name}.pre_model.{number}.linear", 256, 256)
        for value in range(values):
            for number in (0, 1):
                expected |= layer(f"{name}.post_models.{value}.{number}.linear", 256, 256)
            expected |= layer(f"{name}.post_models.{value}.2", 256, 256)
    model = published("hisd", 256)
    assert shapes(model.generator) == expected and shapes(model.average) == expected


def test_discriminator_has_the_keys_of_the_public_checkpoint(published, shapes):
    expected = halvings("conv")
    for tag, values in enumerate(VALUES):
        # Image, style, and the two conditions; an answer for translations and one for cycles.
        expected |= layer(f"fcs.{tag}.0", 2 * values, 512 + 256 + 2, 1, 1)
    assert shapes(published("hisd", 256).discriminator) == expected


def test_the_public_networks_of_128_px_are_wider(published, count):
    wider = {"discriminator_channels": 64, "discriminator_layers": 5, "discriminator_widest": 32}
    model = published("hisd", 128, **wider)
    widths = [64, 128, 256, 512, 1024, 2048]
    for stack in (model.discriminator.conv, model.generator.extractors.model):
        assert [stack[0].out_channels, *(block.conv2.out_channels for block in list(stack)[1:6])] == widths
    assert model.generator.extractors.model[-1].weight.shape == (3 * 256, 2048, 1, 1)


def test_a_tag_stands_once(tiny):
    tags = [{"name": "A", "attributes": [name]} for name in ("Bangs", "Eyeglasses")]
    with pytest.raises(HoldfastError, match="A in A, A"):
        tiny(tags=tags)


def test_shapes_at_the_published_size(published):
    model = published("hisd", 256)
    x = torch.empty(2, 3, 256, 256, device="meta")
    encoded = model.features(x, None)
    assert encoded.shape == (2, 256, 64, 64)
    assert model.average.extractors(x).shape == (2, 3, 256)
    style = model.average.mappers[2](torch.empty(2, 32, device="meta"), 1)
    assert style.shape == (2, 256)
    assert model.average.translators[2](encoded, style).shape == encoded.shape
    assert model.average.decoder(encoded).shape == x.shape
    assert model.references.images.shape == (7, 3, 256, 256)
    assert model.discriminator(x, style, torch.empty(2, 2, device="meta"), 2, 1).shape == (2, 2)


def plain_norm(x, weight, bias):
    """(x - mean) / (sd + eps): sd over n - 1, eps outside the root. weight, bias: (1 or N, C, 1)."""
    flat = x.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    sd = (centred.square().sum(2, keepdim=True) / (flat.shape[2] - 1)).sqrt()
    return (centred / (sd + 1e-5) * weight + bias).reshape(x.shape)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)


def halved(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def doubled(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def plain_down(block, x, normalised):
    h = plain_norm(x, block.in1.weight, block.in1.bias) if normalised else x
    h = halved(conv(block.conv1, leaky(h)))
    h = plain_norm(h, block.in2.weight, block.in2.bias) if normalised else h
    return (conv(block.conv2, leaky(h)) + halved(conv(block.sc, x))) / 2**0.5


def plain_up(block, x):
    h = conv(block.conv1, doubled(leaky(plain_norm(x, block.in1.weight, block.in1.bias))))
    h = conv(block.conv2, leaky(plain_norm(h, block.in2.weight, block.in2.bias)))
    return (h + doubled(conv(block.sc, x))) / 2**0.5


def plain_encoder(encoder, x):
    return plain_down(encoder[2], plain_down(encoder[1], conv(encoder[0], x), True), True)


def plain_decoder(decoder, encoded):
    return conv(decoder[2], plain_up(decoder[1], plain_up(decoder[0], encoded)))


def plain_translator(translator, encoded, style):
    parameters = style @ translator.style_to_params.weight.T + translator.style_to_params.bias
    h, width, offset = conv(translator.model[0], encoded), translator.model[0].weight.shape[0], 0
    for block in list(translator.model)[1:]:
        y = h
        for layer in (block.conv1, block.conv2):
            bias = parameters[:, offset : offset + width, None]
            weight = parameters[:, offset + width : offset + 2 * width, None] + 1
            y = conv(layer, leaky(plain_norm(y, weight, bias)))
            offset += 2 * width
        h = (y + conv(block.sc, h)) / 2**0.5
    assert offset == parameters.shape[1]
    mask = 1 / (1 + torch.exp(-conv(translator.masks[0], h)))
    return conv(translator.features[0], h) * mask + encoded * (1 - mask)


def plain_halvings(stack, x, layers=2):
    h = conv(stack[0], x)
    for number in range(1, layers + 1):
        h = plain_down(stack[number], h, False)
    return h.mean((2, 3))


def plain_styles(extractors, x):
    last = extractors.model[4]
    styles = plain_halvings(extractors.model, x) @ last.weight.flatten(1).T + last.bias
    return styles.reshape(len(x), 3, -1)


def plain_mapper(mapper, noise, value):
    def linear(layer, h):
        return h @ layer.weight.T + layer.bias

    h = linear(mapper.pre_model[0], noise)
    post = mapper.post_models[value]
    for layer in (*list(mapper.pre_model)[1:], *list(post)[:-1]):
        h = linear(layer.linear, h.clamp(min=0))
    return linear(post[2], h)


def plain_judge(discriminator, x, style, conditions, tag, value):
    told = torch.cat([plain_halvings(discriminator.conv, x), style, conditions], dim=1)
    last = discriminator.fcs[tag][0]
    answers = told @ last.weight.flatten(1).T + last.bias
    # For each of (translation, cycle), one answer for every value.
    return torch.stack([answers[:, value], answers[:, VALUES[tag] + value]], dim=1)


def close(found, expected):
    return expected.std() > 1e-3 and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_normalisation_takes_the_unbiased_deviation_and_adds_eps_to_it():
    # Deviations so small, and maps so small, that eps and n - 1 are seen.
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(4)) * 2e-5
    weight, bias = torch.tensor([[2.0], [0.5], [1]])[None], torch.tensor([[0.0], [1], [-1]])[None]
    found = standardised(x, weight[..., None], bias[..., None])
    assert torch.allclose(found, plain_norm(x, weight, bias), atol=1e-4)
    flat = x.flatten(2).double()
    ours = (found[0, 2].flatten() + 1).double()
    assert torch.allclose(
        ours, (flat[0, 2] - flat[0, 2].mean()) / (flat[0, 2].std() + 1e-5), rtol=1e-3, atol=1e-5
    )


def test_the_networks_against_plain_transcriptions(model, images):
    g = model.average
    encoded = plain_encoder(g.encoder, images)
    assert close(model.features(images, LABELS), encoded)
    assert close(g.decoder(encoded), plain_decoder(g.decoder, encoded))
    styles = plain_styles(g.extractors, images)
    assert close(g.extractors(images), styles)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    for tag, values in enumerate(VALUES):
        translated = plain_translator(g.translators[tag], encoded, styles[:, tag])
        assert not close(translated, encoded) and close(
            g.translators[tag](encoded, styles[:, tag]), translated
        )
        for value in range(values):
            assert close(g.mappers[tag](noise, value), plain_mapper(g.mappers[tag], noise, value))
            inputs = images, styles[:, tag], 2 * LABELS[:, 5:] - 1, tag, value
            assert close(model.discriminator(*inputs), plain_judge(model.discriminator, *inputs))


# Edits


def test_targets_say_nothing_of_other_tags_and_conditions(tiny):
    model, before = tiny(), LABELS.clone()
    targets = model.targets(LABELS)
    assert torch.equal(LABELS, before)
    assert model.target_names == ["Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair"]
    expected = torch.full((5, 4, 7), NAN)
    expected[0, :, 0] = torch.tensor([0.0, 1, 1, 0])  # flipped
    expected[1, :, 1] = torch.tensor([1.0, 0, 1, 0])
    for number, colour in enumerate(torch.eye(3)):
        expected[2 + number, :, 2:5] = colour  # in the place of any other, or of none
    assert torch.equal(targets.isnan(), expected.isnan())
    assert torch.equal(targets.nan_to_num(), expected.nan_to_num())


def test_targets_of_tags_in_another_order(tiny):
    tags = [{"name": "B", "attributes": ["Bald", "Black_Hair"]}]
    model = tiny(attributes=["Male", "Black_Hair", "Bangs", "Bald"], tags=tags)
    assert model.target_names == ["Bald", "Black_Hair"] and model.conditions == [0, 2]
    targets = model.targets(torch.tensor([[1.0, 1, 0, 0]]))
    assert targets.nan_to_num(9).tolist() == [[[9, 0, 9, 1]], [[9, 1, 9, 0]]]


def test_values_of_labels(tiny):
    model = tiny()
    #                     fringe     glasses    the colour, if it is one
    assert model._values(LABELS).tolist() == [[0, 1, 0], [1, 0, 1], [1, 1, 2], [0, 0, -1]]
    odd = torch.tensor([[NAN, 1, 1, 1, 0, 0, 0], [0.5, 0, NAN, NAN, NAN, NAN, NAN]])
    assert model._values(odd).tolist() == [[-1, 0, -1], [-1, 1, -1]]


@pytest.mark.parametrize("guidance", ["reference", "latent"])
def test_an_edit_is_encode_translate_decode(model, images, guidance):
    model.settings = model.settings | {"guidance": guidance}
    g, encoded = model.average, plain_encoder(model.average.encoder, images)
    noise = torch.randn(1, 3, generator=generator("hisd", "noise of edits"))
    for number, target in enumerate(model.targets(LABELS)):
        tag = min(number, 2)
        expected = []
        for row in range(4):
            value = number - 2 if tag == 2 else int(LABELS[row, tag])  # flipped: 0 is "with"
            if guidance == "reference":
                reference = model.references.images[2 * tag + value][None].float() / 127.5 - 1
                style = plain_styles(g.extractors, reference)[:, tag]
            else:
                style = plain_mapper(g.mappers[tag], noise, value)
            moved = plain_translator(g.translators[tag], encoded[row : row + 1], style)
            expected.append(plain_decoder(g.decoder, moved))
        assert close(model.edit(images, target), torch.cat(expected))


def test_edits_use_the_running_average_and_only_the_translator_of_the_tag(model, images):
    before = model.edits(images, LABELS)
    assert before.shape == (4, 5, 3, 16, 16)
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.fill_(NAN)
        assert torch.equal(model.edits(images, LABELS), before)
        for parameter in model.average.translators[1].parameters():
            parameter.fill_(NAN)
    after = model.edits(images, LABELS)
    assert after[:, 1].isnan().all()
    others = [0, 2, 3, 4]
    assert torch.equal(after[:, others], before[:, others])


def test_rows_with_different_targets_in_one_batch(model, images):
    targets, edits = model.targets(LABELS), model.edits(images, LABELS)
    for number, target in enumerate(targets):
        assert torch.equal(edits[:, number], model.edit(images, target))
    for shift in range(5):
        chosen = [(row + shift) % 5 for row in range(4)]
        mixed = torch.stack([targets[number, row] for row, number in enumerate(chosen)])
        found = model.edit(images, mixed)
        alone = torch.cat([model.edit(images[i : i + 1], mixed[i : i + 1]) for i in range(4)])
        assert torch.allclose(found, alone, atol=1e-4)
        expected = torch.stack([edits[row, number] for row, number in enumerate(chosen)])
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_target_that_says_nothing_only_reconstructs(model, images):
    expected = model.average.decoder(model.average.encoder(images))
    assert torch.equal(model.edit(images, torch.full((4, 7), NAN)), expected)
    # One row of the batch is edited, the others are not.
    target = torch.full((4, 7), NAN)
    target[2] = model.targets(LABELS)[1, 2]
    found = model.edit(images, target)
    assert torch.allclose(found[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-5)
    assert not torch.allclose(found[2], expected[2], atol=1e-2)


def test_a_target_with_values_of_several_tags_moves_them_all(model, images):
    target = model.targets(LABELS)[0].clone()
    target[:, 2:5] = torch.tensor([0.0, 0, 1])
    encoded = model.average.encoder(images)
    encoded = model.average.translators[0](encoded, model._styles(0)[(target[:, 0] == 0).long()])
    encoded = model.average.translators[2](encoded, model._styles(2)[[2] * 4])
    assert torch.allclose(model.edit(images, target), model.average.decoder(encoded), atol=1e-5)


def test_features_do_not_touch_the_decoder_and_see_the_image(model, images):
    x = images.clone().requires_grad_(True)
    before = model.features(x, LABELS).detach()
    assert before.shape == (4, 16, 4, 4)
    with torch.no_grad():
        for name, parameter in model.average.named_parameters():
            if not name.startswith("encoder."):
                parameter.fill_(NAN)
    features = model.features(x, None)
    assert torch.equal(features, before) and model.edit(x, model.targets(LABELS)[0]).isnan().all()
    features.square().sum().backward()
    assert all(image.abs().max() > 0 for image in x.grad)


def test_edits_see_the_image_and_leave_no_trace(model, images, state, same):
    before, random = state(model), torch.get_rng_state()
    for guidance in ("latent", "reference"):
        model.settings = model.settings | {"guidance": guidance}
        x = images.clone().requires_grad_(True)
        edits = model.edits(x, LABELS)
        edits.square().sum().backward()
        assert all(image.abs().max() > 0 for image in x.grad)
        assert torch.equal(model.edits(images, LABELS), edits.detach())
    assert same(before, state(model)) and torch.equal(torch.get_rng_state(), random)


def test_an_image_of_one_colour_has_finite_gradients(model):
    x = torch.full((1, 3, 16, 16), -1.0).requires_grad_(True)
    model.edit(x, model.targets(LABELS[:1])[0]).square().sum().backward()
    assert x.grad.isfinite().all()


# References


def test_references_are_the_last_unseen_faces_with_each_value(tiny, labelled_faces):
    faces = labelled_faces(
        [
            ("train", ["Eyeglasses", "Blond_Hair"]),  # 0
            ("test", ["Bangs", "Brown_Hair"]),  # 1
            ("train", ["Brown_Hair"]),  # 2
            ("train", ["Brown_Hair", "Bangs"]),  # 3
            ("val", ["Black_Hair", "Blond_Hair"]),  # 4: of no single colour
            ("val", ["Blond_Hair"]),  # 5
            ("val", ["Black_Hair", "Bangs"]),  # 6
            ("val", ["Black_Hair", "Bangs"]),  # 7
        ]
    )
    model = tiny()
    model.prepare(faces)
    # Bangs with, without; glasses with, without; black, blond, brown. Of training faces, the first.
    expected = faces.images[[7, 5, 0, 7, 7, 5, 2]].transpose(0, 3, 1, 2)
    assert torch.equal(model.references.images, torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(
    "names, tag, lacking",
    [
        ([["Eyeglasses", "Black_Hair"], ["Blond_Hair"], ["Brown_Hair"]], "Bangs", "none with Bangs"),
        (
            [["Bangs", "Eyeglasses", "Black_Hair"], ["Blond_Hair", "Eyeglasses"]],
            "Eyeglasses",
            "none without Eyeglasses",
        ),
        (
            [["Bangs", "Eyeglasses", "Black_Hair"], ["Blond_Hair", "Black_Hair"]],
            "HairColor",
            "none with Blond_Hair",
        ),
    ],
)
def test_a_set_without_a_reference_is_refused(tiny, labelled_faces, names, tag, lacking):
    faces = labelled_faces([("train", names) for names in names] + [("test", ["Bangs", "Blond_Hair"])])
    model = tiny()
    with pytest.raises(HoldfastError, match=f"can be HiSD's reference for {tag}") as caught:
        model.prepare(faces)
    assert caught.value.found == lacking and str(faces.folder) in str(caught.value)
    assert "guidance: latent" in caught.value.repair


def test_latent_guidance_needs_no_references(tiny, labelled_faces, images):
    model = tiny(guidance="latent")
    # What the error above advises.
    model.prepare(labelled_faces([("train", ["Black_Hair"]), ("val", ["Brown_Hair"])]))
    assert freeze(model).edits(images, LABELS).isfinite().all()


def test_where_the_style_comes_from(model, images):
    by_guidance = {}
    for guidance in ("reference", "latent"):
        model.settings = model.settings | {"guidance": guidance}
        by_guidance[guidance] = model.edits(images, LABELS)
    assert not torch.allclose(by_guidance["reference"], by_guidance["latent"], atol=1e-2)
    # Other references change what they guide, and nothing else. Row 2 of LABELS gets a fringe: value 0.
    model.references.images[0] = 255 - model.references.images[0]
    assert torch.equal(model.edits(images, LABELS), by_guidance["latent"])
    model.settings = model.settings | {"guidance": "reference"}
    differing = (model.edits(images, LABELS) - by_guidance["reference"]).abs().amax((2, 3, 4)) > 1e-4
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[[1, 2], 0] = True
    assert torch.equal(differing, expected)


def test_references_travel_with_the_checkpoint(tiny, model, images, tmp_path):
    path = tmp_path / "hisd.safetensors"
    save(model, path)
    other = load(tiny(), path)
    assert torch.equal(other.references.images, model.references.images)
    assert other.references.images.any() and torch.equal(
        freeze(other).edits(images, LABELS), model.edits(images, LABELS)
    )


# Losses


@pytest.fixture
def batch(model, images):
    """Arguments of generator_loss: hair from brown (2) to black (0), conditions as they are told."""
    for network in (model.generator, model.discriminator):
        network.train().requires_grad_(True)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(6))
    return images, 2 * LABELS[:, 5:] - 1, 2, 2, 0, noise


def plain_generator_loss(model, batch, weights, detach=True):
    x, conditions, tag, value, aim, noise = batch
    g, d = model.generator, model.discriminator
    stop = (lambda style: style.detach()) if detach else (lambda style: style)
    own, aimed = plain_styles(g.extractors, x)[:, tag], plain_mapper(g.mappers[tag], noise, aim)
    encoded = plain_encoder(g.encoder, x)
    same = plain_decoder(g.decoder, encoded)
    by_own = plain_decoder(g.decoder, plain_translator(g.translators[tag], encoded, own))
    there = plain_decoder(g.decoder, plain_translator(g.translators[tag], encoded, aimed))
    again = plain_translator(g.translators[tag], plain_encoder(g.encoder, there), own)
    back = plain_decoder(g.decoder, again)
    reconstruction = sum((image - x).abs().mean() for image in (same, by_own, back))
    style = (plain_styles(g.extractors, there)[:, tag] - aimed).abs().mean()
    adversarial = (
        plain_judge(d, x, own, conditions, tag, value).sum() / len(x)
        - plain_judge(d, there, stop(aimed), conditions, tag, aim)[:, 0].mean()
        - plain_judge(d, back, stop(own), conditions, tag, value)[:, 1].mean()
    )
    parts = {"g_adv": adversarial, "g_style": style, "g_rec": reconstruction}
    total = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
    return total, parts, [there, back, own, aimed]


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros(()) if gradient is None else gradient.double() for gradient in found]


def in_double(model, batch):
    """The same in double precision, so that the transcription is the exact one of the two."""
    for network in (model.generator, model.discriminator):
        network.double()
    return [part.double() if isinstance(part, torch.Tensor) else part for part in batch]


def test_generator_loss_against_its_transcription(model, batch):
    weights = (0.7, 1.3, 2.0)
    model.settings = model.settings | dict(
        zip(("lambda_adv", "lambda_style", "lambda_rec"), weights, strict=True)
    )
    loss, shown, made = model.generator_loss(*batch)
    ours = gradients(loss, model.generator)
    expected, parts, wanted = plain_generator_loss(model, in_double(model, batch), weights)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, part in parts.items():
        assert shown[name] == pytest.approx(part.item(), rel=1e-4), name
    assert all(close(found.double(), image) for found, image in zip(made, wanted, strict=True))
    assert not any(found.requires_grad for found in made)
    theirs = gradients(expected, model.generator)
    assert sum(bool(gradient.norm() > 1e-3) for gradient in theirs) > 50
    for found, gradient in zip(ours, theirs, strict=True):
        assert (found - gradient).norm() <= 0.01 * gradient.norm() + 1e-5


def test_styles_of_fakes_are_detached_for_the_discriminator(model, batch):
    model.settings = model.settings | {"lambda_adv": 1, "lambda_style": 0, "lambda_rec": 0}
    parts = [model.generator.mappers[2], model.generator.extractors]
    loss = model.generator_loss(*batch)[0]
    ours = [gradients(loss, part) for part in parts]
    exact = in_double(model, batch)
    for detach in (True, False):
        loss = plain_generator_loss(model, exact, (1, 0, 0), detach)[0]
        for part, found in zip(parts, ours, strict=True):
            theirs = gradients(loss, part)
            difference = sum((a - b).square().sum() for a, b in zip(found, theirs, strict=True)).sqrt()
            scale = sum(gradient.square().sum() for gradient in found).sqrt()
            # Rounding may put one activation on the other side of its kink.
            assert (difference < 0.05 * scale) if detach else (difference > 0.5 * scale)


def test_the_generators_loss_reaches_its_own_network_only(model, batch):
    model.discriminator.requires_grad_(False)
    model.generator_loss(*batch)[0].backward()
    unused = ("translators.0", "translators.1", "mappers.0", "mappers.1")
    unused += ("mappers.2.post_models.1", "mappers.2.post_models.2")
    for name, parameter in model.generator.named_parameters():
        assert (parameter.grad is None) == name.startswith(unused), name
    for network in (model.discriminator, model.average):
        assert all(p.grad is None for p in network.parameters())


def plain_discriminator_loss(model, x, conditions, tag, value, aim, there, back, own, aimed):
    d = model.discriminator
    real = plain_judge(d, x, own, conditions, tag, value)
    fakes = (
        plain_judge(d, there, aimed, conditions, tag, aim)[:, 0],
        plain_judge(d, back, own, conditions, tag, value)[:, 1],
    )
    hinge = sum((1 - real[:, column]).clamp(min=0).mean() for column in (0, 1))
    return hinge + sum((1 + fake).clamp(min=0).mean() for fake in fakes)


def test_discriminator_loss_against_its_transcription(model, batch):
    made = model.generator_loss(*batch)[2]
    arguments = *batch[:5], *made
    total, shown = model.discriminator_loss(*arguments)
    assert shown["d_adv"] == pytest.approx(plain_discriminator_loss(model, *arguments).item(), rel=1e-4)
    assert total.item() == pytest.approx(shown["d_adv"] + shown["d_r1"], rel=1e-4)
    # R1 by differences: the slope of each answer along its own gradient is the gradient's length.
    x, conditions, tag, value = batch[:4]
    penalty = 0
    for column in (0, 1):
        y = x.double().requires_grad_(True)
        critic = model.discriminator.double()
        told = made[2].double(), conditions.double(), tag, value
        (slope,) = torch.autograd.grad(plain_judge(critic, y, *told)[:, column].sum(), y)
        length = slope.flatten(1).norm(dim=1)
        step = 1e-6 * slope / length[:, None, None, None]
        with torch.no_grad():
            ends = [plain_judge(critic, x + sign * step, *told)[:, column] for sign in (1, -1)]
        penalty += ((ends[0] - ends[1]) / 2e-6).square().mean().item()
    assert penalty > 1e-3 and shown["d_r1"] == pytest.approx(penalty, rel=1e-3)


def test_the_discriminators_loss_reaches_its_own_network_only(model, batch):
    made = model.generator_loss(*batch)[2]
    model.discriminator_loss(*batch[:5], *made)[0].backward()
    for name, parameter in model.discriminator.named_parameters():
        assert (parameter.grad is None) == name.startswith(("fcs.0", "fcs.1")), name
    assert all(p.grad is None for p in model.generator.parameters()) and not batch[0].requires_grad


class LinearJudge(nn.Module):
    """Answers a.x and b.x to any image: the gradients are a and b themselves."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 768, generator=torch.Generator().manual_seed(7)) / 20)

    def forward(self, x, style, conditions, tag, attribute):
        return x.flatten(1) @ self.weight.T


def test_losses_with_a_linear_discriminator_in_closed_form(tiny, images):
    model = tiny()
    model.discriminator = LinearJudge()
    there, back = images.flip(3), images * 0.5
    total, shown = model.discriminator_loss(images, None, 0, 0, 1, there, back, None, None)
    a, b = model.discriminator.weight.detach()
    x = images.flatten(1)
    expected = (1 - x @ a).clamp(min=0).mean() + (1 - x @ b).clamp(min=0).mean()
    expected += (1 + there.flatten(1) @ a).clamp(min=0).mean()
    expected += (1 + back.flatten(1) @ b).clamp(min=0).mean()
    assert shown["d_adv"] == pytest.approx(expected.item(), rel=1e-5)
    assert shown["d_r1"] == pytest.approx((a.square().sum() + b.square().sum()).item(), rel=1e-5)
    total.backward()
    hinge_of_a = -x[(x @ a) < 1].sum(0) / 4 + there.flatten(1)[(there.flatten(1) @ a) > -1].sum(0) / 4
    assert torch.allclose(model.discriminator.weight.grad[0], hinge_of_a + 2 * a, atol=1e-5)


# Training


def test_optimisers_learn_the_mappers_more_slowly(tiny):
    model = tiny()
    rates = {"generator_rate": 0.5, "discriminator_rate": 0.25, "mapper_rate": 0.1}
    optimisers = model.optimisers(model.settings | rates)
    fast, slow = optimisers["generator"].param_groups
    (judge,) = optimisers["discriminator"].param_groups
    assert (fast["lr"], slow["lr"], judge["lr"]) == pytest.approx((0.5, 0.05, 0.25))
    assert all(group["betas"] == (0.0, 0.99) for group in (fast, slow, judge))
    mappers = {id(p) for p in model.generator.mappers.parameters()}
    assert {id(p) for p in slow["params"]} == mappers
    assert {id(p) for p in fast["params"]} == {id(p) for p in model.generator.parameters()} - mappers
    assert {id(p) for p in judge["params"]} == {id(p) for p in model.discriminator.parameters()}
    count = sum(p.numel() for group in (fast, slow) for p in group["params"])
    assert count == sum(p.numel() for p in model.generator.parameters())


def test_published_rates(published):
    model = published("hisd", 256)
    assert [group["lr"] for group in model.optimisers(model.settings)["generator"].param_groups] == (
        pytest.approx([1e-4, 1e-6])
    )


def test_rates_stay_and_gradients_are_clipped(tiny, tagged_faces, adam_steps):
    assert HiSD.clip_norm == 100
    model = tiny()
    settings = model.settings | {"iterations": 4, "generator_rate": 0.002, "discriminator_rate": 0.003}
    train_deepfake(model, tagged_faces, settings, NAMES)
    rates = [row["rates"] for row in adam_steps]
    assert rates == [pytest.approx(step) for step in ([0.002, 0.00002], [0.003]) * 4]
    free = [row["norm"] for row in adam_steps]
    adam_steps.clear()
    model = tiny()
    model.clip_norm = min(free) / 2
    train_deepfake(model, tagged_faces, settings, NAMES)
    assert [row["norm"] for row in adam_steps] == pytest.approx([min(free) / 2] * 8, rel=1e-3)


@pytest.mark.parametrize("share", [0.99, 0.5])
def test_the_average_follows_the_generator(tiny, tagged_faces, state, share):
    model = tiny(average=share)
    with torch.no_grad():
        for parameter in model.average.parameters():
            parameter.add_(1)
    before = state(model)
    settings = model.settings | {"iterations": 1, "generator_rate": 0.1}
    train_deepfake(model, tagged_faces, settings, NAMES)
    after = state(model)
    keys = [key for key in before if key.startswith("average.")]
    moved = 0
    for key in keys:
        own = key.replace("average.", "generator.")
        expected = share * before[key] + (1 - share) * after[own]  # the generator after its step
        assert torch.allclose(after[key], expected, atol=1e-6), key
        moved += not torch.equal(before[own], after[own])
    assert moved > 50


PLAIN = {"batch": 4, "mirror": False}


def draws(model, faces, steps):
    """(tag, value, aim, images, conditions) of the first steps, up to the generator's loss."""
    found = []

    def record(x, conditions, tag, value, aim, noise):
        found.append((tag, value, aim, x, conditions))
        assert noise.shape == (len(x), 3)
        return None, {}, ()

    model.generator_loss = record
    batches = Batches(
        faces, faces.positions("train"), model, model.settings | {"batch": 4, "mirror": False}, NAMES, "cpu"
    )
    for step in range(steps):
        next(model.training_step(batches, step, generator(*NAMES, "step", step), model.settings))
    return found


def test_a_step_draws_a_value_that_its_faces_have_and_another_to_aim_at(tiny, tagged_faces):
    model = tiny()
    positions = tagged_faces.positions("train")
    labels = dict(zip(positions, tagged_faces.labels(positions, model.attributes), strict=True))
    pixels = {position: tagged_faces.pixels([position])[0] for position in positions}
    drawn = draws(model, tagged_faces, 160)
    for tag, value, _, x, conditions in drawn:
        for image, told in zip(x, conditions, strict=True):
            (position,) = [p for p in positions if torch.equal(pixels[p], image)]
            own = labels[position]
            assert model._values(own[None])[0, tag] == value
            assert torch.equal(told, 2 * own[5:] - 1)  # Male, Young as -1 or 1
    pairs = {(tag, value, aim) for tag, value, aim, *_ in drawn}
    assert pairs == {
        (tag, value, aim)
        for tag, values in enumerate(VALUES)
        for value in range(values)
        for aim in range(values)
        if aim != value
    }


def test_values_that_no_training_face_has_are_neither_source_nor_aim(tiny, labelled_faces):
    hair = ["Black_Hair", "Brown_Hair"]
    rows = [("train", [hair[n % 2]] + ["Bangs"] * (n // 2 % 2)) for n in range(8)]
    faces = labelled_faces([*rows, ("val", ["Eyeglasses", "Blond_Hair"])])
    found = {(tag, value, aim) for tag, value, aim, *_ in draws(tiny(), faces, 60)}
    # No glasses, so nothing to move to; no blond hair (2, 1).
    assert found == {(0, 0, 1), (0, 1, 0), (2, 0, 2), (2, 2, 0)}


def test_faces_that_differ_in_no_tag_are_refused(tiny, labelled_faces):
    faces = labelled_faces([("train", ["Black_Hair"])] * 4)
    with pytest.raises(HoldfastError, match="no two differ in one of Bangs, Eyeglasses, HairColor"):
        train_deepfake(tiny(), faces, tiny().settings, ("hisd",))


def test_only_the_tags_that_are_edited_are_targets(tiny):
    everything, glasses = tiny(), tiny(edited=["Eyeglasses"])
    assert everything.target_names == ["Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair"]
    assert glasses.target_names == ["Eyeglasses"]
    (target,) = glasses.targets(LABELS)
    torch.testing.assert_close(target, everything.targets(LABELS)[1], equal_nan=True)


def test_a_step_judges_what_its_generator_made(tiny, tagged_faces):
    model = tiny()
    batches = Batches(
        tagged_faces,
        tagged_faces.positions("train"),
        model,
        model.settings | {"batch": 4, "mirror": False},
        NAMES,
        "cpu",
    )
    made, judged = [], []
    generator_loss, discriminator_loss = model.generator_loss, model.discriminator_loss

    def generators(*arguments):
        result = generator_loss(*arguments)
        made.append((*arguments[:5], *result[2]))
        return result

    def discriminators(*arguments):
        judged.append(arguments)
        return discriminator_loss(*arguments)

    model.generator_loss, model.discriminator_loss = generators, discriminators
    steps = model.training_step(batches, 0, generator("a step"), model.settings)
    order, trained = [], []
    for name, _, shown in steps:
        order.append((name, sorted(shown)))
        trained.append([p.requires_grad for p in model.discriminator.parameters()])
    assert order == [("generator", ["g_adv", "g_rec", "g_style"]), ("discriminator", ["d_adv", "d_r1"])]
    # The generator's loss needs no gradients of the discriminator's weights.
    assert not any(trained[0]) and all(trained[1])
    assert len(made[0]) == len(judged[0]) == 9
    assert all(a is b for a, b in zip(made[0], judged[0], strict=True))


def test_the_reconstruction_is_learnt(tiny, tagged_faces):
    model, x = tiny(lambda_adv=0), tagged_faces.pixels(tagged_faces.positions("val"))

    def error(network):
        with torch.no_grad():
            return (network.decoder(network.encoder(x)) - x).abs().mean().item()

    before = error(model.generator)
    settings = model.settings | {"iterations": 40, "generator_rate": 0.01}
    train_deepfake(model, tagged_faces, settings, NAMES)
    assert error(model.generator) < 0.85 * before
    assert error(model.generator) < error(model.average) < before  # it comes after


# Settings


@pytest.mark.parametrize(
    "tags, wrong",
    [
        ([{"name": "Hat", "attributes": ["Wearing_Hat"]}], "Wearing_Hat"),
        (
            [
                {"name": "Bangs", "attributes": ["Bangs"]},
                {"name": "Hair", "attributes": ["Black_Hair", "Bangs"]},
            ],
            "Bangs",
        ),
    ],
)
def test_tags_that_do_not_fit_the_attributes(tiny, tags, wrong):
    with pytest.raises(HoldfastError, match="tags of HiSD do not fit") as caught:
        tiny(tags=tags)
    assert caught.value.found == f"{wrong} in {', '.join(tag['name'] for tag in tags)}"
    assert "deepfakes.hisd.tags" in caught.value.repair


def test_without_conditions(tiny, images):
    tags = [{"name": name, "attributes": [name]} for name in ("Bangs", "Bald")]
    model = freeze(tiny(attributes=["Bangs", "Bald"], tags=tags))
    assert model.conditions == [] and model.discriminator.fcs[0][0].in_channels == 16 + 6
    assert model.edits(images, torch.eye(2)[[0, 1, 0, 1]]).shape == (4, 2, 3, 16, 16)


@pytest.mark.parametrize("size, layers, step", [(18, 1, 4), (20, 3, 8), (16, 5, 32), (4, 2, 4)])
def test_an_image_size_that_does_not_fit(tiny, size, layers, step):
    with pytest.raises(HoldfastError, match=f"HiSD does not fit images of {size} px") as caught:
        tiny(size, discriminator_layers=layers)
    assert f"multiple of {step}" in caught.value.expected and "discriminator_layers" in caught.value.repair


@pytest.mark.parametrize("size, layers", [(8, 1), (8, 3), (24, 2)])
def test_sizes_that_fit(tiny, size, layers):
    model = tiny(size, discriminator_layers=layers)
    x, conditions = torch.rand(2, 3, size, size), torch.ones(2, 2)
    loss, _, made = model.generator_loss(x, conditions, 0, 0, 1, torch.randn(2, 3))
    total, _ = model.discriminator_loss(x, conditions, 0, 0, 1, *made)
    assert loss.isfinite() and total.isfinite() and made[0].shape == x.shape


def test_it_is_registered():
    assert DEEPFAKES["hisd"] is HiSD and HiSD.title == "HiSD"
