"""The confusion matrix as a picture: who is taken for whom, readable without a legend and in grey print.

One row of the picture, for a class of 40 rows:   fear (n=40)   | 12 %, 5 | 75 %, 30 | 3 %, 1 | 10 %, 4 invalid |
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ferid_dataset.evaluate.metrics import INVALID

COLORS = "Blues"  # one hue, light to dark: order survives colour blindness and grey print
DARK_FROM = 0.72  # share of a row from which white text has more contrast on this map than black (WCAG 2)


def save_confusion_picture(metrics: dict[str, Any], path: str | Path, title: str) -> None:
    """
    Draw the confusion matrix as a PNG. Colour and percent are shares of a row, so the diagonal shows the recalls.

    Args:
        metrics (`dict`):
            What [`compute_metrics`] returned.
        path (`str` or `Path`):
            The PNG to write, in a folder that exists.
        title (`str`):
            First line of the title, such as "EMO-LLaMA on RAF-DB test". The second one gives WAR and UAR.
    """
    counts = np.array(metrics["confusion_matrix"])  # [labels, labels + 1]
    columns = [*metrics["labels"], INVALID]
    if not counts[:, -1].any():
        counts, columns = counts[:, :-1], columns[:-1]
    sizes = counts.sum(axis=1)
    shares = counts / np.where(sizes, sizes, np.nan)[:, None]  # a class without rows stays blank

    # A Figure of its own, not pyplot's: no global state, no window system, safe in threads
    figure = Figure(
        figsize=(max(6.0, 2.4 + 0.82 * len(columns)), 2.6 + 0.66 * len(counts)), dpi=150, layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(shares, cmap=COLORS, vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, counts, shares)
    _label_axes(axes, columns, [f"{label}  (n={n})" for label, n in zip(metrics["labels"], sizes, strict=True)])
    figure.suptitle(title, fontsize=13, fontweight="bold", wrap=True)
    axes.set_title(f"{_rate(metrics, 'war', 'WAR')}\n{_rate(metrics, 'uar', 'UAR')}", fontsize=10)
    figure.savefig(path, format="png")


def _rate(metrics: dict[str, Any], key: str, name: str) -> str:
    low, high = metrics[f"{key}_ci95"]
    return f"{name} {metrics[key]:.1%}  (95% interval {low:.1%} to {high:.1%})"


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count == 0:
            axes.text(column, row, "0", ha="center", va="center", fontsize=8, color="0.55")
            continue
        color = "white" if shares[row, column] >= DARK_FROM else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}\n", ha="center", va="center", fontsize=10, color=color)
        axes.text(column, row, f"\n{count}", ha="center", va="center", fontsize=8, color=color)


def _label_axes(axes: Axes, columns: list[str], rows: list[str]) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("predicted   (share of the row, count below)")
    axes.set_ylabel("truth")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # white lines between the cells, and a broad one before the invalid answers, which are no class
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    if len(columns) > len(rows):
        axes.axvline(len(rows) - 0.5, color="white", linewidth=8)
