"""The picture of the confusion matrix: right size, right colours, nothing cut off, for few and many classes."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ferid_dataset.evaluate.confusion_picture import save_confusion_picture
from ferid_dataset.evaluate.metrics import compute_metrics

LABELS = "surprise fear disgust happiness sadness anger neutral contempt anxiety helplessness disappointment".split()


def metrics_of(num_labels, invalid=False):
    """Every label three times: right, right, and taken for the next one or not understood."""
    labels = LABELS[:num_labels]
    answers = [(a, b) for a, b in zip(labels, labels[1:] + labels[:1], strict=True)]
    pairs = [pair for a, b in answers for pair in ((a, a), (a, a), (a, None if invalid else b))]
    return compute_metrics(
        [{"id": str(i), "label": a, "prediction": b, "options": labels} for i, (a, b) in enumerate(pairs)]
    )


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to ask them for their texts."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize("num_labels", [2, 7, 11])
@pytest.mark.parametrize("invalid", [False, True])
def test_texts_and_bounds(tmp_path, drawn, num_labels, invalid):
    save_confusion_picture(metrics_of(num_labels, invalid), tmp_path / "confusion.png", "EMO-LLaMA on RAF-DB test")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG" and 800 < picture.width < 2400
        assert np.asarray(picture.convert("RGB")).std() > 20

    (figure,) = drawn
    (axes,) = figure.axes
    columns = [tick.get_text() for tick in axes.get_xticklabels()]
    assert columns == LABELS[:num_labels] + ["invalid"] * invalid
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [f"{name}  (n=3)" for name in LABELS[:num_labels]]
    assert figure.get_suptitle() == "EMO-LLaMA on RAF-DB test"
    assert "WAR 66.7%  (95% interval " in axes.get_title() and "UAR 66.7%" in axes.get_title()
    cells = [text.get_text().strip() for text in axes.texts]
    assert cells.count("67%") == cells.count("33%") == num_labels  # percent ...
    assert cells.count("2") == cells.count("1") == num_labels  # ... and count
    width, height = figure.bbox.size
    for text in [axes.title, figure._suptitle, *axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()


def luminance(color):
    rgb = np.asarray(color[:3])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_text_stands_out_on_every_shade(tmp_path, drawn):
    counts = np.zeros((11, 12), int)
    for i in range(11):  # shares of 0.66 to 0.76, where the ink changes, and 0.24 to 0.34
        counts[i, i], counts[i, (i + 1) % 11] = 66 + i, 34 - i
    metrics = {**metrics_of(11), "confusion_matrix": counts.tolist()}
    save_confusion_picture(metrics, tmp_path / "shades.png", "every shade")
    assert {text.get_color() for text in drawn[0].axes[0].texts} > {"white", "black"}
    (image,) = drawn[0].axes[0].images
    for text in drawn[0].axes[0].texts:
        if text.get_text() == "0":
            continue
        column, row = (round(i) for i in text.get_position())
        ground = luminance(image.cmap(image.norm(image.get_array()[row, column])))
        ink = 1.0 if text.get_color() == "white" else 0.0
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5  # WCAG 2, level AA


def test_a_class_without_rows_and_a_long_title(tmp_path, drawn):
    metrics = compute_metrics([{"id": "a", "label": "fear", "prediction": "fear", "options": LABELS[:3]}])
    save_confusion_picture(metrics, tmp_path / "confusion.png", "a long name " * 12)
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()][0] == "surprise  (n=0)"
    box = drawn[0]._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= drawn[0].bbox.width


def test_same_metrics_same_bytes_and_no_pyplot(tmp_path):
    for name in ("a.png", "b.png"):
        save_confusion_picture(metrics_of(7), tmp_path / name, "twice")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    code = "import sys, ferid_dataset.evaluate.confusion_picture; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
