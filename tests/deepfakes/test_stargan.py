"""StarGAN: the published network to the parameter, its edits, its losses in closed form."""

import pytest
import torch
from torch import nn

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.losses import attribute_loss
from holdfast.deepfakes.stargan import HAIR, StarGAN
from holdfast.errors import HoldfastError


@pytest.mark.parametrize("size, discriminator", [(128, 44_762_048), (256, 44_884_928)])
def test_parameter_counts_are_those_of_the_public_networks(published, count, size, discriminator):
    model = published("stargan", size)
    assert count(model.generator) == 8_430_528
    assert count(model.discriminator) == discriminator


def test_generator_has_the_keys_of_the_public_checkpoints(published, shapes, norm_shapes):
    expected = {"main.0.weight": (64, 8, 7, 7), **norm_shapes("main.1", 64)}
    expected |= {"main.3.weight": (128, 64, 4, 4), **norm_shapes("main.4", 128)}
    expected |= {"main.6.weight": (256, 128, 4, 4), **norm_shapes("main.7", 256)}
    for block in range(9, 15):
        for conv, normalisation in ((0, 1), (3, 4)):
            expected[f"main.{block}.main.{conv}.weight"] = (256, 256, 3, 3)
            expected |= norm_shapes(f"main.{block}.main.{normalisation}", 256)
    expected |= {"main.15.weight": (256, 128, 4, 4), **norm_shapes("main.16", 128)}
    expected |= {"main.18.weight": (128, 64, 4, 4), **norm_shapes("main.19", 64)}
    expected["main.21.weight"] = (3, 64, 7, 7)
    assert shapes(published("stargan", 256).generator) == expected


@pytest.mark.parametrize("size, kernel", [(128, 2), (256, 4)])
def test_discriminator_has_the_keys_of_the_public_checkpoints(published, shapes, size, kernel):
    expected, width = {"main.0.weight": (64, 3, 4, 4), "main.0.bias": (64,)}, 64
    for layer in range(2, 12, 2):
        expected[f"main.{layer}.weight"] = (2 * width, width, 4, 4)
        expected[f"main.{layer}.bias"] = (2 * width,)
        width *= 2
    expected |= {"conv1.weight": (1, 2048, 3, 3), "conv2.weight": (5, 2048, kernel, kernel)}
    assert shapes(published("stargan", size).discriminator) == expected


def test_shapes_at_the_published_size(published):
    model = published("stargan", 256)
    x, labels = torch.empty(2, 3, 256, 256, device="meta"), torch.empty(2, 5, device="meta")
    assert model.features(x, labels).shape == (2, 256, 64, 64)
    assert model.edits(x, labels).shape == (2, 5, 3, 256, 256)
    realness, logits = model.discriminator(x)
    assert realness.shape == (2, 1, 4, 4) and logits.shape == (2, 5)


def test_features_are_what_the_decoder_gets(tiny):
    model = tiny(generator_channels=64)
    x, labels = torch.rand(2, 3, 16, 16) * 2 - 1, torch.tensor([[1.0, 0], [0, 1]])
    with torch.no_grad():
        features = model.features(x, labels)
        assert features.shape == (2, 256, 4, 4)
        decoder = model.generator.main[model.generator.trunk_length :]
        assert isinstance(decoder[0], nn.ConvTranspose2d) and isinstance(decoder[-1], nn.Tanh)
        # All six residual blocks and nothing behind them.
        assert torch.equal(decoder(features), model.edit(x, labels))


def test_features_do_not_touch_the_decoder(tiny):
    model = tiny()
    x, labels = torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    before = model.features(x, labels)
    with torch.no_grad():
        for parameter in model.generator.main[model.generator.trunk_length :].parameters():
            parameter.fill_(float("nan"))
    assert torch.equal(model.features(x, labels), before)
    assert model.edit(x, labels).isnan().all()
    assert not torch.equal(model.features(x, 1 - labels), before)


def test_targets_replace_the_hair_and_flip_the_rest(published):
    model = published("stargan", 128)
    #                         black blond brown male young
    labels = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    before = labels.clone()
    targets = model.targets(labels)
    assert model.target_names == [*HAIR[:3], "Male", "Young"] and torch.equal(labels, before)
    expected = [
        [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
        [[0, 1, 0, 1, 0], [0, 1, 0, 0, 1]],
        [[0, 0, 1, 1, 0], [0, 0, 1, 0, 1]],
        [[1, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
        [[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    ]
    assert torch.equal(targets, torch.tensor(expected, dtype=torch.float32))


def test_grey_hair_is_a_colour_of_hair(published):
    model = published("stargan", 64, attributes=["Gray_Hair", "Male", "Black_Hair"])
    targets = model.targets(torch.tensor([[0.0, 1, 1]]))
    assert targets.tolist() == [[[1, 1, 0]], [[0, 0, 1]], [[0, 1, 1]]]


def test_targets_in_another_order_and_with_one_hair_colour_only(published):
    model = published("stargan", 64, attributes=["Young", "Brown_Hair", "Bald"])
    targets = model.targets(torch.tensor([[0.0, 1, 0]]))
    assert targets.tolist() == [[[1, 1, 0]], [[0, 1, 0]], [[0, 1, 1]]]


def test_edits_are_the_single_edits_side_by_side(tiny):
    model = tiny()
    x, labels = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([[0.0, 1], [1, 1], [0, 0]])
    with torch.no_grad():
        edits = model.edits(x, labels)
        assert edits.shape == (3, 2, 3, 16, 16) and edits.abs().max() <= 1
        for number, target in enumerate(model.targets(labels)):
            assert torch.equal(edits[:, number], model.edit(x, target))
        # Every image has its own statistics: its neighbours in the batch do not matter.
        assert torch.allclose(model.edits(x[:1], labels[:1]), edits[:1], atol=1e-5)


def test_running_statistics_never_change(tiny, state):
    model = tiny()
    before = state(model)
    x, labels = torch.rand(4, 3, 16, 16) * 2 - 1, torch.zeros(4, 2)
    for mode in (True, False):
        for network in model.networks.values():
            network.train(mode)
        with torch.no_grad():
            model.edits(x, labels)
        model.generator_loss(x, labels, 1 - labels)
        model.discriminator_loss(x, labels, 1 - labels, torch.rand(4, 1, 1, 1))
    after = state(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    running = [key for key in before if "running_mean" in key]
    assert running and all((after[key] == 0).all() for key in running)


def test_training_and_evaluation_give_the_same_images(tiny):
    model, x, labels = tiny(), torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    with torch.no_grad():
        model.generator.train()
        in_training = model.edit(x, labels)
        model.generator.eval()
        assert torch.equal(model.edit(x, labels), in_training)


@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_discriminator_loss_against_its_closed_form(tiny, linear_critic, norm):
    model = tiny(lambda_gp=10, lambda_cls=2)
    model.discriminator = linear_critic(norm)
    x, labels = torch.rand(4, 3, 16, 16) * 2 - 1, torch.tensor([[0.0, 1]] * 4)
    total, shown = model.discriminator_loss(x, labels, 1 - labels, torch.rand(4, 1, 1, 1))
    with torch.no_grad():
        score = model.discriminator.weight @ (model.edit(x, 1 - labels) - x).flatten(1).T
    assert shown["d_gp"] == pytest.approx((norm - 1) ** 2, abs=1e-5)
    assert shown["d_adv"] == pytest.approx(score.mean().item(), abs=1e-5)
    assert shown["d_cls"] == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    expected = shown["d_adv"] + 10 * shown["d_gp"] + 2 * shown["d_cls"]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    # The penalty's own gradient: 2 lambda (|w| - 1) w / |w|; what is left is the adversarial term's.
    total.backward()
    weight = model.discriminator.weight
    with torch.no_grad():
        adversarial = (model.edit(x, 1 - labels) - x).flatten(1).mean(dim=0)
        penalty = 20 * (norm - 1) * weight / norm
    assert torch.allclose(weight.grad, adversarial + penalty, atol=1e-4)


def test_the_penalty_is_taken_between_the_images(tiny):
    class Squared(nn.Module):
        def forward(self, x):
            return x.square().flatten(1).sum(1)[:, None, None, None] / 2, x.flatten(1)[:, :2]

    model = tiny()
    model.discriminator = Squared()  # its gradient at an image is the image itself
    x, labels = torch.rand(3, 3, 16, 16) * 2 - 1, torch.zeros(3, 2)
    mix = torch.tensor([0.0, 0.3, 1.0])[:, None, None, None]
    _, shown = model.discriminator_loss(x, labels, labels, mix)
    with torch.no_grad():
        between = mix * x + (1 - mix) * model.edit(x, labels)
    expected = (between.flatten(1).norm(dim=1) - 1).square().mean().item()
    assert shown["d_gp"] == pytest.approx(expected, rel=1e-5)


def test_generator_loss_against_its_parts(tiny):
    model = tiny(lambda_rec=7, lambda_cls=3)
    x, labels, target = torch.rand(3, 3, 16, 16), torch.zeros(3, 2), torch.ones(3, 2)
    total, shown = model.generator_loss(x, labels, target)
    with torch.no_grad():
        fake = model.edit(x, target)
        realness, logits = model.discriminator(fake)
        back = model.edit(fake, labels)
    assert shown["g_adv"] == pytest.approx(-realness.mean().item(), abs=1e-6)
    assert shown["g_cls"] == pytest.approx(attribute_loss(logits, target).item(), rel=1e-5)
    assert shown["g_rec"] == pytest.approx((x - back).abs().mean().item(), rel=1e-5)
    expected = shown["g_adv"] + 3 * shown["g_cls"] + 7 * shown["g_rec"]
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_the_identity_loss_is_what_an_edit_to_its_own_attributes_changes(tiny):
    published, own = tiny(), tiny(lambda_identity=5)
    own.generator.load_state_dict(published.generator.state_dict())
    own.discriminator.load_state_dict(published.discriminator.state_dict())
    x, labels, target = torch.rand(3, 3, 16, 16), torch.zeros(3, 2), torch.ones(3, 2)
    (without, told), (total, shown) = (m.generator_loss(x, labels, target) for m in (published, own))
    changed = (x - own.edit(x, labels)).abs().mean().item()
    assert shown == told | {"g_identity": pytest.approx(changed, rel=1e-5)}
    assert total.item() == pytest.approx(without.item() + 5 * changed, rel=1e-5)


def test_classification_sums_over_attributes_and_averages_over_images():
    logits, labels = torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), torch.tensor([[1.0, 1], [1, 0]])
    terms = torch.log1p(torch.exp(-torch.tensor([0.0, 2.0, -1.0, 0.0])))
    assert attribute_loss(logits, labels).item() == pytest.approx(terms.sum().item() / 2, rel=1e-6)


def test_each_loss_reaches_its_own_network(tiny):
    model = tiny()
    x, labels = torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    model.discriminator_loss(x, labels, 1 - labels, torch.rand(2, 1, 1, 1))[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.discriminator.parameters())
    model.discriminator.requires_grad_(False).zero_grad()
    model.generator_loss(x, labels, 1 - labels)[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.generator.parameters())
    assert all(p.grad is None for p in model.discriminator.parameters())


def test_the_attack_sees_gradients_of_the_image(tiny):
    model = tiny()
    x = torch.rand(1, 3, 16, 16).requires_grad_(True)
    model.features(x, torch.zeros(1, 2)).square().sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("size, layers", [(30, 3), (8, 4), (62, 5)])
def test_an_image_size_that_does_not_fit(tiny, size, layers):
    with pytest.raises(HoldfastError, match=f"does not fit images of {size} px") as caught:
        tiny(size, discriminator_layers=layers)
    assert str(2**layers) in caught.value.expected and "discriminator_layers" in caught.value.repair


@pytest.mark.parametrize("size, layers", [(8, 3), (36, 5), (100, 6)])
def test_sizes_that_are_no_power_of_two(tiny, size, layers):
    model = tiny(size, discriminator_layers=layers, discriminator_channels=1)
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert model.edit(x, torch.zeros(2, 2)).shape == x.shape
        assert model.discriminator(x)[1].shape == (2, 2)


def test_it_is_registered():
    assert DEEPFAKES["stargan"] is StarGAN and StarGAN.title == "StarGAN"


def test_rates_begin_to_fall_when_the_settings_say(tiny):
    assert [tiny().rate_factor(step, 10) for step in (0, 5, 6, 9)] == pytest.approx([1, 1, 0.8, 0.2])
    late = tiny(decay_after=0.8)
    assert [late.rate_factor(step, 10) for step in (0, 8, 9)] == pytest.approx([1, 1, 0.5])
