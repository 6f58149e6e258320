"""Draw the faces of a picture for people: boxes, landmarks in the colour of their region, age and gender.

    draw_faces(Image.open("group.jpg"), analyzer([Image.open("group.jpg")])[0])   ->   a picture of 900 to 1800 pixels

Face 1 is the largest, the one that a checkpoint of one face reads.
"""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from .configuration_emo_llama import LANDMARK_REGIONS
from .face_analysis import Face

# Okabe and Ito's colours, told apart by the colour-blind as well; none is that of skin.
REGION_COLORS = {"jaw": "#56B4E9", "brows": "#F0E442", "nose": "#009E73", "eyes": "#FFFFFF", "mouth": "#CC79A7"}
INK = "#141414"
LEAST_SIDE, MOST_SIDE = 900, 1800  # pixels of the longer side: smaller pictures are enlarged, larger ones scaled down
LEGEND = 56  # pixels of the strip below the picture
DPI = 100


def draw_faces(image: Image.Image, faces: list[Face]) -> Image.Image:
    """
    A picture of the faces, with a legend below it.

    Args:
        image (`PIL.Image.Image`): the picture that was analysed.
        faces (`list[Face]`): its faces, the largest first, in its pixels.
    """
    scale = np.clip(max(image.size), LEAST_SIDE, MOST_SIDE) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # A Figure of its own, not pyplot's: no global state, no window system, safe in threads
    figure = Figure(figsize=(width / DPI, (height + LEGEND) / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, LEGEND / (height + LEGEND), 1, height / (height + LEGEND)))
    axes.imshow(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    axes.set_axis_off()
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="auto")
    for number, face in reversed(list(enumerate(faces, start=1))):  # the largest on top
        draw_face(axes, face, number, scale)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor=INK, markeredgewidth=0.6, label=region)
        for region, color in REGION_COLORS.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=11, handletextpad=0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def draw_face(axes, face: Face, number: int, scale: float) -> None:
    """One face in pixels of the drawing, which has `scale` times those of the picture."""
    left, top, right, bottom = face.box * scale
    for color, line in ((INK, 3.4), ("white", 1.6)):  # a dark seam, seen on light pictures as well
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=line))
    points = face.landmarks * scale
    size = np.clip((right - left) / 70, 1.2, 5)  # pixels of a point's radius
    for region, color in REGION_COLORS.items():
        x, y = points[list(LANDMARK_REGIONS[len(points)][region])].T
        area = (2 * size * 72 / DPI) ** 2  # matplotlib's unit: square of the diameter in points
        axes.scatter(x, y, s=area, c=color, edgecolors=INK, linewidths=0.5, zorder=3)
    axes.text(
        max(left, 0),
        max(top, 24),
        f" {caption(face, number)} ",
        color="white",
        fontsize=10,
        va="bottom",
        bbox={"boxstyle": "square,pad=0.25", "facecolor": INK, "edgecolor": "none", "alpha": 0.85},
        zorder=4,
        clip_on=True,
    )


def caption(face: Face, number: int) -> str:
    """ "1: female, 34 (0.98)", with what is known."""
    known = [face.gender or "", f"{face.age:.0f} years" if face.age is not None else ""]
    told = ", ".join(word for word in known if word)
    return f"{number}{': ' if told else ''}{told} ({face.score:.2f})"
