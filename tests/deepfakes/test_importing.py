"""Public checkpoints: what they hold is taken over, whatever is wrong is told, and no code of theirs runs."""

import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from holdfast.config import sources_of
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.importing import import_weights
from holdfast.deepfakes.model import freeze, history_of, load, save
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.modules import registered

SMALL = {
    "stargan": {"generator_channels": 4, "discriminator_channels": 4, "discriminator_layers": 3},
    "attentiongan": {"generator_channels": 4, "discriminator_channels": 4, "discriminator_layers": 3},
    "attgan": {
        "channels": 2,
        "layers": 3,
        "discriminator_channels": 2,
        "discriminator_layers": 3,
        "hidden": 4,
    },
    "hisd": {
        "channels": 2,
        "translator_channels": 2,
        "discriminator_channels": 2,
        "discriminator_layers": 3,
        "mapper_channels": 3,
        "style": 4,
        "noise": 2,
    },
}


def small(name, seed=0, **settings):
    defaults = {key: value.get("default") for key, value in registered("deepfakes")[name].items()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DEEPFAKES[name](defaults | SMALL[name] | settings, 16)


def weights(model):
    return {
        f"{name}.{key}": value.clone()
        for name, network in model.networks.items()
        for key, value in network.state_dict().items()
    }


def public_files(model, folder):
    """The files of `model` as its public code writes them."""
    if model.public_parts:
        parts = {public: model.networks[name].state_dict() for name, public in model.public_parts.items()}
    else:
        parts = {name: network.state_dict() for name, network in model.networks.items()}
    together = len(model.public_parts) == 2
    files = [parts] if together else ([{k: v} for k, v in parts.items()])
    paths = []
    for number, content in enumerate(files):
        path = folder / f"{number}.pth"
        torch.save(content if model.public_parts else next(iter(content.values())), path)
        paths.append({"path": path})
    return paths


@pytest.mark.parametrize("name", sorted(DEEPFAKES))
def test_public_files_are_taken_over(name, tmp_path):
    public, model = small(name, 1), small(name, 2)
    assert import_weights(name, model, public_files(public, tmp_path)) == []
    found, expected = weights(model), weights(public)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrapper_prefix_and_uncounted_batches(suffix, tmp_path):
    public, model = small("stargan", 1), small("stargan", 2)
    path = tmp_path / f"G{suffix}"
    part = {
        f"module.{key}": value
        for key, value in public.generator.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(part, path) if suffix == ".pth" else save_file(part, path)
    before = {key: value.clone() for key, value in model.discriminator.state_dict().items()}
    assert import_weights("stargan", model, [{"path": path}]) == ["discriminator"]
    for key, value in public.generator.state_dict().items():
        assert torch.equal(model.generator.state_dict()[key], value)
    assert all(torch.equal(model.discriminator.state_dict()[key], value) for key, value in before.items())


def test_hisds_published_layout_gives_a_model_that_edits(tagged_faces, tmp_path):
    """One file of the generator and its running average; the reference faces are this run's own."""
    public, model, path = small("hisd", 1), small("hisd", 2), tmp_path / "checkpoint_256_celeba-hq.pt"
    average = small("hisd", 4).generator
    torch.save({"gen": public.generator.state_dict(), "gen_test": average.state_dict()}, path)
    public.average.load_state_dict(average.state_dict())
    x = tagged_faces.pixels(tagged_faces.positions("val", 3))
    labels = tagged_faces.labels(tagged_faces.positions("val", 3), model.attributes)
    for one in (public, model):
        one.prepare(tagged_faces)
    with torch.no_grad():
        before = freeze(model).edits(x, labels)
        assert import_weights("hisd", model, [{"path": path}]) == ["discriminator"]
        edits = freeze(model).edits(x, labels)
        assert edits.shape == (3, 5, 3, 16, 16) and edits.isfinite().all()
        assert torch.equal(edits, freeze(public).edits(x, labels)) and not torch.equal(edits, before)
        save(model, tmp_path / "own.safetensors", fresh=["discriminator"])
        again = freeze(load(small("hisd", 5), tmp_path / "own.safetensors"))
        assert torch.equal(again.edits(x, labels), edits)


def test_where_weights_come_from_is_remembered_in_our_file(tmp_path):
    model, path = small("attgan"), tmp_path / "weights.safetensors"
    history = {"fresh": ["discriminator"], "imported": [{"file": "é, b.pth", "sha256": "0" * 64}]}
    for known in ({}, {"remark": "a, b"}, history, history | {"remark": "“a”"}):
        save(model, path, **known)
        assert history_of(path) == known
        load(small("attgan", 3), path)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def spoiled(kind, tmp_path):
    model, path = small("attgan", 1), tmp_path / "weights.pth"
    content = {"G": model.generator.state_dict()}
    if kind == "code":
        content["G"]["harm"] = Harm(tmp_path / "harm")
    elif kind == "fewer attributes":
        content = {"G": small("attgan", attributes=model.attributes[:12]).generator.state_dict()}
    elif kind == "wider":
        content = {"G": small("attgan", channels=4).generator.state_dict()}
    elif kind == "another model":
        content = small("stargan").generator.state_dict()
    elif kind == "no part":
        content = {"optimiser": {}}
    elif kind == "list":
        content = [1]
    elif kind == "no generator":
        content = {"D": model.discriminator.state_dict()}
    elif kind == "plain number":
        content["G"]["enc_layers.1.layers.1.num_batches_tracked"] = 3
    elif kind == "not finite":
        content["G"]["dec_layers.0.layers.0.weight"][0, 0, 0, 0] = torch.nan
    elif kind == "integers":
        content["G"]["dec_layers.2.layers.0.bias"] = torch.zeros(3, dtype=torch.int64)
    torch.save(content, path, _use_new_zipfile_serialization="legacy" not in kind)
    if kind == "legacy, cut early":
        path.write_bytes(path.read_bytes()[:16])
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<!doctype html>")
    elif kind == "words":
        path.write_text("error: no such file")
    elif kind == "missing":
        path.unlink()
    file = {"path": path}
    if kind == "sha256":
        file["sha256"] = "0" * 64
    elif kind == "order":
        file["attributes"] = sorted(model.attributes, reverse=True)
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("code", "mkdir, which is more than tensors"),
        ("fewer attributes", "file is for 12 attributes.*config lists 13 attributes"),
        ("wider", "another architecture.*the file's widths and layers"),
        ("another model", "another architecture"),
        ("no part", "no part that AttGAN knows.*optimiser"),
        ("list", "no state dictionary"),
        ("no generator", "lack its generator"),
        ("plain number", "enc_layers.1.layers.1.num_batches_tracked: int"),
        ("not finite", "dec_layers.0.layers.0.weight: NaN"),
        ("integers", "dec_layers.2.layers.0.bias: integers.*floating-point"),
        ("truncated", "cannot read"),
        ("empty", "cannot read"),
        ("text", "cannot read"),
        ("words", "cannot read"),
        ("legacy, cut early", "cannot read"),
        ("missing", "cannot read"),
        ("sha256", "not the one.*sha256 0000"),
        ("order", "other attributes.*Young, Pale_Skin"),
    ],
)
def test_wrong_checkpoints_change_nothing_and_run_nothing(kind, words, tmp_path):
    model = small("attgan", 2)
    before = weights(model)
    with pytest.raises(HoldfastError) as caught:
        import_weights("attgan", model, [spoiled(kind, tmp_path)])
    assert re.search(words, str(caught.value), re.S), caught.value
    assert "weights_only` to `False" not in str(caught.value) and "<name>" not in str(caught.value)
    assert "deepfakes.attgan" in caught.value.repair
    assert not (tmp_path / "harm").exists()
    after = weights(model)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_right_sha256_and_a_declared_order(tmp_path):
    order = ["Young", "Male", "Black_Hair"]
    public, model = small("stargan", 1, attributes=order), small("stargan", 2, attributes=order)
    (generator, discriminator) = public_files(public, tmp_path)
    with pytest.raises(HoldfastError, match="other attributes"):
        import_weights("stargan", model, [generator])
    generator |= {"sha256": sha256_of(generator["path"]).upper(), "attributes": order}
    assert import_weights("stargan", model, [generator, discriminator | {"attributes": order}]) == []


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("name", ["stargan", "attentiongan", "attgan"])
def test_another_number_of_attributes_is_told_in_words(name, network, tmp_path):
    """Whether or not the config says what the file's labels mean."""
    model, public = small(name, 2), DEEPFAKES[name].public_order
    fewer, path = small(name, 1, attributes=public[:-2]), tmp_path / "weights.pth"
    state = fewer.networks[network].state_dict()
    torch.save({model.public_parts[network]: state} if model.public_parts else state, path)
    for declared in ({}, {"attributes": list(public)}, {"attributes": fewer.label_order}):
        with pytest.raises(HoldfastError, match="is for other attributes") as caught:
            import_weights(name, model, [{"path": path, **declared}])
        assert caught.value.found == f"the file is for {len(public) - 2} attributes"
        assert caught.value.expected == f"the config lists {len(public)} attributes"
        assert f"deepfakes.{name}.attributes" in caught.value.repair


def test_attgans_attributes_are_counted_whatever_its_layers(tmp_path):
    """The decoder's first layer takes the deepest map and the attributes, so that both have to be known."""
    model, path = small("attgan", 2), tmp_path / "weights.pth"
    for change in ({"channels": 4}, {"layers": 2}, {"injections": 2}):
        torch.save({"G": small("attgan", 1, **change).generator.state_dict()}, path)
        with pytest.raises(HoldfastError, match="another architecture"):
            import_weights("attgan", model, [{"path": path}])
        fewer = small("attgan", 1, attributes=["Bald", "Male"], **change)
        torch.save({"G": fewer.generator.state_dict()}, path)
        with pytest.raises(HoldfastError, match="file is for 2 attributes"):
            import_weights("attgan", model, [{"path": path}])


def test_other_tags_are_told_in_words(tmp_path):
    public, path = small("hisd", 1), tmp_path / "weights.pth"
    model = small("hisd", 2, tags=public.settings["tags"][1:])
    torch.save({"gen": public.generator.state_dict(), "gen_test": public.average.state_dict()}, path)
    with pytest.raises(HoldfastError, match="is for other attributes") as caught:
        import_weights("hisd", model, [{"path": path}])
    assert caught.value.found == "the file is for tags of 2, 2, 3 values"
    assert caught.value.expected == "the config lists tags of 2, 3 values"


def test_two_files_of_one_network_are_refused(tmp_path):
    model, files = small("stargan", 2), []
    before = weights(model)
    for seed in (3, 4):
        files.append({"path": tmp_path / f"{seed}-G.ckpt"})
        torch.save(small("stargan", seed).generator.state_dict(), files[-1]["path"])
    with pytest.raises(HoldfastError, match="hold the generator of StarGAN") as caught:
        import_weights("stargan", model, files)
    assert "3-G.ckpt and " in caught.value.found and caught.value.found.endswith("4-G.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())


def test_tags_in_another_order_are_another_model(tmp_path):
    public = small("hisd", 1)
    tags = public.settings["tags"]
    turned = small("hisd", 2, tags=[tags[1], tags[0], tags[2]])
    assert turned.attributes == public.attributes and turned.label_order != public.label_order
    files = public_files(public, tmp_path)
    # The attributes alone do not say which tag is which.
    for declared in ({}, {"attributes": list(public.attributes)}, {"attributes": public.label_order}):
        with pytest.raises(HoldfastError, match="other attributes") as caught:
            import_weights("hisd", turned, [file | declared for file in files])
        assert "Eyeglasses=Eyeglasses, Bangs=Bangs" in caught.value.expected
    own = public_files(turned, tmp_path)
    assert import_weights("hisd", turned, [file | {"attributes": turned.label_order} for file in own]) == []
    save(public, tmp_path / "own.safetensors")
    with pytest.raises(HoldfastError, match="knows other attributes"):
        load(turned, tmp_path / "own.safetensors")


def test_sources():
    assert sources_of("train") == []
    assert sources_of("a.pth") == [{"path": "a.pth"}]
    assert sources_of(["a.pth", {"url": "https://host/b", "sha256": "0" * 64}])[1]["sha256"] == "0" * 64
    assert sources_of({"path": Path("a")}) == [{"path": Path("a")}]


def test_a_file_of_pictures_is_not_taken_for_hisds_references(tmp_path):
    model = small("hisd", 1)
    before, path = weights(model), tmp_path / "faces.safetensors"
    save_file({"images": model.references.images}, path)
    files = [*public_files(small("hisd", 2), tmp_path), {"path": path}]
    with pytest.raises(HoldfastError):
        import_weights("hisd", model, files)
    assert all(torch.equal(weights(model)[key], value) for key, value in before.items())
