"""`ferid stats`: what it counts, and the two pictures it draws."""

import io
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from ferid_dataset import stats_pictures
from ferid_dataset.errors import FeridError
from ferid_dataset.ferid import FEATURES
from ferid_dataset.stats import count_ferid, table_rows
from ferid_dataset.stats_pictures import (
    GAP,
    HEADER,
    LABELS_WIDTH,
    LINE,
    MARGIN,
    THUMBNAIL,
    draw_samples,
    save_contact_sheet,
    save_statistics,
)

LABELS = "surprise fear disgust happiness sadness anger neutral contempt anxiety helplessness disappointment".split()
CLIPS = ("dfew", "ferv39k", "mafw", "crema_d")


def rows_of(source, counts, images=lambda name: []):
    """One row for each count; `images` makes the pictures of an id."""
    names = [(label, f"{source}/{label}_{i:04}") for label, count in counts.items() for i in range(count)]
    return [
        {
            "id": name,
            "source": source,
            "media_type": "video" if source in CLIPS else "image",
            "images": images(name),
            "messages": [],
            "label": label,
            "options": list(counts),
            "attributes": None,
            "faces": None,
        }
        for label, name in names
    ]


def write_ferid(out, row_group_size=None, **configs):
    """write_ferid(out, category={"train": rows}): the folder as `ferid build` leaves it."""
    card = []
    for config, splits in configs.items():
        (out / config).mkdir(parents=True)
        for split, rows in splits.items():
            table = pa.Table.from_pylist(rows, schema=FEATURES.arrow_schema)
            pq.write_table(table, out / config / f"{split}.parquet", row_group_size=row_group_size)
        files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        card.append({"config_name": config, "data_files": files})
    (out / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return out


def png(color, size=(40, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to ask them for their texts."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        return savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The six sources with the long-tail ratios of the paper's table, in another order, and a source of no name."""
    train = (
        rows_of("mafw", dict(zip(LABELS, [8, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3], strict=True)))
        + rows_of("own", {"anger": 3})
        + rows_of("dfew", dict(zip(LABELS[:7], [18, 1, 2, 3, 4, 5, 6], strict=True)))
        + rows_of("ferv39k", dict(zip(LABELS[:7], [23, 5, 6, 7, 8, 9, 10], strict=True)))
        + rows_of("raf_db", dict(zip(LABELS[:7], [34, 2, 3, 4, 5, 6, 7], strict=True)))
        + rows_of("ferplus", dict(zip(LABELS[:8], [1100, 18, 300, 310, 320, 330, 340, 350], strict=True)))
        + rows_of("affectnet", dict(zip(LABELS[:8], [72, 2, 3, 4, 5, 6, 7, 8], strict=True)))
    )
    conversation = [row for row in train if row["source"] in ("raf_db", "mafw")][:-2]
    return write_ferid(
        tmp_path_factory.mktemp("built") / "ferid",
        category={
            "train": train,
            "validation": rows_of("ferplus", {"fear": 4, "anger": 1}),
            "test": rows_of("ferplus", {"fear": 2}) + rows_of("raf_db", {"neutral": 9}),
        },
        conversation={"train": conversation},
    )


def test_the_table_of_the_paper(paper):
    assert table_rows(count_ferid(paper)) == [
        ["FERPlus", "8 expressions", "3,068", "5", "2", "3,068", "-", "61.1"],
        ["RAF-DB", "7 expressions", "61", "-", "9", "61", "59", "17.0"],
        ["AffectNet", "8 expressions", "107", "-", "-", "107", "-", "36.0"],
        ["DFEW", "7 expressions", "39", "-", "-", "39", "-", "18.0"],
        ["FERV39k", "7 expressions", "68", "-", "-", "68", "-", "4.6"],
        ["MAFW", "11 expressions", "42", "-", "-", "42", "42", "8.0"],
        ["own", "1 expression", "3", "-", "-", "3", "-", "1.0"],
        ["FERID", "", "3,388", "5", "11", "3,388", "101", "-"],
    ]


def test_all_that_is_counted_is_ready_for_json(tmp_path):
    rows = rows_of("dfew", {"happiness": 3, "fear": 1})
    for row in rows:
        row["options"] = ["joy", "fear"]
    out = write_ferid(
        tmp_path / "ferid",
        conversation={"train": rows[2:]},
        category={"train": rows, "test": rows_of("dfew", {"fear": 2})},
    )
    counted = count_ferid(out)
    assert json.loads(json.dumps(counted)) == counted
    assert counted == {
        "drawn": False,
        "sources": [
            {
                "source": "dfew",
                "title": "DFEW",
                "options": ["joy", "fear"],
                "samples": {"train": 4, "test": 2},
                "classes": {"train": {"fear": 1, "happiness": 3}, "test": {"fear": 2}},
                "long_tail_ratio": 3.0,
                "instructions": {"conversation": {"train": 2}, "category": {"train": 4, "test": 2}},
            }
        ],
        "total": {
            "samples": {"train": 4, "test": 2},
            "instructions": {"conversation": {"train": 2}, "category": {"train": 4, "test": 2}},
        },
    }
    assert list(counted["sources"][0]["classes"]["train"]) == ["fear", "happiness"]  # in the order of the labels


def test_conversations_alone_and_no_train_split(tmp_path, drawn):
    out = write_ferid(tmp_path / "ferid", conversation={"test": rows_of("raf_db", {"fear": 2, "anger": 1})})
    counted = count_ferid(out)
    assert table_rows(counted)[0] == ["RAF-DB", "2 expressions", "-", "-", "3", "-", "-", "-"]
    save_statistics(counted, tmp_path / "statistics.png")
    assert [len(part.axes) for part in drawn[0].subfigs] == [1, 0]


def test_drawn_faces_are_named(tmp_path, drawn):
    rows = rows_of("folder", {"fear": 1})
    rows[0]["id"] = "folder/train/fear/drawn_00001"
    counted = count_ferid(write_ferid(tmp_path / "ferid", category={"train": rows}))
    assert counted["drawn"] is True
    save_statistics(counted, tmp_path / "statistics.png")
    assert "drawn faces, no photographs" in drawn[0].subfigs[0].axes[0].get_title(loc="left")


@pytest.mark.parametrize("what", ["missing", "empty", "other card", "no yaml", "lost file", "broken file", "no ferid"])
def test_what_is_no_ferid(tmp_path, what):
    out = write_ferid(tmp_path / "ferid", category={"train": rows_of("dfew", {"fear": 1})})
    file, card = out / "category/train.parquet", out / "README.md"
    if what == "missing":
        out, part = tmp_path / "nowhere", "there is no folder"
    elif what in ("empty", "other card", "no yaml"):
        part = "holds no FERID: give the folder that ferid build wrote"
        text = {
            "other card": "---\nconfigs: [{config_name: a, data_files: '*.csv'}]\n---\n",
            "no yaml": "---\n: [\n---\n",
        }
        card.write_text(text[what]) if what in text else card.unlink()
    else:
        part = "train.parquet is missing or holds no rows of FERID: build it again"
        file.unlink()
        if what == "broken file":
            file.write_bytes(b"PAR1 or not")
        elif what == "no ferid":
            pq.write_table(pa.table({"id": ["a"]}), file)
    with pytest.raises(FeridError, match=part) as error:
        count_ferid(out)
    assert "\n" not in str(error.value) and str(out) in str(error.value)
    with pytest.raises(FeridError, match=part):
        save_contact_sheet(out, tmp_path / "sheet.png")


def test_no_rows(tmp_path):
    out = write_ferid(tmp_path / "ferid", category={"train": []})
    with pytest.raises(FeridError, match=f"{out} holds no rows: build it again"):
        count_ferid(out)


# ---- statistics.png ----


def texts_of(figure):
    """Every text that is drawn, with its box in pixels."""
    axes = [axes for part in figure.subfigs for axes in part.axes]
    texts = [part._suptitle for part in figure.subfigs if part._suptitle]
    for ax in axes:
        texts += [*ax.texts, ax._left_title, ax._right_title, *(ax.get_yticklabels() if ax.axison else [])]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def test_the_picture_of_the_table(paper, tmp_path, drawn):
    save_statistics(count_ferid(paper), tmp_path / "statistics.png")
    with Image.open(tmp_path / "statistics.png") as picture:
        assert picture.format == "PNG" and picture.width == 1600 and 1000 < picture.height < 1600
    (figure,) = drawn
    table, *panels = [axes for part in figure.subfigs for axes in part.axes]
    assert [text.get_text() for text in table.texts][8:16] == [
        *("FERPlus", "8 expressions", "3k", "5", "2", "3k", "-", "61.1")
    ]
    assert [panel.get_title(loc="left") for panel in panels] == [
        *("FERPlus: 3,068", "RAF-DB: 61", "AffectNet: 107", "DFEW: 39", "FERV39k: 68", "MAFW: 42", "own: 3")
    ]
    assert [bar.get_width() for bar in panels[3].patches] == [18, 6, 5, 4, 3, 2, 1]  # DFEW, its long tail
    assert [label.get_text() for label in panels[3].get_yticklabels()][::6] == ["surprise", "fear"]
    assert [text.get_text().strip() for text in panels[0].texts][:2] == ["1,100", "350"]


def test_no_text_is_cut_off_or_covered(paper, tmp_path, drawn):
    save_statistics(count_ferid(paper), tmp_path / "statistics.png")
    width, height = drawn[0].bbox.size
    texts = texts_of(drawn[0])
    assert len(texts) > 150
    for index, (text, box) in enumerate(texts):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        assert not [other for other, other_box in texts[:index] if box.overlaps(other_box)], text


def test_same_counts_same_bytes_and_no_heavy_imports(paper, tmp_path):
    for name in ("a.png", "b.png"):
        save_statistics(count_ferid(paper), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    code = (
        "import sys, ferid_dataset.stats_pictures;"
        "sys.exit(bool({'matplotlib.pyplot', 'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- contact_sheet.png ----


def test_squares_stand_where_they_belong(tmp_path):
    """One label a line; a still is one square, and of a clip the frames 1, 3, 5 and 7 of 8 stand side by side."""
    frames = [(30 * i, 0, 200) for i in range(8)]
    rows = [
        *rows_of("dfew", {"fear": 1}, lambda name: [png(color) for color in frames]),
        *rows_of("raf_db", {"fear": 1, "surprise": 1}, lambda name: [png("red" if "fear" in name else "lime")]),
        *rows_of("mafw", {"anxiety": 1}, lambda name: [png("blue", (80, 40)), png("yellow", (80, 40))]),
    ]
    out = write_ferid(tmp_path / "ferid", category={"train": rows})
    assert save_contact_sheet(out, tmp_path / "sheet.png") == (8, 0)
    sheet = Image.open(tmp_path / "sheet.png")
    assert (sheet.format, sheet.mode) == ("PNG", "RGB")
    left, middle = MARGIN + LABELS_WIDTH, HEADER + THUMBNAIL // 2

    def square(line, x):
        return sheet.getpixel((x + THUMBNAIL // 2, middle + line * LINE))

    for line in range(3):
        assert (np.asarray(sheet)[HEADER + line * LINE :][:THUMBNAIL, MARGIN:left] < 100).any()  # the label's words
    assert square(0, left) == (0, 255, 0)  # surprise
    assert square(0, left + THUMBNAIL + GAP) == (255, 255, 255)
    assert square(1, left) == (255, 0, 0)  # fear: RAF-DB comes before DFEW
    clip = left + THUMBNAIL + GAP
    assert [square(1, clip + i * THUMBNAIL) for i in range(4)] == [frames[i] for i in (1, 3, 5, 7)]
    assert [square(2, left + i * THUMBNAIL) for i in range(2)] == [(0, 0, 255), (255, 255, 0)]  # a clip of 2 frames
    assert sheet.getpixel((left + 4, middle + 2 * LINE - 40)) == (242, 242, 242)  # the whole picture, with margins


def test_a_label_of_many_clips_goes_on_below(tmp_path):
    rows = rows_of("mafw", {"anxiety": 9}, lambda name: [png("blue")] * 8)
    out = write_ferid(tmp_path / "ferid", category={"train": rows})
    heights = {}
    for per_class in (4, 5, 9):
        assert save_contact_sheet(out, tmp_path / "sheet.png", per_class=per_class) == (4 * per_class, 0)
        with Image.open(tmp_path / "sheet.png") as sheet:
            heights[per_class] = sheet.height
            assert sheet.width <= 1940
    assert (heights[5] - heights[4], heights[9] - heights[4]) == (LINE, 2 * LINE)


def test_samples_are_drawn_evenly_by_seed(tmp_path):
    train = rows_of("affectnet", {"fear": 50}) + rows_of("raf_db", {"fear": 2}) + rows_of("dfew", {"fear": 30})
    test = rows_of("mafw", {"fear": 40, "anxiety": 3})
    out = write_ferid(tmp_path / "ferid", row_group_size=7, category={"train": train, "test": test})

    def ids(**choices):
        return [row["id"] for row in draw_samples(out, **choices)]

    sources = [name.split("/")[0] for name in ids(per_class=8, seed=0)]
    assert sources == ["raf_db"] * 2 + ["affectnet"] * 2 + ["dfew"] * 2 + ["mafw"] * 2 + ["mafw"] * 3
    assert ids(per_class=8, seed=0) == ids(per_class=8, seed=0) != ids(per_class=8, seed=1)
    assert set(ids(per_class=4, seed=3)) < set(ids(per_class=8, seed=3))  # more samples, besides the same ones
    assert sorted(ids(per_class=200, seed=0)) == sorted(row["id"] for row in train + test)


def test_only_the_pictures_that_are_shown_are_read(tmp_path, monkeypatch):
    out = write_ferid(tmp_path / "ferid", row_group_size=10, category={"train": rows_of("raf_db", {"fear": 1000})})
    read, read_row_group = [], pq.ParquetFile.read_row_group

    def keep(file, group, **choices):
        read.append(group)
        return read_row_group(file, group, **choices)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", keep)
    rows = draw_samples(out, per_class=5, seed=0)
    assert sorted({int(row["id"][-4:]) // 10 for row in rows}) == read  # each row group once


def test_a_picture_that_does_not_open_is_grey(tmp_path):
    good = tmp_path / "good.png"
    Image.new("RGB", (9, 9), "red").save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:50])
    pictures = {
        "0": {"bytes": None, "path": str(good)},
        "1": {"bytes": None, "path": str(tmp_path / "cut.png")},
        "2": {"bytes": None, "path": str(tmp_path / "gone.png")},
        "3": {"bytes": b"no picture", "path": None},
    }
    rows = rows_of("dfew", {"fear": 1}, lambda name: list(pictures.values()))
    out = write_ferid(tmp_path / "ferid", category={"train": rows})
    assert save_contact_sheet(out, tmp_path / "sheet.png") == (4, 3)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    corner = sheet[HEADER + 5, MARGIN + LABELS_WIDTH + 5 :: THUMBNAIL][:4].tolist()
    assert corner == [[255, 0, 0]] + [[217, 217, 217]] * 3
    square = sheet[HEADER : HEADER + THUMBNAIL, MARGIN + LABELS_WIDTH + THUMBNAIL :][:, :THUMBNAIL]
    assert (square < 150).any()  # and says so


def test_rows_without_pictures_are_grey(tmp_path):
    """As those that were published are."""
    out = write_ferid(tmp_path / "ferid", category={"train": rows_of("raf_db", {"fear": 3})})
    assert save_contact_sheet(out, tmp_path / "sheet.png") == (3, 3)
    words = np.asarray(Image.open(tmp_path / "sheet.png"))[HEADER:, MARGIN : MARGIN + LABELS_WIDTH]
    assert (words < 100).any()


def test_whose_faces_they_are_stands_on_the_sheet(tmp_path, monkeypatch):
    said, draw_sheet = [], stats_pictures._draw_sheet
    monkeypatch.setattr(stats_pictures, "_draw_sheet", lambda *args: said.append(args[2:]) or draw_sheet(*args))
    for number, prefix in enumerate(["drawn_", ""]):
        rows = rows_of("folder", {"fear": 1}, lambda name: [png("red")])
        rows[0]["id"] = f"folder/train/fear/{prefix}1"
        out = write_ferid(tmp_path / f"ferid{number}", category={"train": rows})
        save_contact_sheet(out, tmp_path / "sheet.png", seed=number)
    assert said == [
        ("FERID samples, seed 0", "drawn faces, no photographs"),
        ("FERID samples, seed 1", "people's faces: not to be published"),
    ]
