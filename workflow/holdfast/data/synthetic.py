"""The embedded data set: rendered faces with exact attributes and boxes, and scenes for detectors.

Face i of a set depends on (seed, i) alone, so any part of a set can be rendered anywhere, in any order.
"""

from types import SimpleNamespace

import numpy as np

from holdfast.data import rendering
from holdfast.data.faceset import write_faceset
from holdfast.errors import HoldfastError
from holdfast.seeds import numpy_generator

ATTRIBUTES = [
    "Black_Hair",
    "Blond_Hair",
    "Brown_Hair",
    "Male",
    "Young",
    "Eyeglasses",
    "Bangs",
    "Smiling",
    "Bald",
    "Bushy_Eyebrows",
    "Mouth_Slightly_Open",
    "Mustache",
    "No_Beard",
    "Pale_Skin",
]
_CHUNK_PIXELS = 1 << 14  # pixels painted at once: the working arrays of a chunk stay in the cache
_PLACE_DRAWS = 24


def render_faces(start, count, size, seed):
    """Portraits number `start` to `start + count - 1`, framed like CelebA's centre crop of 178.

    Args:
        start, count: positions in the endless set of `seed`.
        size: side length S in pixels, at least 16.
        seed: any number or name.

    Returns:
        images uint8 (n, S, S, 3), RGB; attributes int8 (n, 14), 0 or 1, in the order of ``ATTRIBUTES``,
        with CelebA's meaning: at most one of the hair colours set (grey and red hair have none, nor has
        a bald man), stubble, beard or moustache unset No_Beard, and a full beard counts as Mustache
        where it covers the upper lip; boxes float32 (n, 4), the face's x1, y1, x2, y2 in pixels:
        hairline to chin, ear to ear.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    attributes = np.empty((count, len(ATTRIBUTES)), np.int8)
    boxes = np.empty((count, 4), np.float32)
    chunk = max(1, _CHUNK_PIXELS // (size * size))
    for low in range(0, count, chunk):
        part = slice(low, min(low + chunk, count))
        drawn = _draw(_keys(start + part.start, start + part.stop, seed), size)
        images[part], attributes[part], boxes[part] = _portraits(drawn, size)
    return images, attributes, boxes


def _portraits(drawn, size):
    place = _portrait_place(drawn.place, size)
    canvas = _backdrop(drawn, size)
    frame = rendering.Frame(size, size, place)
    rendering.paint_people(canvas, frame, drawn.traits, drawn.strands, drawn.coarse)
    images = rendering.finish(canvas, drawn.traits, drawn.noise)
    return images, _attributes(drawn.traits), rendering.face_box(drawn.traits, place)


def face_landmarks(start, count, size, seed):
    """float32 (n, 5, 2): eyes, nose tip and mouth corners of :func:`render_faces`, x and y in pixels."""
    drawn = _draw(_keys(start, start + count, seed), 1)
    return rendering.landmarks(drawn.traits, _portrait_place(drawn.place, size))


def _keys(start, stop, seed):
    return [("synthetic face", seed, position) for position in range(start, stop)]


def _draw(keys, size):
    """All random numbers of some faces: a generator for each, so that the split does not matter."""
    uniform, places, strands, coarse, back, noise = ([] for _ in range(6))
    for key in keys:
        random = numpy_generator(*key)
        uniform.append(random.random(rendering.DRAWS))
        places.append(random.random(_PLACE_DRAWS))
        strands.append(random.random(rendering.STRANDS, np.float32))
        coarse.append(random.random((rendering.COARSE, rendering.COARSE), np.float32))
        back.append(random.random((3, 5, 5), np.float32))
        noise.append(random.standard_normal((size, size), np.float32))
    place, uniform = np.stack(places).astype(np.float32), np.stack(uniform)
    return SimpleNamespace(
        uniform=uniform,
        traits=rendering.draw_traits(uniform),
        place=place,
        strands=np.stack(strands),
        coarse=np.stack(coarse),
        back=np.stack(back),
        noise=np.stack(noise) * (0.003 + 0.009 * place[:, 20, None, None]),
    )


def _portrait_place(random, size):
    """Eyes at about 0.51 and mouth at about 0.74 of the height, as in CelebA's centre crop of 178."""
    unit = size * (0.280 + 0.040 * random[:, 0])
    place = SimpleNamespace(
        x=size * (0.5 + 0.05 * (random[:, 1] - 0.5)),
        y=size * (0.555 + 0.045 * (random[:, 2] - 0.5)),
        unit=unit,
        roll=0.22 * (random[:, 3] - 0.5),
        yaw=0.24 * (random[:, 4] - 0.5),
    )
    return SimpleNamespace(**{k: v.astype(np.float32)[:, None, None] for k, v in vars(place).items()})


def _backdrop(drawn, size):
    """A gradient, blotches and two soft discs of light: float32 (n, 3, S, S)."""
    random = drawn.place[:, 5:20, None, None]
    first, second = random[:, 0:3], random[:, 3:6]
    # Backgrounds of photographs are mostly muted.
    first = 0.08 + 0.85 * (first + 0.75 * (first.mean(1, keepdims=True) - first))
    second = 0.08 + 0.85 * (second + 0.70 * (second.mean(1, keepdims=True) - second))
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    tilt = random[:, 6]
    mix = tilt * ramp[None, None, :] + (1 - tilt) * ramp[None, :, None]
    grids = drawn.back
    blotch = rendering.smooth_noise(grids[:, 0], size, size)
    mix = np.minimum(np.maximum(mix + (1.2 * random[:, 7]) * (blotch - 0.5), 0), 1)
    canvas = first * (1 - mix[:, None]) + second * mix[:, None]
    for disc in (1, 2):
        centre_x, centre_y = grids[:, disc, 0, 0, None, None], grids[:, disc, 0, 1, None, None]
        radius = 0.08 + 0.25 * grids[:, disc, 0, 2, None, None]
        square = (ramp[None, None, :] - centre_x) ** 2 + (ramp[None, :, None] - centre_y) ** 2
        alpha = rendering.inside(np.sqrt(square) - radius, 0.04 + 0.2 * grids[:, disc, 0, 3, None, None])
        colour = grids[:, disc, 1, 0:3, None, None]
        colour = colour + 0.5 * (colour.mean(1, keepdims=True) - colour)
        rendering.blend(canvas, colour, alpha * (0.6 * grids[:, disc, 0, 4, None, None]))
    return canvas


def _attributes(traits):
    t = traits
    hair = np.where(t.bald > 0, -1, t.hair_kind)
    columns = {
        "Black_Hair": hair == 0,
        "Blond_Hair": hair == 1,
        "Brown_Hair": hair == 2,
        "Male": t.male,
        "Young": t.young,
        "Eyeglasses": t.glasses,
        "Bangs": t.bangs,
        "Smiling": t.smiling,
        "Bald": t.bald,
        "Bushy_Eyebrows": t.bushy,
        "Mouth_Slightly_Open": t.mouth_is_open,
        "Mustache": t.moustache,
        "No_Beard": t.beard_is_clean,
        "Pale_Skin": t.pale,
    }
    return np.concatenate([columns[name] for name in ATTRIBUTES], 1)[:, :, 0].astype(np.int8)


def render_scenes(start, count, size, seed, faces=(1, 4)):
    """Pictures for detectors: faces of many sizes before a cluttered background with decoys.

    A tenth of them are portraits with the framing of :func:`render_faces`. In the others the height of
    a face is 12 to 70 % of the side. Faces lie wholly inside and hardly overlap.

    Args:
        start, count, size, seed: as in :func:`render_faces`; size at least 32.
        faces: fewest and most faces in a scene (fewer where no room is left).

    Returns:
        images uint8 (n, S, S, 3), RGB; a list of n boxes float32 (k, 4) in pixels, largest face first.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    boxes = []
    for i in range(count):
        images[i], found = _scene(("synthetic scene", seed, start + i), size, faces)
        boxes.append(found)
    return images, boxes


def _scene(key, size, faces):
    random = numpy_generator(*key, "layout")
    drawn = _draw([key], size)
    canvas = _backdrop(drawn, size)
    if random.random() < 0.1:
        people = [(drawn, _portrait_place(drawn.place, size))]
    else:
        _add_clutter(canvas, random)
        people = _arrange(random, key, size, faces)
    # Who stands lower is nearer: his head covers the shoulders of those behind.
    for person, place in sorted(people, key=lambda pair: (pair[1].y + pair[1].unit).item()):
        _paint_person(canvas, person, place)
    boxes = np.concatenate([rendering.face_box(person.traits, place) for person, place in people])
    return rendering.finish(canvas, drawn.traits, drawn.noise)[0], boxes


def render_background(key, size):
    """A scene without a face: what stands behind those of :func:`render_scenes`, clutter and decoys.

    Args:
        key: names to seed by.
        size: as in :func:`render_scenes`.

    Returns:
        float32 (1, 3, S, S), RGB, about [0, 1]; and the function that makes a picture of it once it is
        painted on: exposure, colour cast, noise and rounding, to uint8 (S, S, 3).
    """
    drawn = _draw([key], size)
    canvas = _backdrop(drawn, size)
    _add_clutter(canvas, numpy_generator(*key, "layout"))
    return canvas, lambda painted: rendering.finish(painted, drawn.traits, drawn.noise)[0]


def _arrange(random, key, size, faces):
    """Places for faces: (drawn, place) per face, largest first, boxes inside and apart."""
    number = int(random.integers(faces[0], faces[1] + 1))
    largest = 0.70 / np.sqrt(number)
    shares = np.sort(np.exp(random.uniform(np.log(0.12), np.log(max(largest, 0.15)), number)))[::-1]
    people, taken = [], np.empty((0, 4))
    for index, share in enumerate(shares):
        person = _draw([(*key, index)], 1)
        for _ in range(60):
            place = SimpleNamespace(
                x=0.0,
                y=0.0,
                unit=share * size / 2.08,
                roll=random.uniform(-0.35, 0.35),
                yaw=random.uniform(-0.16, 0.16),
            )
            place = SimpleNamespace(**{k: np.full((1, 1, 1), v, np.float32) for k, v in vars(place).items()})
            x1, y1, x2, y2 = rendering.face_box(person.traits, place)[0]
            place.x += np.float32(random.uniform(-x1 + 0.5, size - 0.5 - x2))
            place.y += np.float32(random.uniform(-y1 + 0.5, size - 0.5 - y2))
            unit = place.unit.item()
            box = rendering.face_box(person.traits, place)[0]
            # Hair stands out from the face, and the chin needs its neck.
            room = box + unit * np.array([-0.35, -0.35, 0.35, 0.25])
            apart = (room[2] < taken[:, 0]) | (room[0] > taken[:, 2])
            apart |= (room[3] < taken[:, 1]) | (room[1] > taken[:, 3])
            if apart.all():
                taken = np.concatenate([taken, room[None]])
                people.append((person, place))
                break
            share = max(0.12, share * 0.97)
    return people


def _paint_person(canvas, person, place):
    """Paint within the part of a scene that the person can touch."""
    size = canvas.shape[2]
    x, y, unit = (float(value.item()) for value in (place.x, place.y, place.unit))
    left, right = max(0, int(x - 3.4 * unit)), min(size, int(x + 3.4 * unit) + 1)
    top = max(0, int(y - 2.4 * unit))
    frame = rendering.Frame(size - top, right - left, place, left, top)
    part = canvas[:, :, top:, left:right]
    rendering.paint_people(part, frame, person.traits, person.strands, person.coarse)


def _add_clutter(canvas, random):
    """Boxes, stripes, discs, and ovals of the colour of skin with and without a cap of hair: no faces."""
    size = canvas.shape[2]
    for _ in range(int(random.integers(4, 22))):
        r = random.random(20).astype(np.float32)
        share = 0.03 + 0.42 * r[0] * r[0]
        place = SimpleNamespace(
            x=size * r[1], y=size * r[2], unit=size * share, roll=3.1 * (r[3] - 0.5), yaw=0
        )
        kind = int(r[4] * 6)
        if kind >= 4:
            place.roll *= 0.25
        place = SimpleNamespace(**{k: np.full((1, 1, 1), v, np.float32) for k, v in vars(place).items()})
        reach = 1.5 * size * share + 2
        rows, columns = (
            slice(int(max(0, middle - reach)), int(max(0, min(size, middle + reach))))
            for middle in (size * r[2], size * r[1])
        )
        part = canvas[:, :, rows, columns]
        if part.size == 0:
            continue
        frame = rendering.Frame(part.shape[2], part.shape[3], place, columns.start, rows.start)
        u, v = frame.u / (0.35 + 0.65 * r[5]), frame.v
        oval = np.sqrt(u * u + v * v) - 1
        square = np.maximum(np.abs(u), np.abs(v)) - 1
        distance = (oval, square, square, np.abs(oval) - 0.2 * r[6], oval, oval)[kind]
        colour = r[7:10] + 0.4 * (r[7:10].mean() - r[7:10])
        if kind >= 4:
            colour = rendering.draw_traits(random.random((1, rendering.DRAWS))).skin[0, :, 0, 0]
            u, distance = frame.u / 0.75, np.sqrt((frame.u / 0.75) ** 2 + v * v) - 1
        light = 0.9 + 0.4 * (r[10] - 0.5) * u + 0.4 * (r[11] - 0.5) * v
        if kind in (1, 2) and r[12] < 0.5 or kind == 0 and r[12] < 0.2:
            wave = v * (1 + 5 * r[13])
            light = light * (0.7 + 0.9 * r[14] * np.abs(wave - np.round(wave)))
        if kind >= 4:
            light = light - 0.35 * np.maximum(distance + 0.35, 0)
        cover = rendering.inside(distance, np.maximum(frame.pixel, 0.2 * r[15] * r[15]))
        rendering.blend(part, colour[None, :, None, None] * light[:, None], cover)
        if kind == 5:
            cap = cover * rendering.inside(v + 0.4 + r[16] * u * u, np.maximum(frame.pixel, 0.05))
            rendering.blend(part, r[17:20][None, :, None, None] * (0.5 * light[:, None]), cap)


def prepare(folder, settings, image_size, seed):
    """Write the face set: `settings` holds the numbers of images `train`, `val` and `test`.

    Faces 0 to train - 1 are the training split, the next are for validation, the last for testing.

    Returns:
        the opened :class:`~holdfast.data.faceset.FaceSet`.

    Raises:
        HoldfastError: a number is missing, negative, or not an integer.
    """
    numbers = {split: settings.get(split) for split in ("train", "val", "test")}
    for split, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise HoldfastError(
                f"the data set 'synthetic' has a bad `{split}`",
                found=repr(number),
                expected="a number of images, 0 or more",
                repair=f"set datasets.synthetic.{split} in the config",
            )
    total = sum(numbers.values())
    report = {
        "dataset": "synthetic",
        "source": f"rendered by holdfast.data.synthetic, seed {seed}",
        "found": total,
        "problems": {"damaged": 0, "missing_attributes": 0, "wrong_size": 0},
        "problem_fraction": 0,
        "limit": 0,
        "files": [],
    }
    return write_faceset(folder, image_size, _rows(numbers, image_size, seed), ATTRIBUTES, report)


def _rows(numbers, image_size, seed):
    splits = [split for split, number in numbers.items() for _ in range(number)]
    step = 64
    for low in range(0, len(splits), step):
        part = splits[low : low + step]
        images, attributes, boxes = render_faces(low, len(part), image_size, seed)
        for offset, split in enumerate(part):
            name = f"synthetic_{low + offset:06d}.png"
            yield images[offset], name, split, boxes[offset], attributes[offset]


SETTINGS = {
    "train": {"type": "integer", "minimum": 0, "default": 4000, "description": "Faces to train on."},
    "val": {"type": "integer", "minimum": 0, "default": 200, "description": "Faces for perturbations."},
    "test": {"type": "integer", "minimum": 0, "default": 400, "description": "Faces for tests."},
}
REGISTER = {"synthetic": prepare}
