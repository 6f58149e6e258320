"""AffectNet's two releases to SAMPLES: 7 and 8 classes, every kind of bad input, and the official counts."""

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.sources.affectnet import SOURCE, parse_array, read
from ferid_dataset.sources.base import SAMPLES, Choices

HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
LISTS, IMAGES = "Manually_Annotated_file_lists", "Manually_Annotated/Manually_Annotated_Images"


def line(name, code):
    return f"{name},10,20,200,200,{';'.join(['50.0;60.0'] * 68)},{code},0.1,-0.1"


def fill(root, *names, content=b"not opened here"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def with_lists(root, training, validation=("3/v.jpg 1",)):
    """Both lists from "name code" pairs; the picture of every name that is one."""
    (root / LISTS).mkdir(parents=True)
    for file, pairs, header in (("training", training, [HEADER]), ("validation", validation, [])):
        rows = [pair.rsplit(" ", 1) for pair in pairs]
        (root / LISTS / f"{file}.csv").write_text("\n".join([*header, *(line(*row) for row in rows)]) + "\n")
        fill(root / IMAGES, *(name for name, _ in rows))
    return root


def save(root, folder, number, value, picture=True):
    (root / folder / "annotations").mkdir(parents=True, exist_ok=True)
    (root / folder / "images").mkdir(parents=True, exist_ok=True)
    np.save(root / folder / f"annotations/{number}_exp.npy", np.array(value))
    if picture:
        fill(root / folder, f"images/{number}.jpg")


def by_id(reading):
    return dict(zip(reading.samples["id"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))


def test_the_release_with_lists(tmp_path):
    pairs = [f"{code}/{code}.jpg {code}" for code in range(11)]
    reading = read(str(with_lists(tmp_path, pairs, ["689/a.b.JPG 1", "2/x.png 9"])), Choices())
    assert reading.samples.schema == SAMPLES
    assert reading.layout == "the release with lists, training.csv and validation.csv"
    assert reading.rejected == []
    assert reading.left_out == {
        "labelled as none": 1,
        "labelled as uncertain": 2,
        "labelled as no face": 1,
    }
    assert reading.read == 13
    train = {f"affectnet/{code}/{code}": label for code, label in enumerate(CLASSES["affectnet"])}
    assert by_id(reading) == train | {"affectnet/689/a.b": "happiness"}
    assert [row for row in reading.samples.to_pylist() if row["id"] == "affectnet/689/a.b"] == [
        {
            "id": "affectnet/689/a.b",
            "source": "affectnet",
            "split": "test",
            "media_type": "image",
            "paths": [str(tmp_path / IMAGES / "689/a.b.JPG")],
            "label": "happiness",
            "options": ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"],
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]


def test_seven_classes_leave_contempt_out(tmp_path):
    root = with_lists(tmp_path, ["1/a.jpg 6", "1/b.jpg 7", "1/c.jpg 8"])
    reading = read(str(root), Choices(affectnet_classes=7))
    assert by_id(reading) == {"affectnet/1/a": "anger", "affectnet/3/v": "happiness"}
    assert reading.left_out == {"labelled as none": 1, "contempt, which is not of the 7 classes": 1}
    assert reading.samples["options"][0].as_py() == list(CLASSES["affectnet"][:7])


@pytest.mark.parametrize("headers", [("", ""), (HEADER, HEADER), ("\ufeff" + HEADER, ""), ("", "\ufeff" + HEADER)])
def test_either_list_may_have_a_header(tmp_path, headers):
    with_lists(tmp_path, ["1/a.jpg 0"], ["3/v.jpg 5"])
    for name, header, row in zip(("training", "validation"), headers, ("1/a.jpg 0", "3/v.jpg 5"), strict=True):
        text = "\r\n".join([*filter(None, [header]), line(*row.split())])
        (tmp_path / LISTS / f"{name}.csv").write_text(text, encoding="utf-8")
    reading = read(str(tmp_path), Choices())
    assert by_id(reading) == {"affectnet/1/a": "neutral", "affectnet/3/v": "disgust"}
    assert reading.rejected == []


def test_what_is_wrong_with_a_line_or_its_picture_is_said(tmp_path):
    outside = tmp_path / "outside.jpg"
    fill(tmp_path, "outside.jpg")
    root = with_lists(tmp_path / "AffectNet", ["1/good.jpg 4", "1/twice.jpg 1", "2/other.jpg 1", "1/gone.jpg 1"])
    images = root / IMAGES
    (images / "1/gone.jpg").unlink()
    (images / "1/link.jpg").symlink_to(outside)
    (images / "out").symlink_to(tmp_path, target_is_directory=True)
    with open(root / LISTS / "training.csv", "ab") as stream:
        bad = [line("1/twice.jpg", 1), line("2/other.jpg", 2), line("1/eleven.jpg", 11), line("1/word.jpg", "joy")]
        bad += [line("../../../outside.jpg", 1), line(outside, 1), line("1/link.jpg", 1), line("out/outside.jpg", 1)]
        bad += [line("1/missing.jpg", 1), line("1/none.jpg", ""), "", "1/short.jpg,10,10", line("1/long.jpg", "1,1")]
        stream.write("\r\n".join(bad).encode() + b"\n" + line("1/caf\xe9.jpg", 1).encode("latin-1") + b"\n")
    reading = read(str(root), Choices())
    assert by_id(reading) == {
        "affectnet/1/good": "fear",
        "affectnet/1/twice": "happiness",
        "affectnet/3/v": "happiness",
    }
    path = root / LISTS / "training.csv"
    said = {int(row.path.removeprefix(f"{path}:")): row.reason for row in reading.rejected}
    kinds = {
        4: "with different labels",
        5: "the file is missing",
        6: f"listed twice: see {path}:3",
        7: "with different labels",
        8: "'11' is not of 0, 1, 2, 3, 4, 5, 6, 7",
        9: "'joy' is not of 0, 1, 2, 3, 4, 5, 6, 7",
        10: "leads out of the folder",
        11: "leads out of the folder",
        12: "a symbolic link leads out",
        13: "a symbolic link leads out",
        14: "the file is missing",
        15: "'' is not of 0, 1, 2, 3, 4, 5, 6, 7",
        17: "has 3 fields, not 9",
        18: "has 10 fields, not 9",
        19: "not UTF-8",
    }
    assert said.keys() == kinds.keys()
    assert [number for number, kind in kinds.items() if kind not in said[number]] == []
    assert reading.read == 18  # all lines but the header and the blank one, and the one of validation.csv


def test_a_picture_in_both_splits_is_only_tested_on(tmp_path):
    reading = read(str(with_lists(tmp_path, ["3/v.jpg 1", "1/a.jpg 0"])), Choices())
    splits = dict(zip(reading.samples["id"].to_pylist(), reading.samples["split"].to_pylist(), strict=True))
    assert splits == {"affectnet/1/a": "train", "affectnet/3/v": "test"}
    assert [row.path for row in reading.rejected] == [str(tmp_path / LISTS / "training.csv:2")]


def test_the_release_with_array_files(tmp_path):
    values = ["0", 1, np.int32(2), np.uint8(3), ["4"], [5], "10", np.int64(10), 7]
    for number, value in enumerate(values):
        save(tmp_path, "train_set", number, value)
    save(tmp_path, "val_set", 0, "6")
    np.save(tmp_path / "train_set/annotations/0_val.npy", np.array("-0.3"))
    reading = read(str(tmp_path), Choices())
    assert reading.layout == "the release with a file for each label"
    assert reading.rejected == []
    assert reading.left_out == {"labelled as no face": 2}
    labels = [*CLASSES["affectnet"][:6], "contempt"]
    train = {f"affectnet/train_set/{n}": label for n, label in zip((0, 1, 2, 3, 4, 5, 8), labels, strict=True)}
    assert by_id(reading) == train | {"affectnet/val_set/0": "anger"}
    assert Counter(reading.samples["split"].to_pylist()) == {"train": 7, "test": 1}
    assert [str(tmp_path / "train_set/images/0.jpg")] in reading.samples["paths"].to_pylist()


def test_what_is_wrong_with_an_array_file_or_its_picture_is_said(tmp_path):
    save(tmp_path, "val_set", 1, 1)
    wrong = {"pair": ["1", "2"], "real": 1.0, "eleven": 11, "minus": -1, "word": "joy", "object": None, "blank": ""}
    for name, value in ({"good": "3", "nopicture": 1, "cut": 1, "cuttext": "1", "nothing": 1} | wrong).items():
        save(tmp_path, "train_set", name, value, picture=name != "nopicture")
    folder = tmp_path / "train_set/annotations"
    for name in ("cut", "cuttext"):
        (folder / f"{name}_exp.npy").write_bytes((folder / f"{name}_exp.npy").read_bytes()[:-2])
    (folder / "nothing_exp.npy").write_bytes(b"")
    fill(tmp_path, "train_set/images/nolabel.jpg")
    fill(tmp_path / "train_set/images", os.fsdecode(b"\xff.jpg"))

    reading = read(str(tmp_path), Choices())
    assert by_id(reading) == {"affectnet/train_set/good": "surprise", "affectnet/val_set/1": "happiness"}
    said = {row.id.rsplit("/", 1)[1]: (os.path.basename(row.path), row.reason) for row in reading.rejected}
    no_array = "the label is no array file of one string or integer"
    for name in ("pair", "real", "object", "cut", "cuttext", "nothing"):
        assert said.pop(name) == (f"{name}_exp.npy", no_array)
    for name, value in (("eleven", "11"), ("minus", "-1"), ("word", "joy"), ("blank", "")):
        file, reason = said.pop(name)
        assert file == f"{name}_exp.npy" and f"'{value}' is not of 0, 1, 2, 3, 4, 5, 6, 7" in reason
    assert said.pop("nopicture") == ("nopicture_exp.npy", "the file is missing")
    assert said.pop("nolabel") == ("nolabel_exp.npy", "the file of its label is missing")
    assert len(said) == 1  # the name that is not UTF-8
    assert reading.read == 15


@given(st.sampled_from(["7", 7, np.uint8(7)]), st.integers(0, 140), st.binary(max_size=3), st.booleans())
def test_a_damaged_array_file_is_read_right_or_not_at_all(tmp_path_factory, value, at, damage, cut):
    file = tmp_path_factory.getbasetemp() / "damaged.npy"
    np.save(file, np.array(value))
    content = file.read_bytes()
    content = content[:at] + damage + (b"" if cut else content[at + len(damage) :])
    try:
        label = parse_array(content)
    except ValueError as error:
        assert str(error) == "the label is no array file of one string or integer"
        return
    if label.isdecimal() and label != "7":  # what is no number is not of the label set
        file.write_bytes(content)
        assert label == str(np.load(file).item())


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (["notes.txt"], f"no {LISTS}/training.csv and no train_set/annotations"),
        ([f"{LISTS}/training.csv", f"{IMAGES}/1/a.jpg"], f"no {LISTS}/validation.csv"),
        ([f"{LISTS}/validation.csv", f"{IMAGES}/1/a.jpg"], f"no {LISTS}/training.csv"),
        ([f"{LISTS}/training.csv", f"{LISTS}/validation.csv"], f"no {IMAGES}"),
        (["train_set/annotations/0_exp.npy", "train_set/images/0.jpg"], "no val_set/annotations"),
        (["train_set/annotations/0_exp.npy"], "no train_set/images"),
    ],
)
def test_a_wrong_root_or_half_an_archive_is_one_sentence(tmp_path, files, missing):
    fill(tmp_path, *files, content=line("1/a.jpg", 1).encode())
    with pytest.raises(
        FeridError, match=f"not AffectNet, or not all of it: it has {missing}.*unpack the rest"
    ) as error:
        read(str(tmp_path), Choices())
    assert "\n" not in str(error.value)


def test_an_empty_list_and_no_folder(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of AffectNet"):
        read(str(tmp_path / "nowhere"), Choices())
    with_lists(tmp_path, ["1/a.jpg 1"])
    (tmp_path / LISTS / "validation.csv").write_bytes(b"")
    with pytest.raises(FeridError, match=r"the list .*validation\.csv is empty: restore it"):
        read(str(tmp_path), Choices())


@pytest.mark.shared
def test_the_official_counts(skeleton):
    reading = read(str(skeleton / "AffectNet"), Choices())
    counts = Counter(zip(reading.samples["split"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))
    assert counts == {(split, label): n for split, labels in SOURCE.counts.items() for label, n in labels.items()}
    assert Counter(reading.samples["split"].to_pylist()) == {"train": 287_651, "test": 4_000}
    assert counts["train", "happiness"] == 134_415 and counts["train", "contempt"] == 3_750
    assert reading.rejected == []
    assert reading.left_out == {"labelled as none": 2, "labelled as uncertain": 2, "labelled as no face": 2}
    seven = read(str(skeleton / "AffectNet"), Choices(affectnet_classes=7))
    assert Counter(seven.samples["split"].to_pylist()) == {"train": 283_901, "test": 3_500}
