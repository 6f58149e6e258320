"""The drawn sample: parametric faces that stand in for photographs when a newcomer has none.

A face is a point in a space of parameters (`FaceParameters`): action units, head pose, identity, light, camera. The
seven expressions are recipes of action units (`ACTION_UNITS`) after the Facial Action Coding System of P. Ekman and
W. V. Friesen (Consulting Psychologists Press, 1978; with J. C. Hager, 2002, for the prototypes of each emotion).
The drawings say nothing about real faces: they exist so that the whole road can be walked without data.

    draw_faces("faces")   ->   faces/train/surprise/drawn_00001.png (224 x 224, RGB) ... faces/test/... README.txt
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .errors import FeridError

# FACS number -> activation at full intensity. 1 inner brow raiser, 2 outer brow raiser, 4 brow lowerer, 5 upper lid
# raiser, 6 cheek raiser, 7 lid tightener, 9 nose wrinkler, 10 upper lip raiser, 12 lip corner puller, 15 lip corner
# depressor, 16 lower lip depressor, 17 chin raiser, 20 lip stretcher, 23 lip tightener, 24 lip pressor, 25 lips part,
# 26 jaw drop, 43 lids droop.
ACTION_UNITS: dict[str, dict[int, float]] = {
    "surprise": {1: 1.0, 2: 1.0, 5: 1.0, 25: 0.5, 26: 1.0},
    "fear": {1: 1.0, 2: 0.5, 4: 0.6, 5: 1.0, 20: 1.0, 25: 0.8, 26: 0.35},
    "disgust": {7: 0.7, 9: 1.0, 10: 1.0, 15: 0.5, 16: 0.5, 25: 0.5},
    "happiness": {6: 1.0, 12: 1.0, 25: 0.8},
    "sadness": {1: 1.0, 4: 0.5, 15: 1.0, 17: 0.6, 43: 0.5},
    "anger": {4: 1.0, 5: 0.5, 7: 0.7, 17: 0.3, 23: 0.9, 24: 0.9},
    "neutral": {},
}
# sRGB colours; neighbours of a palette are blended
SKIN = ((244, 214, 196), (226, 182, 152), (204, 152, 116), (166, 114, 86), (124, 82, 62), (94, 62, 48))
HAIR = ((28, 22, 20), (48, 34, 26), (84, 56, 36), (118, 62, 38), (132, 92, 56), (186, 148, 100), (150, 148, 146))
IRIS = ((60, 38, 24), (84, 56, 32), (92, 108, 72), (84, 116, 150))
HAIR_VOLUME = {"none": 0.0, "short": 0.08, "fringe": 0.12, "long": 0.13, "curly": 0.16, "bun": 0.05}
# Outline of the right half of the head: half-width at each height
HEAD_Y = np.array([-1.46, -1.43, -1.3, -1.03, -0.6, -0.1, 0.4, 0.8, 1.15, 1.42, 1.66, 1.81, 1.86])
HEAD_X = np.array([0.0, 0.28, 0.62, 0.9, 1.05, 1.08, 1.05, 0.97, 0.85, 0.68, 0.46, 0.24, 0.0])
PREFIX = "drawn_"  # of every drawn picture's name
README = """A drawn sample, not photographs.

{count} pictures of parametric faces, drawn by ferid_dataset/drawn_faces.py (seed {seed}). They show no person and say
nothing about real faces: a model that reads them well has learned to read drawings. Use them to try the software.
"""


def _near(mean: float, spread: float) -> float:
    """A parameter drawn from a normal distribution, cut off at two standard deviations (`spread`)."""
    return field(default=mean, metadata={"spread": spread})


@dataclass
class FaceParameters:
    """
    One face, ready to be drawn; the defaults are the average of what `sample_face` draws.

    Lengths are in interpupillary distances (about 63 mm); x points right in the picture, y down, and the origin lies
    midway between the eyes. Angles are in radians, colours sRGB 0..255.
    """

    action_units: dict[int, float]  # FACS number -> activation, 0..1.1; absent = 0
    asymmetry: float = _near(0, 0.06)  # > 0: stronger action units in the right half of the picture
    yaw: float = _near(0, 0.12)  # > 0: towards the right of the picture
    pitch: float = _near(0, 0.06)  # > 0: downwards
    roll: float = _near(0, 0.06)  # > 0: clockwise
    scale: float = _near(0.235, 0.01)  # interpupillary distance as a share of the picture's width
    center_x: float = _near(0.5, 0.02)  # of the origin, as a share of the picture
    center_y: float = _near(0.44, 0.012)
    gaze: float = _near(0, 0.03)  # offset of the irises, > 0: to the right of the picture
    face_width: float = _near(1, 0.04)  # factor
    jaw_width: float = _near(1, 0.06)  # factor
    chin_y: float = _near(1.84, 0.05)
    eye_half_width: float = _near(0.235, 0.012)
    eye_opening: float = _near(0.17, 0.012)
    eye_tilt: float = _near(0.015, 0.012)  # how much higher the outer corners lie
    brow_y: float = _near(-0.38, 0.02)
    brow_arch: float = _near(0.07, 0.02)
    brow_thickness: float = _near(0.085, 0.015)
    nose_y: float = _near(0.68, 0.03)  # of the nostrils
    nose_half_width: float = _near(0.27, 0.025)
    mouth_y: float = _near(1.13, 0.025)
    mouth_half_width: float = _near(0.41, 0.025)
    lip_thickness: float = _near(0.1, 0.015)
    age: float = _near(0.3, 0.15)  # depth of the creases at rest
    hairline_y: float = _near(-0.98, 0.06)
    light_x: float = _near(0, 0.25)  # direction of the light relative to the camera's axis: < 0 from the left
    light_y: float = _near(-0.5, 0.12)  # < 0 from above
    contrast: float = _near(0.6, 0.07)  # share of directed light
    blur: float = _near(0.5, 0.15)  # pixels, sigma
    noise: float = _near(3, 1)  # grey levels, sigma
    hair_style: str = "short"  # a key of HAIR_VOLUME
    beard: float = 0.0  # opacity of the stubble
    skin: np.ndarray = field(default_factory=lambda: np.array(SKIN[2]))
    hair: np.ndarray = field(default_factory=lambda: np.array(HAIR[1]))
    iris: np.ndarray = field(default_factory=lambda: np.array(IRIS[0]))
    clothing: np.ndarray = field(default_factory=lambda: np.array((70, 90, 120)))
    background: np.ndarray = field(default_factory=lambda: np.full((4, 4, 3), 128.0))  # coarse grid of colours

    def unit(self, number: int, side: int = 0) -> float:
        """Activation of an action unit in the left (-1) or right (+1) half of the picture, or its mean (0)."""
        return self.action_units.get(number, 0.0) * (1 + side * self.asymmetry)


def sample_face(expression: str, rng: np.random.Generator) -> FaceParameters:
    """The parameters of a random person who shows `expression` at an intensity of 0.6 to 1."""
    if expression not in ACTION_UNITS:
        raise FeridError(f"no drawing recipe for the expression '{expression}'; choose from {', '.join(ACTION_UNITS)}")

    def blend(palette: tuple[tuple[int, int, int], ...]) -> np.ndarray:
        place, first = np.modf(rng.uniform(0, len(palette) - 1))
        pair = np.array(palette[int(first) : int(first) + 2])
        return pair[0] * (1 - place) + pair[1] * place + rng.uniform(-12, 12) + rng.uniform(-4, 4, 3)

    intensity = rng.uniform(0.6, 1.0)
    units = {number: rng.uniform(0, 0.06) for number in (1, 2, 4, 5, 7, 12, 15, 17, 20, 25)}
    units |= {number: level * intensity * rng.uniform(0.85, 1.1) for number, level in ACTION_UNITS[expression].items()}
    if expression == "happiness" and rng.random() < 0.3:
        units[25] = 0.0  # a smile with closed lips
    skin, style = blend(SKIN), str(rng.choice(list(HAIR_VOLUME), p=(0.1, 0.3, 0.15, 0.2, 0.15, 0.1)))
    # light skin before a dark background and the reverse, as a photographer would choose
    level = rng.uniform(30, 100) if skin.mean() > 140 else rng.uniform(150, 220)
    scalars = [parameter for parameter in fields(FaceParameters) if parameter.metadata]
    return FaceParameters(
        action_units=units,
        **{x.name: x.default + x.metadata["spread"] * float(np.clip(rng.normal(), -2, 2)) for x in scalars},
        hair_style=style,
        beard=rng.uniform(0.15, 0.5) if style in ("none", "short", "curly") and rng.random() < 0.3 else 0.0,
        skin=skin,
        hair=blend(HAIR),
        iris=blend(IRIS),
        clothing=rng.uniform(30, 200, 3),
        background=level + rng.uniform(-25, 25, (4, 4, 1)) + rng.uniform(-8, 8, (4, 4, 3)) + rng.uniform(-20, 20, 3),
    )


def _xy(x: np.ndarray | float, y: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(x, y), axis=-1)


def _smooth(points: Iterable[tuple[float, float]]) -> np.ndarray:
    """Catmull-Rom curve through N points, (6 N - 5, 2)."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.arange(0, 1, 1 / 6)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.swapaxes(0, 1).reshape(-1, 2), p[-2:-1]])


def _ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 32)
    return _xy(x + radius_x * np.cos(angle), y + radius_y * np.sin(angle))


def face_curves(face: FaceParameters) -> dict[str, np.ndarray]:
    """
    The geometry of the face, looking straight at the camera.

    Returns:
        `dict[str, np.ndarray]`: Name -> outline of shape `(points, 2)`: `head`; on the `left_` and `right_` of the
        picture `lid` (21 points, inner to outer corner), `eye` (lid, then back below) and `brow`; `upper_lip`, `mouth`
        (the opening) and `lower_lip` (31 points from left to right above, then back below).
    """
    low = np.clip((HEAD_Y - 0.6) / 1.26, 0, 1)  # 0 at the cheek, 1 at the chin
    half_width = HEAD_X * face.face_width * (1 + (face.jaw_width - 1) * low)
    half = _xy(half_width, HEAD_Y + low * (face.chin_y - 1.86 + 0.3 * face.unit(26) - 0.04 * face.unit(17)))
    head = _smooth(np.concatenate([half, half[-2::-1] * (-1, 1)]))
    return {"head": head} | _eye_curves(face, "left", -1) | _eye_curves(face, "right", 1) | _mouth_curves(face)


def _eye_curves(face: FaceParameters, name: str, side: int) -> dict[str, np.ndarray]:
    au = {number: face.unit(number, side) for number in (1, 2, 4, 5, 6, 7, 9, 43)}
    t = np.linspace(-1, 1, 21)  # from the inner to the outer corner
    upper = 0.62 * (1 + 0.85 * au[5] - 0.45 * au[43] - 0.25 * au[7]) * (1 - 0.3 * au[6] - 0.25 * au[9])
    lower = 0.38 * (1 + 0.2 * au[5] - 0.45 * au[7] - 0.9 * au[6] - 0.3 * au[9])
    oblique = au[43] * au[1]  # the lids of sadness slope down outwards
    base = (0.04 * oblique - face.eye_tilt) * t
    across = side * (0.5 + face.eye_half_width * t)
    lid = _xy(across, base - upper * face.eye_opening * (1 - t**2) ** 0.7 * (1 - 0.6 * oblique * t))
    under = _xy(across, base + lower * face.eye_opening * (1 - t**2) ** 0.8)
    # the brow by its inner end, middle, arch and outer end
    x = np.array((0.2, 0.42, 0.68, 0.9)) - np.array((0.07, 0.05, 0.02, 0)) * au[4]
    y = face.brow_y - np.array((0.3, 0.85, 1, 0)) * face.brow_arch
    y -= np.array((0.18, 0.08, 0, -0.06)) * au[1] + np.array((-0.02, 0.07, 0.14, 0.13)) * au[2]
    y += np.array((0.19, 0.14, 0.05, 0)) * au[4] + np.array((0.08, 0.05, 0.02, 0)) * au[9]
    thick = np.array((0.5, 0.55, 0.4, 0.08)) * face.brow_thickness
    brow = np.concatenate([_smooth(_xy(side * x, y - thick)), _smooth(_xy(side * x, y + thick))[::-1]])
    return {f"{name}_lid": lid, f"{name}_eye": np.concatenate([lid, under[::-1]]), f"{name}_brow": brow}


def _mouth_curves(face: FaceParameters) -> dict[str, np.ndarray]:
    au = {number: face.unit(number) for number in (10, 12, 16, 17, 20, 23, 24, 25, 26)}
    t = np.linspace(-1, 1, 31)  # from left to right
    bow = 1 - t**2
    across = 1 + 0.34 * au[12] + 0.28 * au[20] + 0.06 * au[10] - 0.12 * au[24] - 0.38 * au[26] * (1 - au[20])
    corner = [0.05 * face.unit(20, s) + 0.21 * face.unit(15, s) - 0.25 * face.unit(12, s) for s in (-1, 1)]
    middle = face.mouth_y + 0.08 * au[26] - 0.05 * au[10] - 0.06 * au[17]
    middle = middle + np.where(t < 0, *corner) * (np.abs(t) ** 1.8 - 0.25)
    top = middle - bow * ((0.03 + 0.05 * au[12]) * au[25] + 0.1 * au[26] + 0.03 * au[20])
    top -= 0.1 * au[10] * au[25] * (1 - t**4)
    bottom = middle + bow**0.5 * ((0.07 + 0.05 * au[16] + 0.06 * au[12]) * au[25] + 0.34 * au[26])
    thick = face.lip_thickness * (1 - 0.55 * max(au[23], au[24])) * (1 - 0.25 * au[12] - 0.2 * au[20])
    over = top - thick * bow**0.6 * (1 - 0.25 * np.exp(-((t / 0.12) ** 2)))  # with Cupid's bow
    below = bottom + 1.25 * thick * (1 + 0.2 * au[17]) * bow**0.7
    edges = [_xy(across * face.mouth_half_width * t, edge) for edge in (over, top, bottom, below)]
    pairs = zip(("upper_lip", "mouth", "lower_lip"), edges[:-1], edges[1:], strict=True)
    return {name: np.concatenate([above, under[::-1]]) for name, above, under in pairs}


class _Canvas:
    """A square picture that is drawn on in face coordinates: turns the head, then frames it."""

    def __init__(self, face: FaceParameters, pixels: int, image: Image.Image | None = None):
        self.face, self.image = face, image or Image.new("L", (pixels, pixels))
        self.pen = ImageDraw.Draw(self.image)
        self.unit = face.scale * pixels  # pixels an interpupillary distance
        self.center = np.array((face.center_x, face.center_y), dtype=np.float32) * pixels
        cos, sin = np.cos(face.roll), np.sin(face.roll)
        self.roll = np.array([(cos, sin), (-sin, cos)], dtype=np.float32)  # for row vectors

    def depth(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height of the skin above the middle plane of the head: an ellipsoid with a nose."""
        skull = np.sqrt(np.clip(1 - (x / (1.22 * self.face.face_width)) ** 2 - ((y - 0.15) / 2.3) ** 2, 0.02, None))
        tip = np.exp(-((x / 0.22) ** 2) - ((y - self.face.nose_y + 0.1) / 0.2) ** 2)
        return skull + 0.2 * tip + 0.1 * np.exp(-((x / 0.16) ** 2) - ((y - 0.25) / 0.35) ** 2)

    def surface(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per pixel the x, y of the skin seen there and its height towards the camera, each (pixels, pixels)."""
        axis = np.arange(self.image.width, dtype=np.float32) + 0.5
        flat = (_xy(axis[None], axis[:, None]) - self.center) @ self.roll.T / np.float32(self.unit)
        flat_x, flat_y = x, y = flat[..., 0], flat[..., 1]
        (sin_x, cos_x), (sin_y, cos_y) = ((np.sin(angle), np.cos(angle)) for angle in (self.face.yaw, self.face.pitch))
        for _ in range(3):  # the depth depends on (x, y): a fixed point, soon reached at these small angles
            z = self.depth(x, y)
            x, y = (flat_x - z * sin_x) / cos_x, (flat_y - z * sin_y) / cos_y
        return x, y, z * cos_x * cos_y - x * sin_x - y * sin_y

    def _place(self, points: np.ndarray, colour: Iterable[float]) -> tuple[list[float], tuple[int, ...]]:
        x, y = points.T
        z, face = self.depth(x, y), self.face
        turned = _xy(x * np.cos(face.yaw) + z * np.sin(face.yaw), y * np.cos(face.pitch) + z * np.sin(face.pitch))
        placed = self.unit * turned @ self.roll + self.center
        return placed.ravel().tolist(), tuple(min(255, max(0, int(channel))) for channel in colour)

    def fill(self, points: np.ndarray, colour: Iterable[float] = (255,)) -> None:
        self.pen.polygon(*self._place(points, colour))

    def stroke(self, points: np.ndarray, colour: Iterable[float], width: float) -> None:
        self.pen.line(*self._place(points, colour), width=max(1, round(width * self.unit)), joint="curve")


def _bumps(face: FaceParameters, curves: dict[str, np.ndarray]) -> list[tuple[float, ...]]:
    """The soft relief of the skin as Gaussians: (x, y, sigma x, sigma y, height)."""
    lips_top, lips_end = curves["upper_lip"][:, 1].min(), curves["lower_lip"][:, 1].max()
    chin, wing = curves["head"][:, 1].max() - 0.24, 0.72 * face.nose_half_width
    bumps = [(0, lips_top + 0.05, 0.24, 0.07, 0.04), (0, lips_end - 0.07, 0.24, 0.07, 0.05)]
    bumps += [(0, lips_end + 0.1, 0.22, 0.07, -0.05), (0, chin, 0.24, 0.16, 0.08 + 0.05 * face.unit(17))]
    for side, name in ((-1, "left"), (1, "right")):
        brow, smile = curves[f"{name}_brow"], max(face.unit(6, side), 0.7 * face.unit(12, side))
        bumps += [(side * 0.46, 0.02, 0.25, 0.17, -0.15), (side * 0.5, 0.0, 0.17, 0.1, 0.07)]  # socket and eyeball
        bumps += [(side * 0.46, brow[:, 1].mean() + 0.02, 0.32, 0.09, 0.05)]
        bumps += [(side * 0.22, brow[0, 1] + 0.06, 0.09, 0.08, 0.06 * face.unit(4, side))]
        bumps += [(side * wing, face.nose_y - 0.04 - 0.06 * face.unit(9), 0.09, 0.08, 0.08)]
        bumps += [
            (side * 0.66, 0.56 - 0.1 * smile, 0.24, 0.19, 0.05 + 0.09 * smile),
            (side * 0.8, 1, 0.18, 0.22, -0.04),
        ]
    return bumps


def _creases(face: FaceParameters, curves: dict[str, np.ndarray], side: int) -> list[tuple[float, float, list]]:
    """Folds and dark edges in one half of the face: (darkness 0..1, width, points of the line for the right half)."""
    name, corner = ("left", curves["mouth"][0]) if side < 0 else ("right", curves["mouth"][30])
    au, old = {number: face.unit(number, side) for number in range(1, 44)}, 0.35 * face.age
    nose, wing = face.nose_y - 0.07 * au[9], face.nose_half_width
    x, y = abs(corner[0]), corner[1]
    brow, lid = curves[f"{name}_brow"] * (side, 1), curves[f"{name}_lid"] * (side, 1)
    inner, inner_y, forehead = brow[0, 0], brow[0, 1], brow[:, 1].min() - 0.14
    bare = face.hair_style != "fringe"  # is the forehead to be seen?
    nasolabial = old + max(0.55 * au[12], 0.65 * au[9], 0.65 * au[10], 0.25 * au[15], 0.2 * au[20])
    lines = [
        (nasolabial, 0.05, [(wing + 0.05, nose - 0.1), ((wing + x) / 2 + 0.12, (nose + y) / 2 - 0.04), (x + 0.13, y)]),
        (old + 0.6 * au[15], 0.05, [(x + 0.03, y + 0.02), (x + 0.08, y + 0.12), (x + 0.09, y + 0.26)]),
        (0.6, 0.05, [(x - 0.02, y - 0.01), (x + 0.03, y)]),  # corner of the mouth
        (0.4, 0.03, list(lid[2:-1:3] - (0, 0.075 - 0.03 * au[5]))),  # fold of the lid
        (0.8 * au[4] + 0.4 * au[9], 0.04, [(inner - 0.06, inner_y - 0.14), (inner - 0.08, inner_y + 0.1)]),  # frown
        (old + 0.15 + 0.4 * max(au[6], au[7]), 0.03, [(0.3, 0.13), (0.5, 0.2), (0.72, 0.13)]),  # below the eye
        (0.35, 0.035, [(wing - 0.02, nose - 0.12), (wing + 0.03, nose - 0.04), (wing - 0.02, nose + 0.04)]),
        (0.4, 0.06, [(0, nose + 0.1), (0.1, nose + 0.07), (wing - 0.02, nose + 0.05)]),  # below the nose
        (0.95, 0.07, [(0.07, nose + 0.045), (0.15, nose + 0.03)]),  # nostril
    ]
    for step in 0.0, 0.1, 0.2:
        lines += [
            (0.6 * au[9], 0.025, [(0.04, 0.06 + step), (0.14, 0.1 + step), (0.2, 0.18 + step)]),
            (old / 2 + 0.5 * au[6], 0.02, [(0.8, 0.02), (0.93, -0.07 + 0.8 * step)]),
            (bare * (old / 2 + 0.45 * au[1]), 0.03, [(0, forehead - step), (0.3, forehead - step - 0.02)]),
            (bare * (old / 2 + 0.45 * au[2]), 0.03, [(0.3, forehead - step - 0.02), (0.7, forehead - step + 0.04)]),
        ]
    return lines


def _shade(face: FaceParameters, curves: dict[str, np.ndarray], size: int) -> np.ndarray:
    """Brightness of the skin about 1, (size, size) float32: Lambert's law on the relief, less the creases."""
    coarse, folds = _Canvas(face, size // 2), _Canvas(face, 2 * size)  # relief is soft, creases are not
    x, y, height = coarse.surface()
    for center_x, center_y, sigma_x, sigma_y, bump in _bumps(face, curves):
        height += bump * np.exp(-(((x - center_x) / sigma_x) ** 2) - ((y - center_y) / sigma_y) ** 2)
    slope_y, slope_x = np.gradient(height, 1 / coarse.unit)
    lambert = 1 - face.light_x * slope_x - face.light_y * slope_y
    lambert /= np.sqrt((1 + slope_x**2 + slope_y**2) * (1 + face.light_x**2 + face.light_y**2))
    light = 1 + face.contrast * (1.15 * np.clip(lambert, 0, None) - 1)
    light = Image.fromarray(light.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    lines = [(*crease, side) for side in (-1, 1) for crease in _creases(face, curves, side)]
    for dark, width, points, side in sorted(lines, key=lambda line: line[0]):  # the darkest on top
        folds.stroke(_smooth(np.array(points) * (side, 1)), (255 * dark,), width)
    dark = folds.image.reduce(2).filter(ImageFilter.GaussianBlur(0.009 * folds.unit))
    return np.asarray(light) * (1 - 0.6 / 255 * np.asarray(dark, dtype=np.float32))


def _paint_head(paint: _Canvas, mask: _Canvas, curves: dict[str, np.ndarray]) -> None:
    face = paint.face
    if face.hair_style == "long":
        paint.fill(_ellipse(0, 0.75, 1.36, 2.2), face.hair * 0.7)
    if face.hair_style == "bun":
        paint.fill(_ellipse(0, -1.6, 0.45, 0.4), face.hair * 0.85)
    paint.fill(_ellipse(0, 3.8, 2.9, 1.65), face.clothing)
    paint.fill(np.array([(-0.7, 0.9), (0.7, 0.9), (0.76, 2.3), (-0.76, 2.3)]), face.skin * 0.62)
    paint.fill(_ellipse(0, 2.25, 0.78, 0.2), face.skin * 0.62)
    for x in (-face.face_width, face.face_width):
        paint.fill(_ellipse(1.1 * x, 0.25, 0.13, 0.3), face.skin * 0.8)
        paint.fill(_ellipse(1.13 * x, 0.25, 0.06, 0.18), face.skin * 0.6)
    paint.fill(curves["head"], face.skin)
    mask.fill(curves["head"])
    if face.beard:
        stubble = _Canvas(face, paint.image.width)
        stubble.fill(curves["head"][curves["head"][:, 1] > 0.85] * (0.96, 0.97), (255 * face.beard,))
        soft = stubble.image.filter(ImageFilter.BoxBlur(0.1 * paint.unit))
        paint.image.paste(tuple(face.hair.astype(int).clip(0)), mask=soft)


def _paint_features(paint: _Canvas, curves: dict[str, np.ndarray]) -> None:
    face = paint.face
    red = face.skin * (0.8, 0.56, 0.56) + (22, 8, 8)
    paint.fill(np.concatenate([curves["upper_lip"][:31], curves["lower_lip"][31:]]), red)
    paint.fill(curves["upper_lip"], red * 0.86)
    # what shows through the openings of mouth and eyes is painted on a copy, then clipped
    inside, openings = _Canvas(face, paint.image.width, paint.image.copy()), _Canvas(face, paint.image.width)
    top, bottom = curves["mouth"][:31], curves["mouth"][:30:-1]
    teeth = 0.03 + 0.11 * max(face.unit(12), face.unit(10), 0.7 * face.unit(20))
    inside.fill(curves["mouth"], (52, 18, 20))
    inside.fill(_ellipse(0, bottom[15, 1] + 0.02, 0.24, 0.35 * (bottom - top)[15, 1]), (150, 70, 74))
    inside.fill(np.concatenate([top - (0, 0.05), top[::-1] + (0, teeth)]), (228, 222, 210))
    for name, x in (("left_eye", face.gaze - 0.5), ("right_eye", face.gaze + 0.5)):
        inside.fill(curves[name], (232, 228, 222))
        for radius, colour in ((0.125, face.iris * 0.6), (0.105, face.iris), (0.055, (12, 10, 10))):
            inside.fill(_ellipse(x, -0.02, radius, radius), colour)
        inside.fill(_ellipse(x - 0.04, -0.065, 0.022, 0.022), (250, 250, 250))
    for name in ("mouth", "left_eye", "right_eye"):
        openings.fill(curves[name])
    paint.image.paste(inside.image, mask=openings.image)
    paint.stroke(top, red * 0.4, 0.025)
    for name in ("left", "right"):
        paint.stroke(curves[f"{name}_eye"][21:], face.skin * 0.6, 0.02)
        paint.stroke(curves[f"{name}_lid"], face.skin * 0.22, 0.045)
        paint.fill(curves[f"{name}_brow"], np.minimum(face.hair * 0.6, face.skin * 0.45))


def _paint_hair(paint: _Canvas, mask: _Canvas, head: np.ndarray, rng: np.random.Generator) -> None:
    """The hair in front lies between two curves, crown and hairline, both from left to right."""
    face = paint.face
    volume, line = HAIR_VOLUME[face.hair_style], -0.6 if face.hair_style == "fringe" else face.hairline_y
    crown = head[head[:, 1] < -0.25]
    crown = crown[np.argsort(np.arctan2(crown[:, 0], -crown[:, 1]))] * (1 + 0.6 * volume, 1 + volume)
    half = np.array([(0.25, line), (0.7, 0.84 * line), (0.94 * face.face_width, -0.5), (1.06 * face.face_width, -0.1)])
    edge = _smooth(np.concatenate([half[::-1] * (-1, 1), half]) + rng.normal(0, 0.02, (8, 2)))
    outlines = [np.concatenate([crown, edge[::-1]])]
    if face.hair_style == "curly":
        outlines += [_ellipse(*point, *rng.uniform(0.12, 0.22, 2)) for point in crown[::2] * 1.03]
    for outline in outlines:
        paint.fill(outline, face.hair)
        mask.fill(outline)
    for share in rng.uniform(0, 1, 40):  # strands
        root, tip = (points[int(share * len(points))] for points in (crown, edge))
        strand = _smooth([root * 0.98, (root + tip) / 2 * (1.05, 1.03), tip]) + rng.normal(0, 0.02, 2)
        paint.stroke(strand, face.hair * rng.uniform(0.75, 1.2), 0.02)


def draw_face(expression: str, rng: np.random.Generator, size: int = 224) -> Image.Image:
    """
    Draws one face.

    Args:
        expression (`str`): A key of `ACTION_UNITS`.
        rng (`np.random.Generator`): Source of every random choice: the same state draws the same picture.
        size (`int`, defaults to 224): Width and height in pixels.

    Returns:
        `PIL.Image.Image`: An RGB picture of `size` x `size`.

    Raises:
        FeridError: If `ACTION_UNITS` has no recipe for `expression`.
    """
    face = sample_face(expression, rng)
    curves = face_curves(face)
    # flat colours and the mask of what is lit, at twice the size for smooth edges
    backdrop = Image.fromarray(np.clip(face.background, 0, 255).astype(np.uint8))
    paint = _Canvas(face, 2 * size, backdrop.resize((2 * size, 2 * size), Image.Resampling.BICUBIC))
    mask = _Canvas(face, 2 * size)
    _paint_head(paint, mask, curves)
    _paint_features(paint, curves)
    if face.hair_style != "none":
        _paint_hair(paint, mask, curves["head"], rng)
    colour, head = (np.asarray(canvas.image.reduce(2), dtype=np.float32) for canvas in (paint, mask))
    shade = 1 + head / 255 * (_shade(face, curves, size) - 1)
    picture = Image.fromarray(np.clip(colour * shade[..., None], 0, 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(face.blur))
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * face.noise
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def are_drawn(ids: Iterable[str]) -> bool:
    """Whether these sample ids are all of drawn faces: figures on them must never pass for figures on people."""
    return all(name.rpartition("/")[2].startswith(PREFIX) for name in ids)


def draw_faces(
    root: str | Path,
    *,
    count: int = 600,
    seed: int = 0,
    size: int = 224,
    progress: Callable[[range], Iterable[int]] = iter,
) -> None:
    """
    Draws a labelled folder of faces: `root/{train,test}/<emotion>/drawn_00001.png` and a README.txt.

    The expressions take turns, so they are balanced to within one picture; every fifth picture of each is for testing.
    Picture i depends on `seed` and i alone.

    Args:
        root (`str` or `Path`): Folder to write into, made when missing.
        count (`int`, defaults to 600): Number of pictures, at least 35 so that both splits hold every expression.
        seed (`int`, defaults to 0): The same seed gives the same bytes.
        size (`int`, defaults to 224): Width and height in pixels.
        progress (`Callable`, *optional*): Wraps the range of pictures, as `rich.progress.track` or `tqdm.tqdm` do.

    Raises:
        FeridError: If `count` is too small.
    """
    root, expressions = Path(root), tuple(ACTION_UNITS)
    if count < 5 * len(expressions):
        raise FeridError(f"{count} drawn faces cannot fill both splits; ask for {5 * len(expressions)} or more")
    for index in progress(range(count)):
        turn, which = divmod(index, len(expressions))
        folder = root / ("test" if turn % 5 == 4 else "train") / expressions[which]
        folder.mkdir(parents=True, exist_ok=True)
        picture = draw_face(expressions[which], np.random.default_rng((seed, index)), size)
        picture.save(folder / f"{PREFIX}{index + 1:05d}.png", compress_level=1)
    (root / "README.txt").write_text(README.format(count=count, seed=seed), encoding="utf-8")
