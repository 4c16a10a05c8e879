"""AttGAN: the published network to the parameter, its edits and conflicts, its losses in closed form."""

import pytest
import torch
import torch.nn.functional as F

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.attgan import AttGAN
from holdfast.deepfakes.model import freeze
from holdfast.deepfakes.training import train_deepfake
from holdfast.errors import HoldfastError

NAN = float("nan")
WIDTHS = [64, 128, 256, 512, 1024]


@pytest.fixture
def tiny(tiny_of):
    return tiny_of("attgan")


@pytest.fixture
def images():
    random = torch.Generator().manual_seed(3)
    return torch.rand(4, 3, 16, 16, generator=random) * 2 - 1


LABELS = torch.tensor([[0.0, 1], [1, 1], [0, 0], [1, 0]])


@pytest.mark.parametrize("size, discriminator", [(128, 44_718_990), (256, 145_382_286)])
def test_parameter_counts_are_those_of_the_public_networks(published, count, size, discriminator):
    model = published("attgan", size)
    assert count(model.generator) == 43_352_707
    assert count(model.generator.enc_layers) == 11_148_160
    assert count(model.discriminator) == discriminator


def test_generator_has_the_keys_of_the_public_checkpoint(published, shapes, norm_shapes):
    expected, before = {}, 3
    for layer, width in enumerate(WIDTHS):
        expected[f"enc_layers.{layer}.layers.0.weight"] = (width, before, 4, 4)
        expected |= norm_shapes(f"enc_layers.{layer}.layers.1", width)
        before = width
    # Transposed convolutions: (from, to). Layer 1 gets 512 channels of the encoder beside its own 1024.
    for layer, (before, width) in enumerate([(1024 + 13, 1024), (1024 + 512, 512), (512, 256), (256, 128)]):
        expected[f"dec_layers.{layer}.layers.0.weight"] = (before, width, 4, 4)
        expected |= norm_shapes(f"dec_layers.{layer}.layers.1", width)
    expected |= {"dec_layers.4.layers.0.weight": (128, 3, 4, 4), "dec_layers.4.layers.0.bias": (3,)}
    assert shapes(published("attgan", 256).generator) == expected


@pytest.mark.parametrize("size, side", [(128, 4), (256, 8)])
def test_discriminator_has_the_keys_of_the_public_checkpoint(published, shapes, size, side):
    expected, before = {}, 3
    for layer, width in enumerate(WIDTHS):
        expected[f"conv.{layer}.layers.0.weight"] = (width, before, 4, 4)
        expected |= {f"conv.{layer}.layers.1.{name}": (width,) for name in ("weight", "bias")}
        before = width
    for head, outputs in (("fc_adv", 1), ("fc_cls", 13)):
        expected |= {
            f"{head}.0.layers.0.weight": (1024, 1024 * side * side),
            f"{head}.0.layers.0.bias": (1024,),
            f"{head}.1.layers.0.weight": (outputs, 1024),
            f"{head}.1.layers.0.bias": (outputs,),
        }
    assert shapes(published("attgan", size).discriminator) == expected


def test_shapes_at_the_published_size(published):
    model = published("attgan", 256)
    x, labels = torch.empty(2, 3, 256, 256, device="meta"), torch.empty(2, 13, device="meta")
    assert model.features(x, labels).shape == (2, 1024, 8, 8)
    assert model.edit(x, labels).shape == (2, 3, 256, 256)
    realness, logits = model.discriminator(x)
    assert realness.shape == (2, 1) and logits.shape == (2, 13)


def plain_norm(x, norm, statistics_of):
    """(x - mean) / sqrt(biased variance + eps): of the batch, of the image, or the running ones."""
    over = {"batch": (0, 2, 3), "image": (2, 3)}.get(statistics_of)
    if over is None:
        mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    else:
        mean = x.mean(over, keepdim=True)
        variance = (x - mean).square().mean(over, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def plain_generator(generator, x, told, shortcuts, injections, statistics_of):
    maps, h = {}, x
    for block in generator.enc_layers:
        conv, norm = block.layers[0], block.layers[1]
        h = plain_norm(F.conv2d(h, conv.weight, None, stride=2, padding=1), norm, statistics_of)
        h = torch.where(h > 0, h, 0.01 * h)
        maps[h.shape[2]] = h

    def with_told(h):
        return torch.cat([h, torch.ones_like(h[:, :1]) * told[:, :, None, None]], dim=1)

    h = with_told(h)
    *inner, last = generator.dec_layers
    for number, block in enumerate(inner):
        conv, norm = block.layers[0], block.layers[1]
        h = plain_norm(F.conv_transpose2d(h, conv.weight, None, stride=2, padding=1), norm, statistics_of)
        h = h.clamp(min=0)
        if number < shortcuts:
            h = torch.cat([h, maps[h.shape[2]]], dim=1)  # the encoder's map of the same size
        if number < injections:
            h = with_told(h)
    conv = last.layers[0]
    return torch.tanh(F.conv_transpose2d(h, conv.weight, conv.bias, stride=2, padding=1))


@pytest.mark.parametrize("statistics_of", ["batch", "running"])
@pytest.mark.parametrize("shortcuts, injections", [(0, 0), (1, 0), (2, 1), (9, 9)])
def test_generator_against_a_plain_transcription(
    tiny, randomised, images, shortcuts, injections, statistics_of
):
    model = tiny(shortcuts=shortcuts, injections=injections, intensity=0.7)
    randomised(model.generator).train(statistics_of == "batch")
    with torch.no_grad():
        told = torch.tensor([[-0.7, 0.7], [0.7, 0.7], [-0.7, -0.7], [0.7, -0.7]])
        expected = plain_generator(model.generator, images, told, shortcuts, injections, statistics_of)
        found = model.edit(images, LABELS)
    assert expected.std() > 0.05 and torch.allclose(found, expected, atol=1e-5)


def test_discriminator_against_a_plain_transcription(tiny, randomised, images):
    critic = randomised(tiny().discriminator)
    with torch.no_grad():
        h = images
        for block in critic.conv:
            conv, norm = block.layers[0], block.layers[1]
            h = plain_norm(F.conv2d(h, conv.weight, None, stride=2, padding=1), norm, "image")
            h = torch.where(h > 0, h, 0.01 * h)
        flat = h.reshape(len(h), -1)
        expected = []
        for head in (critic.fc_adv, critic.fc_cls):
            first, second = head[0].layers[0], head[1].layers[0]
            hidden = (flat @ first.weight.T + first.bias).clamp(min=0)
            expected.append(hidden @ second.weight.T + second.bias)
        for x in (images, images.contiguous(memory_format=torch.channels_last)):
            for output, wanted in zip(critic(x), expected, strict=True):
                assert torch.allclose(output, wanted, atol=1e-4)


def test_features_do_not_touch_the_decoder_and_see_the_image(tiny, images):
    model = freeze(tiny())
    x = images.clone().requires_grad_(True)
    before = model.features(x, LABELS).detach()
    assert before.shape == (4, 16, 2, 2)
    with torch.no_grad():
        for parameter in model.generator.dec_layers.parameters():
            parameter.fill_(NAN)
    features = model.features(x, None)  # it knows no attributes
    assert torch.equal(features, before) and model.edit(x, LABELS).isnan().all()
    features.square().sum().backward()
    assert all(image.abs().max() > 0 for image in x.grad)


def test_features_are_what_the_decoder_gets(tiny, images):
    model = freeze(tiny(shortcuts=0))
    maps = [None] * 2 + [model.features(images, LABELS)]
    assert torch.equal(model.generator.decode(maps, LABELS - 0.5), model.edit(images, LABELS))


def target_of(model, attribute, **labels):
    """{attribute: 0/1} of the edit `attribute` of a face that has what `labels` says, where it differs."""
    row = torch.tensor([[float(labels.get(name, 0)) for name in model.attributes]])
    target = model.targets(row)[model.target_names.index(attribute)]
    return {name: target[0, i].item() for i, name in enumerate(model.attributes) if target[0, i] != row[0, i]}


def test_targets_flip_one_attribute_where_nothing_conflicts(published):
    model = published("attgan", 128)
    labels = torch.zeros(2, 13)
    labels[1] = 1
    before = labels.clone()
    targets = model.targets(labels)
    assert targets.shape == (13, 2, 13) and torch.equal(labels, before)
    assert model.target_names == list(model.attributes)
    # From nothing, each edit switches on its own; from everything, each switches off its own only.
    assert torch.equal(targets[:, 0], torch.eye(13)) and torch.equal(targets[:, 1], 1 - torch.eye(13))


@pytest.mark.parametrize(
    "attribute, labels, expected",
    [
        ("Bald", {"Bangs": 1, "Black_Hair": 1}, {"Bald": 1, "Bangs": 0}),
        ("Bangs", {"Bald": 1, "Young": 1}, {"Bangs": 1, "Bald": 0}),
        ("Bangs", {"Bald": 1, "Bangs": 1}, {"Bangs": 0}),
        ("Black_Hair", {"Blond_Hair": 1}, {"Black_Hair": 1, "Blond_Hair": 0}),
        (
            "Blond_Hair",
            {"Black_Hair": 1, "Brown_Hair": 1},
            {"Blond_Hair": 1, "Black_Hair": 0, "Brown_Hair": 0},
        ),
        ("Brown_Hair", {"Brown_Hair": 1, "Blond_Hair": 1}, {"Brown_Hair": 0}),
        ("Mustache", {"No_Beard": 1, "Male": 1}, {"Mustache": 1, "No_Beard": 0}),
        ("No_Beard", {"Mustache": 1}, {"No_Beard": 1, "Mustache": 0}),
        ("No_Beard", {"No_Beard": 1}, {"No_Beard": 0}),
        ("Male", {"Male": 1, "Mustache": 1}, {"Male": 0}),
    ],
)
def test_what_is_switched_on_switches_off_what_it_excludes(published, attribute, labels, expected):
    assert target_of(published("attgan", 128), attribute, **labels) == expected


def test_conflicts_with_attributes_beyond_the_published_ones(published):
    names = ["Straight_Hair", "Gray_Hair", "Bangs", "Receding_Hairline", "Wavy_Hair", "Black_Hair"]
    model = published("attgan", 128, attributes=names)
    everything = dict.fromkeys(names, 1)
    for attribute, off in [
        ("Straight_Hair", ["Wavy_Hair"]),
        ("Wavy_Hair", ["Straight_Hair"]),
        ("Receding_Hairline", ["Bangs"]),
        ("Bangs", ["Receding_Hairline"]),
        ("Gray_Hair", ["Black_Hair"]),
    ]:
        found = target_of(model, attribute, **everything | {attribute: 0})
        assert found == {attribute: 1} | dict.fromkeys(off, 0)


def test_every_face_of_a_batch_has_its_own_conflicts(published):
    model = published("attgan", 128)
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 2, (16, 13), generator=random).float()
    one_by_one = torch.cat([model.targets(row[None]) for row in labels], dim=1)
    assert torch.equal(model.targets(labels), one_by_one)


@pytest.mark.parametrize("intensity, test_intensity", [(0.5, 0.5), (0.5, 1.0), (0.8, 0.2)])
def test_the_edited_attribute_is_told_with_the_test_intensity(published, intensity, test_intensity):
    model = published("attgan", 128, intensity=intensity, test_intensity=test_intensity)
    labels = torch.zeros(1, 13)
    on, off = (model.attributes.index(name) for name in ("Bangs", "Male"))
    labels[0, off] = 1
    bald = model.attributes.index("Bald")
    labels[0, bald] = 1
    expected = torch.full((13,), -intensity)
    expected[off] = intensity
    expected[on] = test_intensity  # Bangs on, and with it Bald off: at the usual intensity
    assert torch.allclose(model.told(model.targets(labels)[on])[0], expected)
    expected[on], expected[bald], expected[off] = -intensity, intensity, -test_intensity
    assert torch.allclose(model.told(model.targets(labels)[off])[0], expected)


def test_edits_are_the_single_edits_side_by_side(tiny, images):
    model = freeze(tiny(test_intensity=0.9))
    edits = model.edits(images, LABELS)
    assert edits.shape == (4, 2, 3, 16, 16) and edits.abs().max() <= 1
    for number, target in enumerate(model.targets(LABELS)):
        assert torch.equal(edits[:, number], model.edit(images, target))
    # Rows with different targets in one batch.
    mixed = torch.stack([model.targets(LABELS)[row % 2, row] for row in range(4)])
    expected = torch.stack([edits[row, row % 2] for row in range(4)])
    assert torch.allclose(model.edit(images, mixed), expected, atol=1e-5)


def test_a_frozen_model_does_not_see_the_neighbours_and_a_training_one_does(tiny, randomised, images):
    model = tiny()
    randomised(model.generator)
    freeze(model)
    together = model.edit(images, LABELS)
    alone = torch.cat([model.edit(images[i : i + 1], LABELS[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    features = model.features(images, LABELS)
    assert torch.allclose(model.features(images[:1], LABELS[:1]), features[:1], atol=1e-5)
    model.generator.train()
    with torch.no_grad():
        assert not torch.allclose(model.edit(images, LABELS), together, atol=1e-2)
        other = model.edit(torch.cat([images[:1], images[1:] * 0.1]), LABELS)
        assert not torch.allclose(model.edit(images, LABELS)[:1], other[:1], atol=1e-3)


def test_an_attack_leaves_no_trace_and_a_training_does(tiny, images, state, same):
    model = freeze(tiny())
    before = state(model)
    x = images.clone().requires_grad_(True)
    (model.features(x, LABELS).sum() + model.edits(x, LABELS).sum()).backward()
    model.discriminator(x)
    assert same(before, state(model))
    model.generator.train()
    model.edit(images, LABELS)
    after = state(model)
    statistics = [key for key in before if "running" in key or "num_batches" in key]
    assert len(statistics) == 3 * (3 + 2)
    assert all(torch.equal(before[key], after[key]) != (key in statistics) for key in before)


@pytest.mark.parametrize("norm", [0.25, 3.0])
def test_discriminator_loss_against_its_closed_form(tiny, linear_critic, images, norm):
    model = tiny(lambda_gp=10, lambda_cls_real=2, lambda_cls=99)
    model.discriminator = linear_critic(norm)
    mix = torch.rand(4, 1, 1, 1)
    total, shown = model.discriminator_loss(images, LABELS, 1 - LABELS, mix)
    with torch.no_grad():
        score = model.discriminator.weight @ (model.edit(images, 1 - LABELS) - images).flatten(1).T
    assert shown["d_gp"] == pytest.approx((norm - 1) ** 2, abs=1e-5)
    assert shown["d_adv"] == pytest.approx(score.mean().item(), abs=1e-5)
    # Mean over the attributes, where StarGAN takes the sum.
    assert shown["d_cls"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    expected = shown["d_adv"] + 10 * shown["d_gp"] + 2 * shown["d_cls"]
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_classification_of_the_discriminator_is_of_real_images_with_their_own_labels(tiny, images):
    model = tiny(lambda_cls_real=3)
    total, shown = model.discriminator_loss(images, LABELS, 1 - LABELS, torch.rand(4, 1, 1, 1))
    with torch.no_grad():
        probability = torch.sigmoid(model.discriminator(images)[1])
    entropy = -torch.where(LABELS == 1, probability, 1 - probability).log().mean()
    assert shown["d_cls"] == pytest.approx(entropy.item(), rel=1e-4)
    assert total.item() == pytest.approx(shown["d_adv"] + 10 * shown["d_gp"] + 3 * shown["d_cls"], rel=1e-4)


def test_generator_loss_against_its_parts(tiny, images):
    model = tiny(lambda_rec=7, lambda_cls=3, lambda_cls_real=99, test_intensity=0.1)
    target = 1 - LABELS
    total, shown = model.generator_loss(images, LABELS, target)
    with torch.no_grad():
        fake = model.generator(images, target - 0.5)
        realness, logits = model.discriminator(fake)
        probability = torch.sigmoid(logits)
        again = model.generator(images, LABELS - 0.5)
    entropy = -torch.where(target == 1, probability, 1 - probability).log().mean()
    assert shown["g_adv"] == pytest.approx(-realness.mean().item(), abs=1e-6)
    assert shown["g_cls"] == pytest.approx(entropy.item(), rel=1e-4)
    assert shown["g_rec"] == pytest.approx((images - again).abs().mean().item(), rel=1e-5)
    expected = shown["g_adv"] + 3 * shown["g_cls"] + 7 * shown["g_rec"]
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_each_loss_reaches_its_own_network(tiny, images):
    model = tiny()
    model.discriminator_loss(images, LABELS, 1 - LABELS, torch.rand(4, 1, 1, 1))[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    # The critic's constant cancels out.
    still = [key for key, p in model.discriminator.named_parameters() if not p.grad.any()]
    assert still == ["fc_adv.1.layers.0.bias"]
    model.discriminator.requires_grad_(False).zero_grad()
    model.generator_loss(images, LABELS, 1 - LABELS)[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.generator.parameters())
    assert all(p.grad is None for p in model.discriminator.parameters())


@pytest.mark.parametrize(
    "decay_after, expected",
    [
        # Step by step: D, then D and G, and so on; the second half begins at step 2.5.
        (0.5, [0.02, 0.02, 0.01, 0.02, 0.002, 0.001, 0.002]),
        (0.8, [0.02, 0.02, 0.01, 0.02, 0.02, 0.01, 0.002]),
    ],
)
def test_rates_fall_to_a_tenth_towards_the_end(tiny, faces, adam_steps, decay_after, expected):
    model = tiny(decay_after=decay_after)
    settings = model.settings | {
        "iterations": 5,
        "critic_steps": 2,
        "generator_rate": 0.01,
        "discriminator_rate": 0.02,
    }
    log = train_deepfake(model, faces, settings, ("test", 0))
    assert [row["step"] for row in log if "g_rec" in row] == [1, 3]
    rates = [rate for row in adam_steps for rate in row["rates"]]
    assert rates == pytest.approx(expected)


def test_the_reconstruction_is_learnt(tiny, faces):
    model = tiny(channels=8)
    settings = model.settings | {"iterations": 40, "critic_steps": 1, "generator_rate": 0.005, "batch": 8}
    log = train_deepfake(model, faces, settings, ("test", 0))
    values = [row["g_rec"] for row in log]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


@pytest.mark.parametrize(
    "size, change",
    [
        (36, {}),  # no multiple of 8
        (30, {"layers": 2}),
        (16, {"discriminator_layers": 4}),  # the discriminator's last map would have one value
        (8, {"layers": 4}),
    ],
)
def test_an_image_size_that_does_not_fit(tiny, size, change):
    with pytest.raises(HoldfastError, match=f"AttGAN does not fit images of {size} px") as caught:
        tiny(size, **change)
    assert "multiple of" in caught.value.expected and "layers" in caught.value.repair


@pytest.mark.parametrize(
    "size, change", [(24, {}), (8, {}), (40, {"layers": 3}), (32, {"discriminator_layers": 4})]
)
def test_sizes_that_fit(tiny, size, change):
    model = tiny(size, **change)
    x, labels = torch.rand(2, 3, size, size), torch.zeros(2, 2)
    model.discriminator_loss(x, labels, 1 - labels, torch.rand(2, 1, 1, 1))[0].backward()
    total, _ = model.generator_loss(x, labels, 1 - labels)
    assert total.isfinite() and model.edits(x, labels).shape == (2, 2, 3, size, size)


def test_it_is_registered():
    assert DEEPFAKES["attgan"] is AttGAN and AttGAN.title == "AttGAN"
