from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.data import DATASETS, rendering, synthetic
from holdfast.data.faceset import FaceSet, read_report
from holdfast.data.synthetic import ATTRIBUTES, face_landmarks, prepare, render_faces, render_scenes
from holdfast.errors import HoldfastError

COLUMN = {name: index for index, name in enumerate(ATTRIBUTES)}
HAIR = ["Black_Hair", "Blond_Hair", "Brown_Hair"]
# What share of the faces has an attribute: least and most.
SHARES = {
    **dict.fromkeys(HAIR, (0.2, 0.3)),
    "Male": (0.44, 0.48),
    "Young": (0.66, 0.70),
    "Eyeglasses": (0.20, 0.24),
    "Bangs": (0.26, 0.31),
    "Smiling": (0.48, 0.52),
    "Bald": (0.06, 0.08),
    "Bushy_Eyebrows": (0.20, 0.25),
    "Mouth_Slightly_Open": (0.43, 0.47),
    "Mustache": (0.09, 0.115),
    "No_Beard": (0.6, 0.75),
    "Pale_Skin": (0.10, 0.13),
}


@pytest.fixture(scope="module")
def faces():
    return render_faces(0, 900, 64, 3)


def test_shapes_and_types():
    images, attributes, boxes = render_faces(5, 3, 48, 0)
    assert images.shape == (3, 48, 48, 3) and images.dtype == np.uint8
    assert len(ATTRIBUTES) == 14
    assert attributes.shape == (3, 14) and attributes.dtype == np.int8
    assert boxes.shape == (3, 4) and boxes.dtype == np.float32
    empty = render_faces(0, 0, 48, 0)
    assert [len(part) for part in empty] == [0, 0, 0]


@settings(max_examples=12, deadline=None)
@given(
    size=st.sampled_from([32, 57, 64, 128]),
    start=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 9), max_size=3).map(sorted),
)
def test_a_face_does_not_depend_on_the_split(size, start, cuts):
    whole = render_faces(start, 9, size, "split")
    edges = [0, *cuts, 9]
    parts = [
        render_faces(start + a, b - a, size, "split") for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    for index in range(3):
        np.testing.assert_array_equal(whole[index], np.concatenate([part[index] for part in parts]))


def test_the_chunk_does_not_matter(monkeypatch):
    whole = render_faces(0, 12, 64, 1)
    monkeypatch.setattr(synthetic, "_CHUNK_PIXELS", 5 * 64 * 64)
    for one, other in zip(whole, render_faces(0, 12, 64, 1), strict=True):
        np.testing.assert_array_equal(one, other)


def test_seeds_and_positions_give_other_faces():
    first, second, third = (render_faces(start, 1, 32, seed)[0] for start, seed in ((0, 0), (1, 0), (0, 1)))
    for one, other in ((first, second), (first, third), (second, third)):
        assert np.abs(one.astype(int) - other).mean() > 5


def test_labels(faces):
    attributes = faces[1]
    assert set(np.unique(attributes)) == {0, 1}
    hair = attributes[:, :3].sum(1)
    assert hair.max() == 1
    assert 0.03 < (hair == 0).mean() < 0.4  # grey and red hair


@pytest.fixture(scope="module")
def many():
    """The traits of 20,000 faces and, by name, whether they have an attribute."""
    traits = rendering.draw_traits(np.random.default_rng(0).random((20000, rendering.DRAWS)))
    labels = synthetic._attributes(traits) == 1
    return traits, {name: labels[:, column] for name, column in COLUMN.items()}


def test_prevalence(many):
    assert list(SHARES) == ATTRIBUTES
    found = {name: has.mean() for name, has in many[1].items()}
    assert {n: x for n, x in found.items() if not SHARES[n][0] < x < SHARES[n][1]} == {}


def test_what_excludes_what(many):
    has = many[1]
    assert has["Male"][has["Bald"]].all()
    for name in (*HAIR, "Bangs"):
        assert not (has["Bald"] & has[name]).any()
    assert has["Male"][has["Mustache"]].all() and has["Male"][~has["No_Beard"]].all()
    assert not (has["Mustache"] & has["No_Beard"]).any()
    # And what does not: closed smiles, open mouths without a smile, beards that spare the upper lip.
    for one, other in (("Smiling", "Mouth_Slightly_Open"), ("Bushy_Eyebrows", "Male"), ("Pale_Skin", "Male")):
        for first in (has[one], ~has[one]):
            assert (first & has[other]).sum() > 200 and (first & ~has[other]).sum() > 200
    for both in (
        has["Bald"] & has["Young"],
        has["Bald"] & ~has["Young"],
        ~has["No_Beard"] & ~has["Mustache"],
    ):
        assert both.sum() > 200


def test_labels_are_no_thresholds_in_a_continuum(many):
    """Between those with and without an attribute lies a gap that is wide beside either group's spread."""
    traits, has = many

    def gap(values, with_it):
        return values[with_it].min() - values[~with_it].max()

    assert gap(traits.brow_thick[:, 0, 0], has["Bushy_Eyebrows"]) > 0.06
    assert gap(traits.mouth_open[:, 0, 0], has["Mouth_Slightly_Open"]) > 0.08
    skin = traits.skin[:, :, 0, 0]
    saturation = (skin.max(1) - skin.min(1)) / skin.max(1)
    assert gap(skin.mean(1), has["Pale_Skin"]) > 0.04 and gap(-saturation, has["Pale_Skin"]) > 0.04
    beard = np.maximum(traits.beard, traits.moustache)[:, 0, 0]
    assert gap(-beard, has["No_Beard"]) > 0.35


def test_boxes_hold_the_face(faces):
    boxes = faces[2]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= 64).all()
    height = (boxes[:, 3] - boxes[:, 1]) / 64
    assert 0.53 < height.min() and height.max() < 0.68
    centre = (boxes[:, :2] + boxes[:, 2:]) / 128
    assert np.abs(centre - [0.5, 0.555]).max() < 0.06
    points = face_landmarks(0, 900, 64, 3)
    margin = np.minimum(points - boxes[:, None, :2], boxes[:, None, 2:] - points)
    assert margin.min() > 1
    left, right, nose, mouth_left, mouth_right = points.transpose(1, 0, 2)
    assert (left[:, 0] < right[:, 0]).all() and (mouth_left[:, 0] < mouth_right[:, 0]).all()
    assert (nose[:, 1] > np.maximum(left[:, 1], right[:, 1])).all()
    assert (nose[:, 1] < np.minimum(mouth_left[:, 1], mouth_right[:, 1])).all()


def test_the_box_is_tight():
    """The oval touches all four sides: its mask, rasterised, has the box as its bounding box."""
    drawn = synthetic._draw(synthetic._keys(0, 6, "tight"), 1)
    place = synthetic._portrait_place(drawn.place, 256)
    boxes = rendering.face_box(drawn.traits, place)
    frame = rendering.Frame(256, 256, place)
    half = rendering.jaw_width(drawn.traits, frame.v)
    oval = (frame.u / half) ** 2 + frame.v**2 < 1
    for mask, (x1, y1, x2, y2) in zip(oval, boxes, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose([x1, y1, x2, y2], found, atol=1.5)


def test_sizes_show_the_same_face():
    small, attributes, boxes = render_faces(0, 8, 64, 2)
    large, same, large_boxes = render_faces(0, 8, 128, 2)
    np.testing.assert_array_equal(attributes, same)
    np.testing.assert_allclose(boxes * 2, large_boxes, rtol=1e-5)
    halved = large.reshape(8, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 8


def _patch(faces, u, v, half=2):
    """Mean colour (n, 3) around a place of the face, given in halves of its box."""
    images, _, boxes = faces
    x = ((boxes[:, 0] + boxes[:, 2]) / 2 + u * (boxes[:, 2] - boxes[:, 0]) / 2).astype(int)
    y = ((boxes[:, 1] + boxes[:, 3]) / 2 + v * (boxes[:, 3] - boxes[:, 1]) / 2).astype(int)
    steps = np.arange(-half, half + 1)
    rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None, :]
    return images[np.arange(len(images))[:, None, None], rows, columns].astype(float).mean((1, 2))


def test_hair_colours_differ(faces):
    colour = _patch(faces, 0, -1.2, 1)
    black, blond, brown = (np.median(colour[faces[1][:, i] == 1], 0) for i in range(3))
    assert black.mean() < 35 < 45 < brown.mean() < 100 < 120 < blond.mean()
    assert blond[0] - blond[2] > 40 and brown[0] - brown[2] > 25 and abs(black[0] - black[2]) < 20
    coloured = faces[1][:, :3].any(1)
    centres = np.stack([black, blond, brown])
    nearest = np.abs(colour[coloured][:, None] - centres).sum(2).argmin(1)
    assert (nearest == faces[1][coloured, :3].argmax(1)).mean() > 0.9


def test_fringe_teeth_and_frames_are_where_they_belong(faces):
    attributes = faces[1]
    with_black_hair = attributes[:, COLUMN["Black_Hair"]] == 1
    bangs, smiling, glasses = (
        attributes[:, COLUMN[name]] == 1 for name in ("Bangs", "Smiling", "Eyeglasses")
    )
    forehead = _patch(faces, 0, -0.65).mean(1)
    assert forehead[with_black_hair & bangs].mean() < 0.6 * forehead[with_black_hair & ~bangs].mean()
    mouth, cheek = _patch(faces, 0, 0.62, 0), _patch(faces, 0.45, 0.2)
    brightness = mouth[:, 1:].mean(1) / cheek[:, 1:].mean(1)
    teeth = smiling & (attributes[:, COLUMN["Mouth_Slightly_Open"]] == 1)
    assert brightness[teeth].mean() > 1.3 * brightness[~teeth].mean()
    rim = _patch(faces, 0, -0.2, 1).mean(1) / cheek.mean(1)
    assert rim[glasses].mean() < 0.85 * rim[~glasses].mean()


def test_each_attribute_can_be_learned_from_pixels(faces):
    """A linear (ridge) classifier on 32 x 32 pixels ranks unseen faces by every attribute.

    But brown hair: it lies between black and blond, which no linear classifier can single out. The
    test above finds it by its colour.
    """
    images, attributes, _ = faces
    pixels = images.reshape(900, 32, 2, 32, 2, 3).mean((2, 4)).reshape(900, -1) / 127.5 - 1
    pixels -= pixels[:700].mean(0)
    targets = attributes - attributes[:700].mean(0)
    kernel = pixels[:700] @ pixels[:700].T
    weights = np.linalg.solve(kernel + 30 * np.eye(700), targets[:700])
    guess, truth = pixels[700:] @ (pixels[:700].T @ weights), attributes[700:]
    # How often a face with the attribute gets more than one without (the area under the ROC curve).
    found = {}
    for name, i in COLUMN.items():
        yes, no = guess[truth[:, i] == 1, i], guess[truth[:, i] == 0, i]
        found[name] = (yes[:, None] > no).mean()
    assert min(value for name, value in found.items() if name != "Brown_Hair") > 0.8, found


@pytest.fixture(scope="module", params=[48, 64])
def twins(request):
    """By name, pairs of portraits of which only one number differs, and of the labels only this one.

    Each: images with and without the attribute (n, S, S, 3) float, the labels without it, and the face
    coordinates u and v of every pixel (n, S, S).
    """
    size, count = request.param, 150
    drawn = synthetic._draw(synthetic._keys(0, count, "twins"), size)
    labels = synthetic._attributes(drawn.traits)
    frame = rendering.Frame(size, size, synthetic._portrait_place(drawn.place, size))
    changed = {}
    for column in reversed(range(rendering.DRAWS)):
        for value in (0.0, 0.999):
            uniform = drawn.uniform.copy()
            uniform[:, column] = value
            differs = labels != synthetic._attributes(rendering.draw_traits(uniform))
            for name in ATTRIBUTES[8:]:
                # Who loses his hair loses its colour's label too.
                only = [COLUMN[other] for other in (name, *HAIR) if other == name or name == "Bald"]
                right = differs[:, COLUMN[name]] & ~np.delete(differs, only, 1).any(1)
                for face in np.flatnonzero(right):
                    changed.setdefault(name, {}).setdefault(face, uniform[face])

    pairs = {}
    for name, faces in changed.items():
        index = np.array(sorted(faces))
        parts = {key: value[index] for key, value in vars(drawn).items() if key != "traits"}
        one = [
            synthetic._portraits(SimpleNamespace(**parts, traits=rendering.draw_traits(uniform)), size)
            for uniform in (drawn.uniform[index], np.stack([faces[face] for face in index]))
        ]
        np.testing.assert_array_equal(one[0][2], one[1][2])  # the boxes
        first = one[0][1][:, COLUMN[name]] == 1
        images = [part[0].astype(float) for part in one]
        pairs[name] = (
            np.where(first[:, None, None, None], *images),
            np.where(first[:, None, None, None], *images[::-1]),
            np.where(first[:, None], one[1][1], one[0][1]),
            frame.u[index],
            frame.v[index],
        )
    return pairs


def _mean(values, where):
    return (values * where).sum((1, 2)) / where.sum((1, 2))


def _part(twin, u0, u1, v0, v1):
    """Both images' mean colours (n, 3) where u0 < |u| < u1 and v0 < v < v1."""
    one, other, _, u, v = twin
    part = ((np.abs(u) > u0) & (np.abs(u) < u1) & (v > v0) & (v < v1))[..., None]
    return ((image * part).sum((1, 2)) / part.sum((1, 2)) for image in (one, other))


# Outside of |u| < u1 and v0 < v < v1 nothing may change.
PAINTED = {
    "Bushy_Eyebrows": (0.75, -0.62, 0.05),
    "Mouth_Slightly_Open": (0.75, 0.15, 1.0),
    "Mustache": (0.75, 0.1, 1.0),
    "No_Beard": (1.0, 0.05, 1.2),
}


@pytest.mark.parametrize("name", PAINTED)
def test_a_trait_changes_its_place_and_nothing_else(twins, name):
    one, other, labels, u, v = twins[name]
    u1, v0, v1 = PAINTED[name]
    place = (np.abs(u) < u1) & (v > v0) & (v < v1)
    change = np.abs(one - other).max(3)
    assert len(one) > 25 and (change.max((1, 2)) > 20).all()
    # A fringe gives way to bushy brows: it ends higher.
    apart = (labels[:, COLUMN["Bangs"]] == 0) | (name != "Bushy_Eyebrows")
    assert change[apart][~place[apart]].max() == 0


def test_hair_of_brows_lip_and_jaw_can_be_seen(twins):
    thick, thin = _part(twins["Bushy_Eyebrows"], 0.2, 0.5, -0.48, -0.24)
    bare_forehead = twins["Bushy_Eyebrows"][2][:, COLUMN["Bangs"]] == 0
    darker = (thin - thick).mean(1)[bare_forehead]
    assert darker.min() > 5 and np.median(darker) > 25
    with_moustache, without = _part(twins["Mustache"], -1, 0.25, 0.40, 0.52)
    darker = (without - with_moustache).mean(1)
    assert darker.min() > 5 and np.median(darker) > 35
    clean, bearded = _part(twins["No_Beard"], -1, 0.4, 0.75, 0.95)
    change = np.abs(clean - bearded).mean(1)  # a grey beard can be lighter than the skin
    assert change.min() > 5 and np.median(change) > 20
    assert ((clean - bearded).mean(1) > 5).mean() > 0.7


def test_an_open_mouth_is_dark_or_shows_teeth(twins):
    is_open, closed = _part(twins["Mouth_Slightly_Open"], -1, 0.15, 0.57, 0.70)
    smiling = twins["Mouth_Slightly_Open"][2][:, COLUMN["Smiling"]] == 1
    difference = (is_open - closed).mean(1)
    # A moustache or a turned head hides the middle of a few.
    assert np.median(difference[smiling]) > 15 and (difference[smiling] > 0).mean() > 0.9
    assert np.median(difference[~smiling]) < -20 and (difference[~smiling] < 0).mean() > 0.85


def test_pale_skin_is_lighter_and_less_saturated(twins):
    pale, other = _part(twins["Pale_Skin"], 0.2, 0.5, 0.1, 0.4)
    lighter = (pale - other).mean(1)
    assert lighter.min() > 5 and np.median(lighter) > 25
    saturation = [1 - colour.min(1) / colour.max(1) for colour in (pale, other)]
    assert (saturation[1] - saturation[0] > 0.03).all()


def test_a_bald_head_has_skin_where_hair_was(twins):
    brow, _ = _part(twins["Bald"], -1, 0.3, -0.6, -0.45)
    bald, hairy = (np.abs(crown - brow).mean(1) for crown in _part(twins["Bald"], -1, 0.3, -1.25, -1.05))
    assert len(bald) > 25 and bald.max() < 35
    assert (hairy > bald + 5).mean() > 0.95 and np.median(hairy) > 60


def test_scenes():
    images, boxes = render_scenes(0, 40, 96, 0)
    assert images.shape == (40, 96, 96, 3) and images.dtype == np.uint8 and len(boxes) == 40
    everything = np.concatenate(boxes)
    assert everything.dtype == np.float32
    assert (everything[:, :2] >= 0).all() and (everything[:, 2:] <= 96).all()
    heights = (everything[:, 3] - everything[:, 1]) / 96
    assert 0.09 < heights.min() < 0.2 and 0.5 < heights.max() < 0.75
    counts = np.array([len(found) for found in boxes])
    assert counts.min() >= 1 and counts.max() == 4 and len(set(counts)) == 4
    for found in boxes:
        for i in range(len(found)):
            for j in range(i):
                low, high = np.maximum(found[i, :2], found[j, :2]), np.minimum(found[i, 2:], found[j, 2:])
                assert not ((high - low) > 0).all()


def test_scenes_do_not_depend_on_the_split():
    images, boxes = render_scenes(0, 6, 64, 9, faces=(2, 3))
    again, same = render_scenes(4, 2, 64, 9, faces=(2, 3))
    np.testing.assert_array_equal(images[4:], again)
    for one, other in zip(boxes[4:], same, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(images, render_scenes(0, 6, 64, 10, faces=(2, 3))[0])


def test_prepare_writes_a_face_set(tmp_path):
    assert DATASETS["synthetic"] is prepare
    prepare(tmp_path / "faces", {"train": 70, "val": 3, "test": 4}, 32, 5)
    faces = FaceSet.open(tmp_path / "faces")
    assert len(faces) == 77 and faces.size == 32 and faces.attributes == ATTRIBUTES
    assert [len(faces.positions(split)) for split in ("train", "val", "test")] == [70, 3, 4]
    assert list(faces.index["file"][[0, 76]]) == ["synthetic_000000.png", "synthetic_000076.png"]
    images, attributes, boxes = render_faces(0, 77, 32, 5)
    np.testing.assert_array_equal(faces.images, images)
    np.testing.assert_array_equal(faces.labels(np.arange(77), ATTRIBUTES).numpy(), attributes)
    np.testing.assert_allclose(faces.boxes(np.arange(77)), boxes, atol=0.006)
    report = read_report(tmp_path / "faces")
    assert report["dataset"] == "synthetic" and report["used"] == report["found"] == 77
    assert set(report["problems"].values()) == {0} and report["problem_fraction"] == 0


@pytest.mark.parametrize("train", [-1, 2.5, None, "many", True])
def test_prepare_refuses_bad_numbers(tmp_path, train):
    with pytest.raises(HoldfastError, match="train"):
        prepare(tmp_path / "faces", {"train": train, "val": 1, "test": 1}, 32, 0)
    assert not (tmp_path / "faces").exists()
