"""The pictures of `ferid stats`: the statistics table with the classes of every source, and a sheet of samples.

    statistics.png      the table of `stats.count_ferid`, counts rounded as in the FERID figure (28,558 -> "29k"), and
                        below it, source by source, the classes of the train split
    contact_sheet.png   samples label by label: a still is one thumbnail, a clip some of its frames side by side

The contact sheet shows people's faces: like the pictures themselves it must not be published.
"""

import math
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils import tqdm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.stats import ferid_files, in_order, read_rows, sample_config, table_rows

DPI = 150
INCHES = 1600 / DPI  # width of statistics.png
COLUMNS = {  # of `table_rows`, with the left edge of those of words, the right edge of those of numbers
    "Dataset": 0.0,
    "Annotation": 0.16,
    "Train\nsamples": 0.39,
    "Validation\nsamples": 0.50,
    "Test\nsamples": 0.59,
    "Category\ninstructions": 0.74,
    "Conversation\ninstructions": 0.89,
    "Long-tail\nratio": 1.0,
}
BAR_COLOR = "#4878a8"
MOST_PANELS = 4  # side by side

# pixels of contact_sheet.png
LEAST_WIDTH, MOST_WIDTH = 760, 1940  # a label with more samples than fit goes on in another line
MARGIN = 24
HEADER = 80
LABELS_WIDTH = 160
THUMBNAIL = 96  # side of a square
GAP = 12  # between samples; the frames of a clip touch
LINE = THUMBNAIL + 40  # a line of samples with its captions
FRAMES = 4  # that are shown of a clip
INK, FAINT, GREY, PALE = "#141414", "#6e6e6e", "#d9d9d9", "#f2f2f2"


def save_statistics(stats: dict[str, Any], path: str | Path) -> None:
    """
    Draw the statistics table and the class histograms as a PNG, 1600 pixels wide.

    Args:
        stats (`dict`):
            What [`~stats.count_ferid`] returned.
        path (`str` or `Path`):
            The PNG to write, in a folder that exists.
    """
    sources = [source for source in stats["sources"] if "train" in source["classes"]]
    lines = max(1, math.ceil(len(sources) / MOST_PANELS))
    columns = max(1, math.ceil(len(sources) / lines))
    most = [  # classes of a source, in each line of panels
        max((len(source["classes"]["train"]) for source in sources[line * columns :][:columns]), default=0)
        for line in range(lines)
    ]
    table, *bars = 1.5 + 0.27 * len(stats["sources"]), *(0.45 + 0.19 * classes for classes in most)  # inches

    # A Figure of its own, not pyplot's: no global state, no window system, safe in threads
    figure = Figure(figsize=(INCHES, table + 0.4 + sum(bars)), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    upper, lower = figure.subfigures(2, height_ratios=[table, 0.4 + sum(bars)])
    _draw_table(upper.subplots(), table_rows(stats, _rounded), stats["drawn"])
    lower.suptitle("Train samples by class" if sources else "", x=0.012, ha="left", fontsize=13, weight="bold")
    grid = lower.add_gridspec(lines, columns, height_ratios=bars)
    for index, source in enumerate(sources):
        line, column = divmod(index, columns)
        _draw_classes(lower.add_subplot(grid[line, column]), source, most[line])
    figure.savefig(path, format="png")


def _rounded(count: int) -> str:
    return f"{count / 1000:.0f}k" if count >= 1000 else str(count)


def _draw_table(axes: Axes, rows: list[list[str]], drawn: bool) -> None:
    """Words between rules; `rows` ends with the totals."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 0.1, -2.1))  # a row is 1 high, the header 2
    for line, cells in enumerate([COLUMNS, *rows]):
        y, weight = (line - 0.5 if line else -1), ("bold" if line in (0, len(rows)) else "normal")
        for column, (x, text) in enumerate(zip(COLUMNS.values(), cells, strict=True)):
            axes.text(x, y, text, fontsize=10, weight=weight, ha="left" if column < 2 else "right", va="center")
    for y, width in ((-2, 1.4), (0, 0.7), (len(rows) - 1, 0.7), (len(rows), 1.4)):
        axes.axhline(y, color="black", linewidth=width)
    whose = " (drawn faces, no photographs)" if drawn else ""
    axes.set_title(f"FERID: samples and instructions{whose}", loc="left", fontsize=13, weight="bold", pad=10)
    axes.set_title("instructions and ratio: train split", loc="right", fontsize=9, color="0.35")


def _draw_classes(axes: Axes, source: dict[str, Any], places: int) -> None:
    """A bar a class, the largest on top, its count beside it; the panel has room for `places` bars."""
    classes = sorted(source["classes"]["train"].items(), key=lambda item: item[1], reverse=True)
    labels, counts = zip(*classes, strict=True)
    axes.barh(labels, counts, height=0.72, color=BAR_COLOR)
    for y, count in enumerate(counts):
        axes.text(count, y, f" {count:,}", fontsize=8, va="center")
    axes.set(xlim=(0, 1.3 * counts[0]), ylim=(places - 0.5, -0.5), xticks=[])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{source['title']}: {sum(counts):,}", loc="left", fontsize=10, weight="bold")


def save_contact_sheet(
    out: str | os.PathLike, path: str | Path, *, per_class: int = 8, seed: int = 0
) -> tuple[int, int]:
    """
    Draw samples of every label as a PNG, of all splits and as evenly from the sources as these have any.

    A picture that does not open becomes a grey square that says so. Only the pictures that are shown are read.

    Args:
        out (`str` or `os.PathLike`):
            The folder that `ferid build` wrote.
        path (`str` or `Path`):
            The PNG to write, in a folder that exists.
        per_class (`int`, *optional*, defaults to 8):
            Samples of a label.
        seed (`int`, *optional*, defaults to 0):
            The same seed draws the same samples.

    Returns:
        `tuple[int, int]`: the squares on the sheet, and how many of them are grey.

    Raises:
        [`FeridError`]: `out` is no FERID.
    """
    rows = draw_samples(out, per_class=per_class, seed=seed)
    strips = [
        [_thumbnail(picture) for picture in _spread(row["images"] or [{}])]
        for row in tqdm(rows, desc="open", unit=" samples", leave=False)
    ]
    whose = "people's faces: not to be published"
    if are_drawn(row["id"] for row in rows):
        whose = "drawn faces, no photographs"
    _draw_sheet(rows, strips, f"FERID samples, seed {seed}", whose).save(path, format="PNG")
    squares = [square for strip in strips for square in strip]
    return len(squares), squares.count(None)


def draw_samples(out: str | os.PathLike, *, per_class: int, seed: int) -> list[dict[str, Any]]:
    """At most `per_class` rows a label, with `id`, `source`, `label` and `images`: by label, then by source."""
    files = ferid_files(out)
    files = list(files[sample_config(files)].values())
    tables = [read_rows(file, ["label", "source"]) for file in files]
    starts = np.cumsum([0, *map(len, tables)])
    table = pa.concat_tables(tables).append_column("row", pa.array(np.arange(starts[-1])))
    groups = table.group_by(["label", "source"], use_threads=False).aggregate([("row", "list")]).to_pylist()
    rows_of = {(group["label"], group["source"]): group["row_list"] for group in groups}

    generator = np.random.default_rng(seed)
    sources = in_order({source for _, source in rows_of}, SOURCES)
    chosen = []
    for label in in_order({label for label, _ in rows_of}, LABELS):
        drawn = []
        for source in sources:
            rows = generator.permutation(rows_of.get((label, source), []))[:per_class]
            drawn += [(turn, sources.index(source), row) for turn, row in enumerate(rows)]
        evenly = sorted(drawn)[:per_class]  # the first of every source, then the second, ...
        chosen += [row for _, _, row in sorted(evenly, key=lambda pick: pick[1])]

    found = {}
    for file, start, end in zip(files, starts, starts[1:], strict=False):
        rows = sorted(row - start for row in chosen if start <= row < end)
        found |= zip((start + row for row in rows), _read_samples(file, rows), strict=True)
    return [found[row] for row in chosen]


def _read_samples(file: Path, rows: list[int]) -> Iterator[dict[str, Any]]:
    """These rows, which are sorted; only the row groups that hold one are read."""
    parquet = pq.ParquetFile(file)
    ends = np.cumsum([parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)])
    for group, members in groupby(rows, key=lambda row: int(np.searchsorted(ends, row, side="right"))):
        table = parquet.read_row_group(group, columns=["id", "source", "label", "images"])
        yield from table.take([row - (ends[group] - len(table)) for row in members]).to_pylist()


def _spread(pictures: list[dict]) -> list[dict]:
    """The still, or `FRAMES` of a clip's frames, at the centres of equal bins."""
    shown = min(FRAMES, len(pictures))
    return [pictures[int((i + 0.5) * len(pictures) / shown)] for i in range(shown)]


def _thumbnail(picture: dict[str, Any]) -> Image.Image | None:
    """The whole picture in a square, or None when it does not open."""
    try:
        image = datasets.Image().decode_example(picture).convert("RGB")
    except Exception:  # decoders raise anything from OSError to struct.error on broken bytes
        return None
    return ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), color=PALE)


def _draw_sheet(rows: list[dict], strips: list[list[Image.Image | None]], heading: str, whose: str) -> Image.Image:
    """Lines of samples between a heading and, on the right, whose faces they are."""
    places, tops, edges, x, y = [], {}, [LEAST_WIDTH], 0, HEADER - LINE
    for row, strip in zip(rows, strips, strict=True):
        width = len(strip) * THUMBNAIL
        if row["label"] not in tops or x + width > MOST_WIDTH - MARGIN:
            x, y = MARGIN + LABELS_WIDTH, y + LINE
        tops.setdefault(row["label"], y)
        places.append((x, y))
        edges.append(x + width + MARGIN)
        x += width + GAP

    sheet = Image.new("RGB", (max(edges), y + LINE + MARGIN // 2), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), heading, INK, ImageFont.load_default(24))
    pen.text((sheet.width - MARGIN, MARGIN + 6), whose, FAINT, ImageFont.load_default(18), anchor="ra")
    for label, top in tops.items():
        pen.line((MARGIN, top - GAP, sheet.width - MARGIN, top - GAP), GREY)
        words = label.replace(" and ", " and\n")  # a compound label has several
        pen.text((MARGIN, top + THUMBNAIL // 2), words, INK, ImageFont.load_default(16), anchor="lm")
    for row, strip, (x, y) in zip(rows, strips, places, strict=True):
        pen.text((x, y + THUMBNAIL + 4), row["source"], FAINT, ImageFont.load_default(13))
        for place, square in enumerate(strip):
            sheet.paste(square or _grey_square(), (x + place * THUMBNAIL, y))
    return sheet


def _grey_square() -> Image.Image:
    square = Image.new("RGB", (THUMBNAIL, THUMBNAIL), GREY)
    middle, font = (THUMBNAIL // 2, THUMBNAIL // 2), ImageFont.load_default(13)
    ImageDraw.Draw(square).text(middle, "does not\nopen", FAINT, font, anchor="mm", align="center")
    return square
