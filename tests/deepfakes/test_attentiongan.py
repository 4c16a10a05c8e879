"""AttentionGAN: StarGAN but for the mask and the content, which are written out here."""

import pytest
import torch

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.attentiongan import SETTINGS, AttentionGAN
from holdfast.deepfakes.training import SETTINGS as TRAINING
from holdfast.errors import HoldfastError
from holdfast.modules import registered


@pytest.fixture
def tiny(tiny_of):
    return tiny_of("attentiongan")


@pytest.mark.parametrize("size, discriminator", [(128, 44_762_048), (256, 44_884_928)])
def test_parameter_counts_are_those_of_the_public_networks(published, count, size, discriminator):
    model = published("attentiongan", size)
    assert count(model.generator) == 8_433_664
    assert count(model.discriminator) == discriminator


def test_keys_are_stargans_but_the_last_layer_has_four_channels(published, shapes):
    model, stargan = published("attentiongan", 256), published("stargan", 256)
    expected = shapes(stargan.generator)
    assert expected["main.21.weight"] == (3, 64, 7, 7)
    assert shapes(model.generator) == expected | {"main.21.weight": (4, 64, 7, 7)}
    assert list(model.generator.state_dict()) == list(stargan.generator.state_dict())
    assert shapes(model.discriminator) == shapes(stargan.discriminator)


def test_shapes_at_the_published_size(published):
    model = published("attentiongan", 256)
    x, labels = torch.empty(2, 3, 256, 256, device="meta"), torch.empty(2, 5, device="meta")
    assert model.features(x, labels).shape == (2, 256, 64, 64)
    assert model.edits(x, labels).shape == (2, 5, 3, 256, 256)
    mask, content = model.generator.attention(x, labels)
    assert mask.shape == (2, 1, 256, 256) and content.shape == (2, 3, 256, 256)


def test_the_output_is_content_where_the_mask_is_and_the_input_elsewhere(tiny, randomised):
    model = tiny()
    randomised(model.generator)
    x, labels = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    maps = labels[:, :, None, None].repeat(1, 1, 16, 16)
    with torch.no_grad():
        hidden = torch.cat([x, maps], dim=1)
        for layer in list(model.generator.main)[:-1]:
            hidden = layer(hidden)
        # Scaled so that masks open and shut, and content leaves [-1, 1].
        weight = model.generator.main[-1].weight.mul_(8)
        patches = torch.nn.functional.unfold(hidden, 7, padding=3)
        output = (weight.flatten(1) @ patches).reshape(3, 4, 16, 16)
        mask, content = 1 / (1 + torch.exp(-output[:, 0])), output[:, 1:]
        assert mask.min() < 0.2 and mask.max() > 0.8 and content.abs().max() > 1.5
        expected = torch.stack([content[:, c] * mask + x[:, c] * (1 - mask) for c in range(3)], dim=1)
        assert torch.allclose(model.edit(x, labels), expected, atol=1e-4)
        told_mask, told_content = model.generator.attention(x, labels)
    assert torch.allclose(told_mask[:, 0], mask, atol=1e-5)
    assert torch.allclose(told_content, content, atol=1e-4)


def test_without_any_answer_the_output_is_half_the_input(tiny):
    model, x = tiny(), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        model.generator.main[-1].weight.zero_()
        assert torch.equal(model.edit(x, torch.zeros(2, 2)), x / 2)


def test_features_do_not_touch_the_decoder_and_see_the_image(tiny):
    model = tiny()
    x, labels = torch.rand(2, 3, 16, 16).requires_grad_(True), torch.zeros(2, 2)
    before = model.features(x, labels).detach()
    with torch.no_grad():
        for parameter in model.generator.main[model.generator.trunk_length :].parameters():
            parameter.fill_(float("nan"))
    features = model.features(x, labels)
    assert torch.equal(features, before) and model.edit(x, labels).isnan().all()
    assert not torch.equal(model.features(x, 1 - labels), before)
    features.square().sum().backward()
    assert all(image.abs().max() > 0 for image in x.grad)


def test_edits_are_the_single_edits_side_by_side(tiny):
    model = tiny()
    x, labels = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([[0.0, 1], [1, 1], [0, 0]])
    with torch.no_grad():
        edits = model.edits(x, labels)
        assert edits.shape == (3, 2, 3, 16, 16)
        for number, target in enumerate(model.targets(labels)):
            assert torch.equal(edits[:, number], model.edit(x, target))
        # Every image has its own statistics: its neighbours in the batch do not matter.
        assert torch.allclose(model.edits(x[:1], labels[:1]), edits[:1], atol=1e-5)


def test_the_generators_loss_trains_mask_and_content(tiny):
    model = tiny()
    x, labels = torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    total, shown = model.generator_loss(x, labels, 1 - labels)
    total.backward()
    gradient = model.generator.main[-1].weight.grad
    assert all(channel.abs().max() > 0 for channel in gradient)
    with torch.no_grad():
        back = model.edit(model.edit(x, 1 - labels), labels)
    assert shown["g_rec"] == pytest.approx((x - back).abs().mean().item(), rel=1e-5)


def test_settings_are_stargans():
    known = registered("deepfakes")
    assert known["attentiongan"] == known["stargan"] == {**TRAINING, **SETTINGS}
    assert {"generator_channels", "lambda_rec", "iterations"} <= known["attentiongan"].keys()


def test_an_image_size_that_does_not_fit(tiny):
    with pytest.raises(HoldfastError, match="AGGAN does not fit images of 30 px"):
        tiny(30)


def test_it_is_registered():
    assert DEEPFAKES["attentiongan"] is AttentionGAN and AttentionGAN.title == "AGGAN"
