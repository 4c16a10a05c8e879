"""Painting of human faces with soft analytic shapes, in NumPy, vectorised over a batch.

A face is described in *face units*: u to the right, v downwards, chin at v = 1, hairline at v = -1, the
widest place of the cheeks at v = 0. Every shape is a signed distance whose coverage falls from 1 to 0
over one pixel, so nothing is supersampled. Per pixel only + - * / sqrt, minimum and maximum are used:
these are rounded exactly, so a face does not depend on which others are painted with it.

Arrays: canvas float32 (n, 3, H, W) in [0, 1] sRGB; parameters (n, 1, 1); colours (n, 3, 1, 1).
"""

from types import SimpleNamespace

import numpy as np

EYE_LEVEL, MOUTH_LEVEL, NOSE_LEVEL = -0.16, 0.56, 0.27
DRAWS = 112  # uniform numbers that describe one face
_LATE = 92  # the numbers from here on are for the traits that came later: the others keep theirs
STRANDS = 160  # entries of a face's table of hair strands
COARSE = 6  # side of the coarse grid of a face's smooth noise

_SKIN = np.array(
    [
        [0.96, 0.81, 0.73],
        [0.92, 0.74, 0.63],
        [0.85, 0.65, 0.52],
        [0.74, 0.54, 0.41],
        [0.58, 0.40, 0.29],
        [0.42, 0.28, 0.20],
    ],
    np.float32,
)
# Skin up to this place of the table is painted with the pale colour instead.
_PALE_BELOW = 0.235
_PALE = np.array([0.965, 0.905, 0.875], np.float32)[None, :, None, None]
# Darkest and lightest tone of black, blond, brown, grey and red hair.
_HAIR = np.array(
    [
        [[0.05, 0.045, 0.05], [0.12, 0.10, 0.10]],
        [[0.74, 0.58, 0.30], [0.93, 0.82, 0.56]],
        [[0.33, 0.19, 0.10], [0.48, 0.30, 0.165]],
        [[0.52, 0.52, 0.53], [0.78, 0.78, 0.78]],
        [[0.52, 0.17, 0.06], [0.66, 0.27, 0.10]],
    ],
    np.float32,
)
_IRIS = np.array(
    [[0.22, 0.12, 0.06], [0.36, 0.22, 0.10], [0.30, 0.36, 0.22], [0.30, 0.45, 0.60], [0.45, 0.52, 0.55]],
    np.float32,
)


def clip01(x):
    return np.minimum(np.maximum(x, 0, out=x), 1, out=x)


def inside(distance, width):
    """Coverage of a shape with signed distance `distance` (negative inside), soft over `width`."""
    return clip01(0.5 - distance / width)


def stroke(distance, thickness, width):
    """Coverage of a line: right also where it is thinner than the pixel."""
    return clip01((distance + thickness / 2) / width + 0.5) - clip01((distance - thickness / 2) / width + 0.5)


def bump(q):
    """(1 - q)^2 inside q < 1, 0 outside: a bell with compact support, so that windows are exact."""
    t = np.maximum(1 - q, 0)
    return t * t


def smoothstep(x, low, high):
    t = clip01((x - low) / (high - low))
    return t * t * (3 - 2 * t)


def blend(canvas, colour, alpha):
    """Paint `colour` (n, 3, 1, 1) or (n, 3, h, w) over the canvas with coverage `alpha` (n, h, w)."""
    canvas += alpha[:, None] * (colour - canvas)


def shade(canvas, amount, warmth=0.1):
    """Darken by `amount` (n, h, w) in 0..1; red fades less, as light scatters in skin."""
    for channel, weight in enumerate((1 - warmth, 1.0, 1 + warmth / 2)):
        canvas[:, channel] *= 1 - weight * amount


def smooth_noise(grid, height, width):
    """(n, k, k) values to (n, height, width), interpolated smoothly."""
    return _weights(grid.shape[1], height) @ grid @ _weights(grid.shape[2], width).T


def _weights(count, length):
    position = (np.arange(length, dtype=np.float32) + 0.5) / length * (count - 1)
    low = np.minimum(position.astype(int), count - 2)
    t = position - low
    t = t * t * (3 - 2 * t)
    weights = np.zeros((length, count), np.float32)
    weights[np.arange(length), low] = 1 - t
    weights[np.arange(length), low + 1] = t
    return weights


class Frame:
    """The face coordinates of every pixel of a canvas.

    Args:
        height, width: of the canvas.
        place: namespace of (n, 1, 1): x, y (pixels of the face's centre), unit (pixels per face unit),
            roll (radians), yaw (face units by which the nearest part of the face moves to the right).
        left, top: where the canvas lies in the image that `place` refers to.
    """

    def __init__(self, height, width, place, left=0, top=0):
        x = (np.arange(width, dtype=np.float32) + (0.5 + left))[None, None, :] - place.x
        y = (np.arange(height, dtype=np.float32) + (0.5 + top))[None, :, None] - place.y
        self.cos, self.sin = np.cos(place.roll) / place.unit, np.sin(place.roll) / place.unit
        self.u = x * self.cos + y * self.sin
        self.v = y * self.cos - x * self.sin
        self.pixel = 1 / place.unit
        self.place, self.left, self.top, self.shape = place, left, top, (height, width)

    def window(self, u0, u1, v0, v1):
        """The slices (rows, columns) that hold the rectangle u0..u1, v0..v1 of every face."""
        corners = np.array([[u0, v0], [u0, v1], [u1, v0], [u1, v1]], np.float32)
        x, y = to_pixels(self.place, corners)
        rows = _span(y.min() - self.top, y.max() - self.top, self.shape[0])
        columns = _span(x.min() - self.left, x.max() - self.left, self.shape[1])
        return rows, columns


def _span(low, high, length):
    return slice(max(0, min(length, int(low) - 1)), max(0, min(length, int(high) + 2)))


def to_pixels(place, points):
    """Face coordinates (k, 2) or (n, k, 2) to pixels: two arrays (n, k)."""
    u, v = points[..., 0], points[..., 1]
    cos, sin, unit = np.cos(place.roll)[:, :, 0], np.sin(place.roll)[:, :, 0], place.unit[:, :, 0]
    return place.x[:, :, 0] + unit * (u * cos - v * sin), place.y[:, :, 0] + unit * (u * sin + v * cos)


def jaw_width(traits, v):
    """Half width of the face's ellipse at level v: it narrows below the cheeks."""
    low = np.minimum(np.maximum(v, 0), 1)
    return traits.width * (1 - traits.jaw * low * low)


def face_box(traits, place):
    """float32 (n, 4): x1, y1, x2, y2 of the face oval (hairline to chin, ear to ear) in pixels."""
    angle = np.linspace(0, 2 * np.pi, 128, endpoint=False, dtype=np.float32)[None, None, :]
    v = np.sin(angle)
    u = jaw_width(traits, v) * np.cos(angle)
    x, y = to_pixels(place, np.stack(np.broadcast_arrays(u, v), -1)[:, 0])
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1).astype(np.float32)


def landmarks(traits, place):
    """float32 (n, 5, 2): left eye, right eye (of the image), nose tip, left and right mouth corner."""
    half_mouth = traits.mouth_width[:, 0, 0]
    eye = traits.eye_distance[:, 0, 0]
    ones = np.ones_like(eye)
    points = np.stack(
        [
            np.stack([-eye, eye, 0 * eye, -half_mouth, half_mouth], 1),
            np.stack([EYE_LEVEL * ones] * 2 + [NOSE_LEVEL * ones] + [MOUTH_LEVEL * ones] * 2, 1),
        ],
        -1,
    )
    points[:, :, 0] += place.yaw[:, :, 0] * np.array([0.9, 0.9, 1.2, 0.8, 0.8], np.float32)
    return np.stack(to_pixels(place, points), -1).astype(np.float32)


class _Columns:
    """Uniform numbers handed out column by column, shaped (n, 1, 1)."""

    def __init__(self, uniform):
        self.columns = iter(uniform.astype(np.float32).T)

    def __call__(self, low=0.0, high=1.0):
        return (low + (high - low) * next(self.columns))[:, None, None].astype(np.float32)

    def chance(self, probability):
        return (self() < probability).astype(np.float32)


def _mix(table, position):
    """Colours (k, 3) interpolated at `position` (n, 1, 1) in 0..k-1: (n, 3, 1, 1)."""
    position = position[:, 0, 0]
    low = np.minimum(position.astype(int), len(table) - 2)
    t = (position - low)[:, None]
    return (table[low] * (1 - t) + table[low + 1] * t)[:, :, None, None].astype(np.float32)


def draw_traits(uniform):
    """What faces look like, from uniform numbers (n, DRAWS): a namespace of (n, 1, 1) and (n, 3, 1, 1).

    Fields male, young, glasses, bangs, smiling, bald, bushy, mouth_is_open, moustache, beard_is_clean and
    pale are 0 or 1; hair_kind is 0 black, 1 blond, 2 brown, 3 grey, 4 red (of a bald man, his brows and
    beard).
    """
    d, late = _Columns(uniform[:, :_LATE]), _Columns(uniform[:, _LATE:])
    t = SimpleNamespace()
    t.male = d.chance(0.46)
    t.young = d.chance(0.68)
    old = 1 - t.young
    t.glasses = d.chance(0.22)
    t.bald = t.male * late.chance(np.where(old > 0, 0.26, 0.10))
    t.bangs = d.chance(np.where(t.male > 0, 0.22, 0.36)) * (1 - t.bald)
    t.smiling = d.chance(0.5)
    t.mouth_is_open = late.chance(np.where(t.smiling > 0, 0.68, 0.22))
    t.bushy = late.chance(np.where(t.male > 0, 0.33, 0.13))
    kind = d()
    limits = np.where(old > 0, [[[0.22, 0.42, 0.64, 0.97]]], [[[0.32, 0.58, 0.88, 0.90]]])
    t.hair_kind = (kind >= limits).sum(2, keepdims=True)

    kinds = t.hair_kind[:, 0, 0]
    tone = d()[:, 0]
    hair = _HAIR[kinds, 0] * (1 - tone) + _HAIR[kinds, 1] * tone
    t.hair = hair[:, :, None, None].astype(np.float32)
    skin_tone = d()
    # Blond and red hair comes with lighter skin, as in photographs; black and grey hair with any.
    darkest = np.array([4.9, 2.4, 3.4, 4.9, 2.4], np.float32)[t.hair_kind]
    depth = skin_tone ** np.float32(1.25) * darkest
    t.pale = (depth < _PALE_BELOW).astype(np.float32)
    tint = np.concatenate([d(-0.03, 0.03), d(-0.02, 0.02), d(-0.04, 0.04)], 1)[..., None]
    pale = t.pale[:, None]
    skin = _mix(_SKIN, depth)
    skin = (skin + pale * (_PALE - skin)) * (1 + tint * (1 - 0.7 * pale))
    grey = skin.mean(1, keepdims=True)
    t.skin = (skin + (0.22 * old)[:, None] * (grey * np.float32(0.97) - skin)).astype(np.float32)
    t.dark = np.maximum(0, 1 - t.skin.mean(1) / np.float32(0.75))

    # Bones
    t.width = d(0.69, 0.76) + 0.03 * t.male
    t.jaw = d(0.24, 0.36) - t.male * d(0.09, 0.15)
    t.eye_distance = d(0.315, 0.36)
    t.eye_width = d(0.155, 0.18) + 0.008 * (1 - t.male)
    t.eye_open = d(0.062, 0.085) - 0.012 * t.smiling - 0.010 * old + 0.008 * (1 - t.male)
    t.eye_tilt = d(-0.02, 0.05)
    t.nose_width = d(0.09, 0.13) + 0.015 * t.male
    t.nose_length = d(-0.03, 0.04)
    t.iris = _mix(_IRIS, d(0, 4) * np.where(t.dark > 0.35, 0.3, 1).astype(np.float32))
    t.gaze = d(-0.025, 0.025)
    brow = d(0.045, 0.06) + t.male * d(0.025, 0.05)
    t.brow_thick = np.where(t.bushy > 0, late(0.18, 0.215), brow)  # others: 0.045 to 0.11
    t.brow_height = d(0.145, 0.18) - 0.03 * t.male + 0.01 * t.smiling
    t.brow_arch = d(0.02, 0.07) - 0.02 * t.male
    t.brow_tilt = d(-0.04, 0.01)
    t.ears = d(0.8, 1.1)

    # Mouth
    t.mouth_width = d(0.25, 0.30) + 0.055 * t.smiling
    t.mouth_curve = np.where(t.smiling > 0, d(0.085, 0.12), d(-0.006, 0.03))
    grin, gape = d(0.085, 0.135), d(0.11, 0.17)
    t.mouth_open = t.mouth_is_open * np.where(t.smiling > 0, grin, gape)
    # A smile shows the upper teeth; a mouth that is merely open few or none.
    t.teeth = np.where(t.smiling > 0, 0.82, late(-0.1, 0.4)).astype(np.float32)
    t.upper_lip = d(0.05, 0.07) - 0.012 * t.male - 0.012 * t.smiling
    t.lower_lip = d(0.07, 0.10) - 0.015 * t.male - 0.01 * t.smiling
    red = np.array([0.72, 0.20, 0.24], np.float32)[None, :, None, None]
    natural = t.skin * np.array([0.86, 0.62, 0.60], np.float32)[None, :, None, None]
    makeup = (1 - t.male) * d(0.35, 0.85)
    t.lips = natural + makeup[:, None] * (red * (0.7 + 0.4 * t.skin.mean(1, keepdims=True)) - natural)
    t.blush = d(0.0, 0.12) + (1 - t.male) * d(0.02, 0.12)
    t.makeup = (1 - t.male) * d(0.3, 1.0)

    # Hair
    t.long = np.where(t.male > 0, d.chance(0.05), d.chance(0.9)) * (1 - t.bald)
    t.length = np.where(t.long > 0, d(0.85, 2.1), 9.0).astype(np.float32)
    t.volume = d(0.0, 0.10) * (1 - t.bald) + 0.04 * t.long
    t.curtain = t.long * d(-0.05, 0.22)
    t.flare = t.long * d(-0.06, 0.16)
    recede = old * (0.45 + 0.55 * t.male) * d(0.0, 0.16)
    t.hairline = np.where(t.bangs > 0, d(-0.46, -0.36), d(-0.98, -0.84) - recede * 1.2).astype(np.float32)
    # A fringe ends above bushy brows, which it would hide.
    t.hairline = t.hairline - 0.15 * t.bangs * t.bushy
    t.temples = np.where(t.bangs > 0, d(-0.06, 0.10), d(0.10, 0.32) - recede * 1.5).astype(np.float32)
    t.tilt = np.where(t.bangs > 0, d(-0.18, 0.18), d(-0.22, 0.22) * (1 - t.long)).astype(np.float32)
    t.fringe = np.where(t.bangs > 0, d(0.06, 0.16), d(0.015, 0.04)).astype(np.float32)
    t.sideburn = np.where(t.long > 0, 2.6, d(-0.12, 0.12)).astype(np.float32)
    t.crown = d(-0.3, 0.3)
    t.swept = t.long * (1 - t.bangs)
    t.parting = d(-0.28, 0.28)
    t.drape = t.swept * d(0.1, 0.75)
    t.wave = d(0, 1) ** 2
    t.gloss = d(0.1, 0.5)
    t.streaks = old * d(0.25, 0.55) * (t.hair_kind != 3)

    # Beard: clean (a faint shadow), stubble, or full
    beard = d()
    strength = np.where(beard < 0.35, d(0.04, 0.10), np.where(beard < 0.72, d(0.5, 0.68), d(0.8, 0.95)))
    t.beard = (t.male * strength).astype(np.float32)
    # A blond man's beard is darker than his hair, so that it stands out from his skin.
    t.beard_tone = 0.75 - 0.20 * (t.hair_kind == 1)
    t.beard_top = d(0.22, 0.40)
    t.beard_is_full = (beard >= 0.72).astype(np.float32)
    # Half of the full beards come with a moustache, the others leave the upper lip bare.
    style = (beard >= 0.35).astype(int) + (beard >= 0.72)
    t.moustache = t.male * late.chance(np.array([0.15, 0.08, 0.5], np.float32)[style])
    t.beard_is_clean = 1 - np.maximum(t.male * (beard >= 0.35), t.moustache)
    t.lip_beard = np.where(t.beard_is_full > 0, t.moustache, 0.4)
    t.moustache_height = late(0.085, 0.115)
    t.moustache_width = late(0.30, 0.36)
    # A bald man's ring of hair, or a shaven head.
    t.ring = t.bald * late.chance(0.35 + 0.45 * old)
    t.ring_top = late(-0.62, -0.30)

    # Age
    t.wrinkles = old * d(0.6, 1.0)
    t.bags = old * d(0.6, 1.0) + t.young * d(0.0, 0.15)
    t.folds = old * d(0.5, 0.9) + t.smiling * 0.35
    t.wrinkle_shift = d(-0.04, 0.04)

    # Glasses
    t.frame_width = d(0.225, 0.27)
    t.frame_height = d(0.15, 0.205)
    t.frame_square = d(0, 1)
    t.frame_thick = d(0.035, 0.065)
    frame = np.concatenate([d(0.02, 0.16), d(0.02, 0.09), d(0.02, 0.09)], 1)[..., None]
    t.frame = frame.astype(np.float32)
    t.glare = d(0.05, 0.3)

    # Clothes and light
    cloth = np.concatenate([d(0.03, 0.85), d(0.03, 0.85), d(0.03, 0.85)], 1)[..., None]
    t.cloth = cloth + d(0.3, 0.9)[:, None] * (cloth.mean(1, keepdims=True) - cloth)
    t.neck = d(0.40, 0.46) + 0.08 * t.male
    t.shoulders = d(1.26, 1.40)
    t.collar = d(0.05, 0.5)
    side, above = d(-0.75, 0.75), d(-0.6, 0.0)
    length = np.sqrt(side * side + above * above + 0.7)
    t.light = (side / length, above / length, np.sqrt(np.float32(0.7)) / length)
    t.contrast = d(0.35, 0.75)
    t.shine = d(0.0, 0.35) * (0.6 + t.dark)
    t.exposure = d(0.86, 1.07)
    warm = d(-0.05, 0.05)
    t.cast = np.concatenate([1 + warm, 1 + 0 * warm, 1 - warm], 1)[..., None].astype(np.float32)
    for name, value in vars(t).items():
        if name != "hair_kind" and name != "light":
            setattr(t, name, np.asarray(value, np.float32))
    return t


def paint_people(canvas, frame, traits, strands, coarse):
    """Paint one person per canvas, over what is there.

    Args:
        canvas: float32 (n, 3, H, W), changed.
        frame: its :class:`Frame`.
        traits: of :func:`draw_traits`.
        strands: float32 (n, STRANDS) in 0..1, the hair's pattern.
        coarse: float32 (n, COARSE, COARSE) in 0..1, blotches of skin and hair.
    """
    height, width = frame.shape
    mottle = smooth_noise(coarse, height, width) - 0.5
    hair = _Hair(frame, traits, strands, mottle)
    hair.paint_back(canvas)
    _paint_body(canvas, frame, traits)
    _paint_ears(canvas, frame, traits)
    _paint_face(canvas, frame, traits, mottle, hair)
    hair.paint_front(canvas)
    _paint_glasses(canvas, frame, traits)


class _Hair:
    def __init__(self, frame, t, strands, mottle):
        self.frame, self.t = frame, t
        rows, columns = self.slices = frame.window(-1.35, 1.35, -1.75, 2.6)
        u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
        mottle = mottle[:, rows, columns]
        self.u, self.v = u, v

        centre = -0.25
        below = np.maximum(v - centre, 0)
        above = np.minimum(v - centre, 0) + (1 - t.long) * 0.75 * below
        flare = t.flare * below * (1.6 - 0.6 * below) + (0.1 + 0.4 * t.wave) * t.long * mottle
        half = (t.width + 0.08 + t.volume) * (1 + flare)
        x, y = u / half, above / (1.08 + t.volume)
        self.radius = np.sqrt(x * x + y * y)
        self.texture = self._texture(u, v, strands, mottle)
        ends = v - t.length - 0.25 * (self.texture - 0.5) + 0.35 * np.abs(u) - 0.3
        outer = np.maximum((self.radius - 1 + 0.05 * (self.texture - 0.5)) * 0.8, ends)
        self.outer = inside(outer, np.maximum(pixel, 0.035))

        low = np.minimum(np.maximum(v, 0), 1)
        inner = t.width * (1 - t.curtain * low * low + 0.12 * mottle * t.long)
        x = np.minimum(np.abs(u) / inner, 1.0)
        x2 = x * x
        x8 = x2 * x2
        x8 = x8 * x8
        side = x8 * x8
        line = (
            t.hairline + t.temples * x2 + t.tilt * u * (1 - x2) + t.drape * np.abs(u - t.parting) * (1 - side)
        )
        line = line + t.fringe * (self.texture - 0.5) * 2 + side * (t.sideburn - t.hairline - t.temples)
        # Long hair falls before the cheeks a little; short hair ends at the sideburn.
        self.line_distance = v - line
        self.front = self.outer * inside(self.line_distance, np.maximum(pixel, 0.05))
        if t.bald.any():
            self._shave(np.flatnonzero(t.bald[:, 0, 0]))

    def _shave(self, bald):
        """Leaves a bald man at most the hair above and behind the ears, which throws no shadow."""
        t = self.t
        side = np.abs(self.u[bald]) / t.width[bald]
        ring = smoothstep(side + 0.10 * (self.texture[bald] - 0.5), 0.84, 0.96)
        ring *= smoothstep(self.v[bald], t.ring_top[bald], t.ring_top[bald] + 0.22)
        self.front[bald] *= ring * t.ring[bald]
        self.line_distance[bald] = 1

    def _texture(self, u, v, strands, mottle):
        """Strands, bent by waves: a value in 0..1.

        Fringes and short hair run down from above the head; long hair without a fringe runs from the
        parting along the outline of the head.
        """
        t = self.t
        du, dv = u - t.crown, v + 2.3
        angle = 1.3 * du / (np.abs(du) * 0.5 + np.abs(dv) + 0.05)
        swept = (self.radius * 1.1 - 0.4) * np.sign(u - t.parting)
        angle = angle + t.swept * (swept - angle) + (0.08 + 0.30 * t.wave) * mottle
        # Locks, and single hairs as far as the pixels can show them.
        knots = strands[:, ::8]
        locks = np.repeat(knots, 8, 1)
        ramp = np.tile(np.arange(8, dtype=np.float32) / 8, knots.shape[1])
        locks = locks + ramp * (np.repeat(np.roll(knots, -1, 1), 8, 1) - locks)
        fine = np.minimum(0.55, 0.0065 / self.frame.pixel[:, :, 0])
        strands = locks + fine * (strands - locks)
        position = np.minimum(np.maximum(angle * 0.5 + 0.5, 0), 1) * (STRANDS - 2)
        low = position.astype(np.int32)
        part = position - low.astype(np.float32)
        low += (np.arange(len(strands), dtype=np.int32) * STRANDS)[:, None, None]
        flat = strands.ravel()
        first = flat[low]
        low += 1
        return first + part * (flat[low] - first) + 0.35 * mottle

    def colour(self, dim):
        t = self.t
        lx, ly, lz = t.light
        depth = np.sqrt(np.maximum(1 - self.radius * self.radius, 0.0)) if dim is None else 0.3
        facing = (lx * self.u + ly * (self.v + 0.3)) * 0.8 + lz * depth
        bright = 0.72 + 0.42 * t.contrast * facing + 0.55 * (self.texture - 0.5)
        if dim is not None:
            bright = bright * dim
        else:
            near = self.u - t.parting * (1 - 0.3 * (self.v + 1))
            parted = stroke(near, 0.025, np.maximum(self.frame.pixel, 0.03)) * (self.v < -0.6)
            bright = bright * (1 - 0.45 * t.swept * parted)
        colour = t.hair * bright[:, None]
        if dim is None:
            away = self.radius - 0.72
            band = bump(away * away * 30) * np.minimum(np.maximum(-self.v, 0), 1) * (0.3 + self.texture)
            colour += ((t.gloss * (0.35 + 0.6 * (facing + 0.4)) * 0.35) * band)[:, None] * (
                t.hair * 0.7 + 0.3
            )
            grey = t.streaks * smoothstep(self.texture, 0.55, 0.95)
            colour += grey[:, None] * (0.72 * bright[:, None] - colour)
        return colour

    def paint_back(self, canvas):
        rows, columns = self.slices
        blend(canvas[:, :, rows, columns], self.colour(0.62), self.outer * self.t.long)

    def paint_front(self, canvas):
        rows, columns = self.slices
        blend(canvas[:, :, rows, columns], self.colour(None), self.front)


def _paint_body(canvas, frame, t):
    rows, columns = frame.window(-3.2, 3.2, 0.5, 9.0)
    u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
    part = canvas[:, :, rows, columns]
    if part.size == 0:
        return
    side = np.abs(u)
    lx = t.light[0]
    # The neck is a cylinder in the shadow of the chin.
    flare = smoothstep(v, 0.95, 1.5)
    neck = np.maximum(side - t.neck - 0.16 * flare, 0.45 - v)
    turn = u / (t.neck + 0.25)
    shadow = 1 - smoothstep(v - 0.25 * turn * turn, 0.95, 1.5)
    light = 0.80 - 0.30 * shadow + 0.25 * t.contrast * lx * turn - 0.22 * np.minimum(turn * turn, 1)
    blend(part, t.skin * light[:, None], inside(neck, np.maximum(pixel, 0.03)))
    slope = np.maximum(side - 0.9, 0)
    top = t.shoulders + 0.16 * side + 0.30 * slope * slope
    collar = t.collar * np.maximum(1 - side / 0.62, 0)
    cloth = np.maximum(top - v - 0.12 + collar * 1.3, side - 2.2)
    fold = 0.92 + 0.35 * t.contrast * lx * u * 0.5 - 0.18 * np.minimum(side * side * 0.25, 1)
    fold = fold - 0.25 * bump((v - top + 0.12 - collar * 1.3) ** 2 * 150)
    blend(part, t.cloth * fold[:, None], inside(cloth, np.maximum(pixel, 0.03)))


def _paint_ears(canvas, frame, t):
    rows, columns = frame.window(-1.1, 1.1, -0.35, 0.45)
    u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
    x = (np.abs(u) - t.width * 1.0) / (0.10 * t.ears)
    y = (v - 0.02) / (0.24 * t.ears)
    radius = np.sqrt(x * x + y * y)
    part = canvas[:, :, rows, columns]
    light = 0.86 + 0.3 * t.contrast * t.light[0] * np.sign(u)
    light = light - 0.3 * bump(radius * radius * 2.5)
    warm = t.skin * np.array([1.0, 0.92, 0.9], np.float32)[None, :, None, None]
    blend(part, warm * light[:, None], inside((radius - 1) * 0.12, np.maximum(pixel, 0.02)))


def _paint_face(canvas, frame, t, mottle, hair):
    rows, columns = frame.window(-0.98, 0.98, -1.42, 1.12)
    u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
    part = canvas[:, :, rows, columns]
    mottle = mottle[:, rows, columns]
    half = jaw_width(t, v)
    x = u / half
    y = np.minimum(v, 0) / 1.34 + np.maximum(v, 0)
    # The forehead is flatter than an ellipse, so that no gap opens between temple and hair.
    square = np.minimum(y, 0) ** 2
    square = x * x + square * square + np.maximum(y, 0) ** 2
    radius = np.sqrt(square)
    mask = inside((radius - 1) * 0.85, np.maximum(pixel, 0.025))
    depth = np.sqrt(np.maximum(1 - square, 0))

    # The features' coordinates: near parts move with the yaw.
    f = u - frame.place.yaw * depth
    side = np.abs(f)
    sign = np.sign(f)

    # Relief: slopes of bells that make brow, sockets, nose, cheeks, lips and chin.
    slope_u, slope_v = np.zeros_like(u), np.zeros_like(v)
    mirrored = np.zeros_like(u)

    def relief(du, dv, half_u, half_v, height, into):
        bell = np.maximum(1 - (du / half_u) ** 2 - (dv / half_v) ** 2, 0) * (4 * height)
        into -= bell * du / half_u**2
        np.subtract(slope_v, bell * dv / half_v**2, out=slope_v)

    eye = side - t.eye_distance
    level = v - EYE_LEVEL
    tip = v - NOSE_LEVEL - t.nose_length
    n = f - 0.25 * frame.place.yaw
    relief(n, tip + 0.24, 0.13, 0.46, 0.11, slope_u)
    relief(n, tip, 0.15, 0.15, 0.10, slope_u)
    relief(side - t.nose_width, tip - 0.03, 0.085, 0.08, 0.035, mirrored)
    relief(eye, level + 0.16, 0.30, 0.13, 0.035 + 0.02 * t.male, mirrored)
    relief(eye + 0.03, level, 0.24, 0.15, -0.045, mirrored)
    relief(side - 0.42, v - 0.22, 0.30, 0.30, 0.055 + 0.03 * t.smiling, mirrored)
    relief(f, v - MOUTH_LEVEL, 0.36, 0.2, 0.05, slope_u)
    relief(f, v - 0.86, 0.26, 0.16, 0.05, slope_u)
    relief(f, v - 0.72, 0.3, 0.09, -0.02, slope_u)
    slope_u += mirrored * sign

    lx, ly, lz = t.light
    nz = depth * 1.15 + 0.08
    nx = x / t.width * 0.8 - slope_u * nz
    ny = y * 0.75 - slope_v * nz
    facing = (nx * lx + ny * ly + nz * lz) / np.sqrt(nx * nx + ny * ny + nz * nz)
    dark = t.contrast * (0.74 - 0.85 * facing) - 0.02 + 0.10 * mottle
    dark = dark + 0.30 * np.maximum(radius - 0.82, 0)
    # Hair throws a soft shadow on the forehead.
    colour = np.empty((len(u), 3, *u.shape[1:]), np.float32)
    colour[:] = t.skin
    shade(colour, dark, 0.25)

    ruddy = bump(((side - 0.42) / 0.3) ** 2 + ((v - 0.25) / 0.26) ** 2) * t.blush
    ruddy = ruddy + 0.10 * bump((n / 0.18) ** 2 + ((tip - 0.02) / 0.18) ** 2) + 0.05 * mottle * t.blush
    colour[:, 1] *= 1 - ruddy
    colour[:, 2] *= 1 - 0.8 * ruddy
    shine = np.maximum(facing - 0.9, 0) * 10
    colour += (t.shine * 0.45 * shine * shine * depth)[:, None]

    _age(colour, t, f, side, v, eye, level, pixel, mottle)
    _beard(colour, t, f, side, v, hair, frame, rows, columns, mottle)
    blend(part, colour, mask)

    # Shadow of the hair upon the skin (the hair itself is painted later).
    near = _fit(hair.line_distance, hair.slices, (rows, columns))
    cast = smoothstep(near, -0.02, 0.16)
    shade(part, (0.30 * (1 - cast)) * mask, 0.2)

    _paint_nostrils(canvas, frame, t)
    _paint_eyes(canvas, frame, t)
    _paint_mouth(canvas, frame, t)


def _fit(values, have, want):
    """The window `want` of an array that covers the window `have` of the same frame."""
    rows, columns = (slice(w.start - h.start, w.stop - h.start) for h, w in zip(have, want, strict=True))
    return values[:, rows, columns]


def _age(colour, t, f, side, v, eye, level, pixel, mottle):
    """Furrows on the forehead, crow's feet, bags under the eyes, folds from nose to mouth."""
    soft = np.maximum(pixel, 0.022)
    lines = np.zeros_like(v)
    bend = 0.10 * side * side - 0.12 * mottle
    fade = bump((f / 0.55) ** 2)
    for centre in (-0.80, -0.68, -0.55):
        lines += stroke(v - centre - t.wrinkle_shift + bend, 0.030, soft + 0.02) * fade * (1 + mottle)
    lines += 0.8 * stroke(side - 0.05, 0.02, soft) * bump(((v + 0.34) / 0.12) ** 2)
    for rise in (-0.35, 0.05, 0.45):
        lines += 0.9 * stroke(level - (eye - 0.17) * rise, 0.018, soft) * bump(((eye - 0.26) / 0.10) ** 2)
    shade(colour, t.wrinkles * 0.50 * lines, 0.2)

    arc = level - 0.15 + 1.3 * eye * eye
    fade = bump((eye / 0.22) ** 2)
    bags = (
        0.30 * bump(((level - 0.11) / 0.09) ** 2 + (eye / 0.2) ** 2) + 0.42 * stroke(arc, 0.025, soft) * fade
    )
    shade(colour, t.bags * bags, 0.0)

    curve = side - 0.16 - 0.05 * t.smiling - 0.48 * (v - 0.30)
    fold = stroke(curve, 0.04, np.maximum(soft, 0.05)) * bump(((v - 0.42) / 0.17) ** 2)
    shade(colour, t.folds * 0.55 * fold, 0.3)
    jowl = stroke(side - 0.33 - 0.2 * (v - 0.65), 0.03, np.maximum(soft, 0.06)) * bump(
        ((v - 0.71) / 0.12) ** 2
    )
    shade(colour, t.wrinkles * 0.35 * jowl, 0.2)


def _beard(colour, t, f, side, v, hair, frame, rows, columns, mottle):
    """The jaw, the chin and the upper lip, but not the lips."""
    texture = _fit(hair.texture, hair.slices, (rows, columns))
    ragged = 0.06 * (texture - 0.5) + 0.1 * mottle
    cheek = t.beard_top + 0.30 - 0.75 * np.maximum(side - 0.30, 0) + ragged
    cover = smoothstep(v - cheek, -0.06, 0.10)
    lip = smoothstep(v + ragged, 0.36, 0.44) * (1 - smoothstep(side + ragged, 0.22, 0.36)) * t.lip_beard
    hole = bump((f / 0.36) ** 2 + ((v - MOUTH_LEVEL - 0.02) / 0.13) ** 2)
    cover = np.maximum(cover, lip) * (1 - np.minimum(hole * 1.6, 1) * 0.9)
    tone = t.hair * t.beard_tone[:, None] * (0.6 + 0.8 * texture[:, None])
    grey = (1 - t.beard_is_full)[:, None]
    # Stubble is dark whatever the hair's colour, or nobody would see it on a blond man.
    short = np.minimum(0.5 * t.hair + 0.16 * t.skin + 0.02, 0.38 * t.skin)
    tone = tone + grey * (short - tone)
    blend(colour, tone, cover * t.beard)


def _paint_nostrils(canvas, frame, t):
    rows, columns = frame.window(-0.4, 0.4, 0.0, 0.5)
    u, v = frame.u[:, rows, columns], frame.v[:, rows, columns]
    part = canvas[:, :, rows, columns]
    n = u - 1.2 * frame.place.yaw
    side = np.abs(n)
    tip = v - NOSE_LEVEL - t.nose_length
    pixel = frame.pixel
    wide = np.maximum(0.048, 0.8 * pixel)
    high = np.maximum(0.032, 0.8 * pixel)
    hole = bump(((side - 0.55 * t.nose_width) / wide) ** 2 + ((tip - 0.085) / high) ** 2)
    under = bump((n / (t.nose_width * 1.7)) ** 2 + ((tip - 0.12) / 0.07) ** 2)
    wing = bump(((side - t.nose_width * 1.25) / 0.035) ** 2 + ((tip - 0.03) / 0.09) ** 2)
    shade(part, 0.68 * hole, 0.2)
    shade(part, 0.22 * under + 0.22 * wing, 0.3)


def _paint_eyes(canvas, frame, t):
    rows, columns = frame.window(-0.75, 0.75, -0.55, 0.12)
    u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
    part = canvas[:, :, rows, columns]
    f = u - 0.9 * frame.place.yaw
    side = np.abs(f) - t.eye_distance
    x = side / t.eye_width
    x2 = x * x
    level = v - EYE_LEVEL + t.eye_tilt * x
    arch = np.maximum(1 - x2, 0)
    # The upper lid is higher towards the nose, the lower one flatter.
    upper = -t.eye_open * arch * (1.12 - 0.18 * x) * 1.1
    lower = 0.72 * t.eye_open * arch * (1 + 0.15 * x)

    socket = bump(x2 * 0.42 + (level / 0.17) ** 2)
    shade(part, (0.16 + 0.10 * t.makeup) * socket, 0.2)
    crease = stroke(level - upper * 1.25 + 0.045, 0.02, np.maximum(pixel, 0.02)) * bump(x2 * 0.7)
    shade(part, 0.40 * crease, 0.3)

    white = inside(np.maximum(upper - level, level - lower), np.maximum(pixel, 0.015)) * (x2 < 1.1)
    ball = (0.90 - 0.22 * np.minimum(x2, 1) - 0.35 * smoothstep(-level, -0.01, 0.07))[:, None]
    blend(part, ball * np.array([1.0, 0.97, 0.95], np.float32)[None, :, None, None], white)

    gaze = side - t.gaze * np.sign(f)
    circle = np.sqrt(gaze * gaze + (level + 0.006) ** 2)
    ring = 0.086
    iris = inside(circle - ring, np.maximum(pixel, 0.015)) * white
    inner = 0.75 + 0.5 * np.minimum(circle / ring, 1) * (level > -0.01) - 0.5 * smoothstep(circle, 0.06, 0.09)
    blend(part, t.iris * inner[:, None], iris)
    blend(part, np.float32(0.03), inside(circle - 0.038, np.maximum(pixel, 0.012)) * white)
    glint_u, glint_v = gaze - 0.03 * np.sign(t.light[0]) * np.sign(f), level + 0.038
    glint = inside(np.sqrt(glint_u**2 + glint_v**2) - 0.018, np.maximum(pixel, 0.012))
    blend(part, np.float32(0.97), 0.9 * glint * iris)

    # Upper lashes: a dark lid line, thicker outwards and with make-up; a fine lower line.
    lash = stroke(level - upper + 0.012, 0.026 + 0.03 * t.makeup * (0.6 + 0.4 * x), np.maximum(pixel, 0.015))
    lash = lash * (x > -1.02) * (x < 1.02 + 0.2 * t.makeup)
    blend(part, np.float32(0.06), (0.78 + 0.2 * t.makeup) * np.maximum(lash, 0))
    under = stroke(level - lower - 0.006, 0.014, np.maximum(pixel, 0.015)) * (x2 < 1)
    shade(part, (0.35 + 0.2 * t.makeup) * under, 0.3)

    # Brows, thick towards the nose.
    b = (side - 0.02) / (t.eye_width * 1.38)
    taper = np.maximum(1 - b * b * b * b, 0) * (0.85 - (0.40 - 0.25 * t.bushy) * b)
    curve = v - EYE_LEVEL + t.brow_height + t.brow_arch * (1 - 1.3 * (b - 0.1) ** 2) + t.brow_tilt * b
    brow = stroke(curve, t.brow_thick * taper, np.maximum(pixel, 0.022)) * (taper > 0)
    tone = t.hair * (0.55 - 0.12 * t.bushy)[:, None] + 0.03
    tone = np.minimum(tone, t.skin * (0.62 - 0.10 * t.bushy)[:, None])
    blend(part, tone, (0.80 + 0.12 * np.maximum(t.male, t.bushy)) * brow)


def _paint_mouth(canvas, frame, t):
    rows, columns = frame.window(-0.62, 0.62, 0.25, 0.95)
    u, v, pixel = frame.u[:, rows, columns], frame.v[:, rows, columns], frame.pixel
    part = canvas[:, :, rows, columns]
    f = u - 0.8 * frame.place.yaw
    x = f / t.mouth_width
    x2 = x * x
    arch = np.maximum(1 - x2, 0)
    root = np.sqrt(arch)
    soft = np.maximum(pixel, 0.016)
    # Corners up for a smile.
    upper = MOUTH_LEVEL + t.mouth_curve * (0.45 - x2)
    lower = upper + t.mouth_open * arch
    bow = 1 - 0.30 * bump(x2 * 14)
    within = (x2 < 1).astype(np.float32)

    top = upper - t.upper_lip * (0.35 * root + 0.65 * arch) * bow
    bottom = lower + t.lower_lip * (0.3 * root + 0.7 * arch)
    lip = inside(np.maximum(top - v, v - bottom), np.maximum(soft, 0.022)) * within
    light = (
        0.90
        - np.float32(0.14) * (v < upper)
        + 0.28 * bump(((v - (lower + 0.45 * t.lower_lip)) / 0.05) ** 2 + x2 * 2)
    )
    blend(part, t.lips * light[:, None], 0.9 * lip)
    shade(part, 0.28 * bump(((v - bottom - 0.035) / 0.05) ** 2 + x2 * 1.8), 0.3)

    gap = inside(np.maximum(upper - v, v - lower), soft) * within * (t.mouth_open > 0)
    blend(part, np.array([0.22, 0.06, 0.06], np.float32)[None, :, None, None], gap)
    # Upper teeth fill most of the gap and darken towards the corners.
    edge = upper + t.teeth * t.mouth_open * arch
    teeth = inside(np.maximum(upper + 0.006 - v, v - edge), soft) * (x2 < 0.88)
    enamel = 0.95 - 0.30 * x2
    comb = np.abs(f * 11 - np.round(f * 11))
    enamel = enamel - 0.10 * np.maximum(1 - comb * 9, 0) * (pixel < 0.03)
    ivory = np.array([1.0, 0.97, 0.91], np.float32)[None, :, None, None]
    blend(part, ivory * enamel[:, None], teeth * gap)
    line = stroke(v - upper, 0.024, soft) * within * (t.mouth_open == 0)
    blend(part, t.lips * 0.35, 0.85 * line)
    corner = bump(((np.abs(x) - 1) / 0.16) ** 2 + ((v - upper) / 0.05) ** 2)
    shade(part, 0.40 * corner, 0.3)
    if t.moustache.any():
        _paint_moustache(part, f, v, t, pixel)


def _paint_moustache(part, f, v, t, pixel):
    """Two wings that fall from below the nose over the edge of the upper lip to the mouth's corners."""
    worn = np.flatnonzero(t.moustache[:, 0, 0])
    f, v, pixel = f[worn], v[worn], pixel[worn]
    side = np.abs(f)
    width, height = t.moustache_width[worn], t.moustache_height[worn]
    x = side / width
    x2 = x * x
    mouth = f / t.mouth_width[worn]
    lip = MOUTH_LEVEL + t.mouth_curve[worn] * (0.45 - np.minimum(mouth * mouth, 1))
    # Thickest beside the middle, where a small furrow parts the wings.
    thick = height * (1 - x2 * x2) * (1 - 0.35 * bump(x2 * 20))
    middle = lip - 0.035 - 0.5 * height + 0.05 * x2
    cover = inside(np.abs(v - middle) - 0.5 * thick, np.maximum(pixel, 0.03)) * (x2 < 1)
    hairs = side * 13 + v * 5
    hairs = np.abs(hairs - np.round(hairs))
    tone = np.minimum(t.hair[worn] * 0.62 + 0.02, t.skin[worn] * 0.55)
    part[worn] += (0.93 * cover)[:, None] * (tone * (0.8 + 0.7 * hairs)[:, None] - part[worn])


def _paint_glasses(canvas, frame, t):
    if not t.glasses.any():
        return
    rows, columns = frame.window(-1.0, 1.0, -0.55, 0.25)
    worn = np.flatnonzero(t.glasses[:, 0, 0])
    t = SimpleNamespace(**{k: v[worn] for k, v in vars(t).items() if k != "light"})
    u, v, pixel = frame.u[worn][:, rows, columns], frame.v[worn][:, rows, columns], frame.pixel[worn]
    part = canvas[worn][:, :, rows, columns]
    f = u - 0.95 * frame.place.yaw[worn]
    side = np.abs(f) - t.eye_distance - 0.015
    level = v - EYE_LEVEL - 0.03
    # Between an ellipse and a rounded rectangle.
    x, y = side / t.frame_width, level / t.frame_height
    x2, y2 = x * x, y * y
    oval = np.sqrt(x2 + y2)
    box = np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
    distance = (oval + t.frame_square * (box - oval) - 1) * t.frame_height
    lens = inside(distance, pixel)
    shade(part, 0.08 * lens, 0.0)
    glare = stroke(f + level * 0.9 - np.sign(f) * (t.eye_distance - 0.07), 0.07, np.maximum(pixel, 0.03))
    blend(part, np.float32(0.95), t.glare * glare * lens)
    shade(part, 0.25 * stroke(distance - 0.03, t.frame_thick, np.maximum(pixel, 0.06)), 0.2)
    rim = stroke(distance, t.frame_thick, pixel)
    gap = np.abs(f) < t.eye_distance + 0.015 - t.frame_width
    bridge = stroke(level + 0.055 - 0.5 * f * f, t.frame_thick * 0.9, pixel) * gap
    arm = stroke(level + 0.05, t.frame_thick * 0.9, pixel) * (side > t.frame_width)
    arm = arm * inside(np.abs(u) - t.width * 0.99, pixel)
    blend(part, t.frame, 0.95 * np.maximum(np.maximum(rim, bridge), arm))
    canvas[worn[:, None, None, None], np.arange(3)[:, None, None], *_grid(rows, columns)] = part


def _grid(rows, columns):
    return np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)[None, :]


def finish(canvas, traits, noise):
    """Exposure, colour cast, the sensor's noise (n, H, W) and rounding: uint8 (n, H, W, 3)."""
    canvas = canvas * (traits.exposure[:, None] * traits.cast) + noise[:, None]
    canvas *= 255
    canvas += 0.5
    np.minimum(np.maximum(canvas, 0, out=canvas), 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(0, 2, 3, 1))
