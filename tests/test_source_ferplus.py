"""FERPlus to SAMPLES: both shapes, label rules, pictures that come as text, every kind of bad input, the counts."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.sources.base import SAMPLES, Choices
from ferid_dataset.sources.ferplus import SOURCE, read

TRAIN, VALID, TEST = "FER2013Train", "FER2013Valid", "FER2013Test"
HAPPY, NO_FACE = "0,10,0,0,0,0,0,0,0,0", "0,0,0,0,0,0,0,0,0,10"
BOX = '"(0, 0, 48, 48)"'
HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


def generated(data, train, box=True):
    """The lists from "name votes", with their pictures; validation and test have one sample each."""
    for folder, pairs in ((TRAIN, train), (VALID, [f"fer1.png {HAPPY}"]), (TEST, [f"fer2.png {HAPPY}"])):
        (data / folder).mkdir(parents=True)
        rows = [pair.split(" ") for pair in pairs]
        boxes = f"{BOX}," if box else ""
        lines = [f"{name},{boxes}{votes}\n" for name, votes in rows]
        (data / folder / "label.csv").write_text("".join(lines))
        for name, _ in rows:
            (data / folder / name).write_bytes(b"not opened here")
    return data


def numbers(seed):
    return np.random.default_rng(seed).integers(0, 256, (48, 48), np.uint8)


def pair(root, rows):
    """fer2013.csv and fer2013new.csv from (usage, name, votes, pixels); the pixels are an array or any text."""
    root.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(map(str, pixels.ravel())) if isinstance(pixels, np.ndarray) else pixels for *_, pixels in rows]
    lines = [f"3,{text},{usage}" for text, (usage, *_) in zip(texts, rows, strict=True)]
    (root / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]) + "\n")
    lines = [f"{usage},{name},{votes}" for usage, name, votes, _ in rows]
    (root / "fer2013new.csv").write_text("\r\n".join([HEADER, *lines]) + "\r\n")
    return root


ROWS = [
    ("Training", "fer0000000.png", "4,0,0,1,3,2,0,0,0,0", numbers(0)),
    ("Training", "", NO_FACE, numbers(1)),
    ("PublicTest", "fer0000002.png", HAPPY, numbers(2)),
    ("PrivateTest", "fer0000003.png", "0,0,0,0,0,0,8,2,0,0", numbers(3)),
]


def label_of_id(reading):
    return dict(zip(reading.samples["id"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))


def split_of_id(reading):
    return dict(zip(reading.samples["id"].to_pylist(), reading.samples["split"].to_pylist(), strict=True))


@pytest.mark.parametrize("root", ["", "data"])
@pytest.mark.parametrize("box", [True, False])
def test_generated_pictures(tmp_path, root, box):
    generated(tmp_path / "data", ["fer0000000.png 4,0,0,1,3,2,0,0,0,0"], box)
    reading = read(str(tmp_path / root), Choices())
    assert reading.samples.schema == SAMPLES
    assert reading.layout == "the pictures and label.csv of generate_training_data.py; labels by argmax8"
    assert reading.rejected == [] and reading.left_out == {}
    assert split_of_id(reading) == {
        "ferplus/fer0000000": "train",
        "ferplus/fer1": "validation",
        "ferplus/fer2": "test",
    }
    assert [row for row in reading.samples.to_pylist() if row["split"] == "train"] == [
        {
            "id": "ferplus/fer0000000",
            "source": "ferplus",
            "split": "train",
            "media_type": "image",
            "paths": [str(tmp_path / "data/FER2013Train/fer0000000.png")],
            "label": "neutral",
            "options": ["neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"],
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]


@pytest.mark.parametrize(
    ("votes", "argmax8", "argmax10", "majority"),
    [
        ("0,0,0,0,0,6,4,0,0,0", "disgust", "disgust", "disgust"),
        ("0,0,5,0,0,0,5,0,0,0", "surprise", "surprise", "no expression has more than half of the votes"),
        ("0,0,4,1,1,1,1,1,1,0", "surprise", "surprise", "surprise"),  # single votes do not count
        ("1,1,1,1,1,1,1,1,1,1", "neutral", "neutral", "no expression has more than half of the votes"),
        ("0,0,0,0,0,0,0,4,5,1", "contempt", "most votes are for unknown", "most votes are for unknown"),
        (
            "0,0,0,3,0,0,0,0,4,3",
            "sadness",
            "most votes are for unknown",
            "no expression has more than half of the votes",
        ),
        ("0,0,0,0,5,0,0,0,0,5", "anger", "anger", "no expression has more than half of the votes"),
        (NO_FACE, "neutral", "most votes are for no face", "most votes are for no face"),
    ],
)
def test_label_rules(tmp_path, votes, argmax8, argmax10, majority):
    generated(tmp_path, [f"fer0.png {votes}"])
    for rule, expected in (("argmax8", argmax8), ("argmax10", argmax10), ("majority", majority)):
        reading = read(str(tmp_path), Choices(ferplus_label_rule=rule))
        labelled = expected in CLASSES["ferplus"]
        assert label_of_id(reading).get("ferplus/fer0") == (expected if labelled else None)
        assert reading.left_out == ({} if labelled else {expected: 1})
        assert reading.read == 3


def test_what_is_wrong_with_a_line_or_its_picture_is_said(tmp_path):
    (tmp_path / "outside.png").write_bytes(b"a picture")
    names = ["good", "twice", "other", "away", "gone", "fer1"]
    data = generated(tmp_path / "data", [f"{name}.png {HAPPY}" for name in names])
    (data / TRAIN / "away.png").unlink()
    (data / TRAIN / "gone.png").unlink()
    (data / TRAIN / "link.png").symlink_to(tmp_path / "outside.png")
    bad = [
        f"{name},{BOX},{HAPPY}" for name in ("twice.png", "../../outside.png", tmp_path / "outside.png", "link.png")
    ]
    bad += [f"other.png,{BOX},9,1,0,0,0,0,0,0,0,0", f"x.png,{BOX},0,x,0,0,0,0,0,0,0,0", f"{BOX},{HAPPY}", " "]
    bad += [f"y.png,{BOX},-1,11,0,0,0,0,0,0,0,0", f"z.png,{BOX},0.5,9.5,0,0,0,0,0,0,0,0", f",{BOX},{HAPPY}"]
    content = (data / TRAIN / "label.csv").read_text() + "\r\n".join(bad) + "\n"
    (data / TRAIN / "label.csv").write_bytes(
        b"\xef\xbb\xbf" + content.encode() + f"\xe9.png,{HAPPY}".encode("latin-1")
    )
    reading = read(str(tmp_path), Choices())
    assert label_of_id(reading) == dict.fromkeys(
        ["ferplus/good", "ferplus/twice", "ferplus/fer1", "ferplus/fer2"], "happiness"
    )
    assert split_of_id(reading)["ferplus/fer1"] == "validation"  # and not trained on as well
    path = data / TRAIN / "label.csv"
    said = {int(row.path.removeprefix(f"{path}:")): row.reason for row in reading.rejected}
    kinds = {
        3: "with different labels",
        4: "the file is missing",
        5: "the file is missing",
        6: f"listed twice: see {data / VALID / 'label.csv'}:1",
        7: f"listed twice: see {path}:2",
        8: "leads out of the folder",
        9: "the file is missing",
        10: "a symbolic link leads out",
        11: "with different labels",
        12: "the votes are not ten whole numbers",
        13: "has 14 fields, not 15",
        15: "the votes are not ten whole numbers",
        16: "the votes are not ten whole numbers",
        17: "the file is missing",
        18: "fields, not 15",
    }
    assert said.keys() == kinds.keys()
    assert [number for number, kind in kinds.items() if kind not in said[number]] == []
    assert reading.read == 19


def test_pictures_that_come_as_text_are_unpacked(tmp_path):
    reading = read(str(pair(tmp_path / "FERPlus", ROWS)), Choices(pictures=str(tmp_path / "pictures")))
    assert reading.rejected == []
    assert reading.left_out == {"most votes are for no face": 1}
    assert reading.read == 4
    assert label_of_id(reading) == {
        "ferplus/fer0000000": "neutral",
        "ferplus/fer0000002": "happiness",
        "ferplus/fer0000003": "fear",
    }
    assert split_of_id(reading) == {
        "ferplus/fer0000000": "train",
        "ferplus/fer0000002": "validation",
        "ferplus/fer0000003": "test",
    }
    (folder,) = (tmp_path / "pictures").iterdir()
    assert reading.layout == "fer2013.csv, unpacked to pictures, and fer2013new.csv; labels by argmax8"
    assert {path.name for path in folder.iterdir()} == {f"fer000000{n}.png" for n in (0, 2, 3)}
    for row in reading.samples.to_pylist():
        with Image.open(row["paths"][0]) as picture:
            assert picture.format == "PNG" and picture.mode == "L"
            assert np.array_equal(np.array(picture), numbers(int(row["id"][-1])))


def test_pictures_are_unpacked_once_and_again_where_they_are_gone_or_others(tmp_path):
    root, choices = pair(tmp_path / "FERPlus", ROWS), Choices(pictures=str(tmp_path / "pictures"))
    first = read(str(root), choices)
    kept, emptied, removed = (Path(path) for (path,) in sorted(first.samples["paths"].to_pylist()))
    kept.write_bytes(b"left as it is")
    emptied.write_bytes(b"")
    removed.unlink()
    assert read(str(root), choices).samples.equals(first.samples)
    assert kept.read_bytes() == b"left as it is"
    for path, number in ((emptied, 2), (removed, 3)):
        assert np.array_equal(np.array(Image.open(path)), numbers(number))

    pair(root, [(*row, numbers(9)) for *row, _ in ROWS])
    other = read(str(root), choices)
    assert all(
        np.array_equal(np.array(Image.open(path)), numbers(9)) for (path,) in other.samples["paths"].to_pylist()
    )


def test_unpacking_can_be_interrupted(tmp_path, monkeypatch):
    root, choices = pair(tmp_path / "FERPlus", ROWS), Choices(pictures=str(tmp_path / "pictures"))
    save, saved = Image.Image.save, []

    def save_one(picture, path, *args):
        if saved:
            Path(path).write_bytes(b"half a pic")
            raise KeyboardInterrupt
        saved.append(path)
        save(picture, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save_one)
        with pytest.raises(KeyboardInterrupt):
            read(str(root), choices)
    (folder,) = (tmp_path / "pictures").iterdir()
    assert [path.name for path in folder.glob("*.png")] == ["fer0000000.png"]
    reading = read(str(root), choices)
    assert len(reading.samples) == 3 and reading.rejected == []
    for row in reading.samples.to_pylist():
        assert np.array_equal(np.array(Image.open(row["paths"][0])), numbers(int(row["id"][-1])))


def test_lines_that_hold_no_picture_are_rejected(tmp_path):
    good = " ".join(map(str, numbers(4).ravel()))
    wrong = [good[2:].replace(" ", "", 1), f"{good} 1", good.replace(" ", " 256 ", 1).rsplit(" ", 1)[0]]
    wrong += [good.replace(" ", " -1 ", 1).rsplit(" ", 1)[0], good.replace(" ", " x ", 1).rsplit(" ", 1)[0], "", "1,2"]
    rows = [("Training", f"fer{n}.png", HAPPY, text) for n, text in enumerate([*wrong, good])]
    rows += [("Training", "../../evil.png", HAPPY, good), ("Holiday", "fer9.png", HAPPY, good)]
    root = pair(tmp_path / "FERPlus", [*rows, ("Training", "fer10.png", "0,10", good)])
    reading = read(str(root), Choices(pictures=str(tmp_path / "pictures")))
    assert label_of_id(reading) == {"ferplus/fer7": "happiness"}
    said = {tuple(row.path.rsplit("/", 1)[1].split(":")): row.reason for row in reading.rejected}
    no_picture = "the line holds no 48 x 48 numbers from 0 to 255"
    assert [said.pop(("fer2013.csv", str(line))) for line in range(2, 9)] == [no_picture] * 7
    assert "leads out of the folder" in said.pop(("fer2013new.csv", "10"))
    assert "tells no split" in said.pop(("fer2013new.csv", "11"))
    assert "has 4 fields, not 12" in said.pop(("fer2013new.csv", "12"))
    assert said == {}
    assert reading.read == 11
    assert not list(tmp_path.rglob("evil.png*"))


def test_the_two_lists_must_belong_together(tmp_path):
    choices = Choices(pictures=str(tmp_path / "pictures"))
    root = pair(tmp_path / "FERPlus", ROWS)
    whole = (root / "fer2013.csv").read_text()
    for other in (
        whole.replace("Training", "PublicTest", 1),
        whole.removesuffix(whole.splitlines(True)[-1]),
        whole + whole.splitlines(True)[-1],
        whole.replace("emotion,pixels,Usage\n", ""),
    ):
        (root / "fer2013.csv").write_text(other)
        with pytest.raises(
            FeridError, match=r"fer2013\.csv and .*fer2013new\.csv differ in their rows or their Usage"
        ):
            read(str(root), choices)
    assert not (tmp_path / "pictures").exists()


def test_a_clone_of_the_repository_has_lists_but_no_pictures(tmp_path):
    generated(tmp_path / "data", [f"fer0.png {HAPPY}"])
    for picture in tmp_path.rglob("*.png"):
        picture.unlink()
    with pytest.raises(FeridError, match=r"not FERPlus, or not all of it: it has no fer2013\.csv"):
        read(str(tmp_path), Choices())
    pair(tmp_path, ROWS)
    reading = read(str(tmp_path), Choices(pictures=str(tmp_path / "pictures")))
    assert reading.layout.startswith("fer2013.csv, unpacked")
    assert len(reading.samples) == 3


def test_a_wrong_root_or_half_an_archive_is_one_sentence(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of FERPlus"):
        read(str(tmp_path / "nowhere"), Choices())
    with pytest.raises(
        FeridError, match="no data/FER2013Train/label.csv and no FER2013Train/label.csv and no fer2013.csv"
    ):
        read(str(tmp_path), Choices())
    generated(tmp_path / "data", [f"fer0.png {HAPPY}"])
    (tmp_path / "data" / VALID / "label.csv").write_bytes(b"")
    with pytest.raises(FeridError, match=r"the list .*FER2013Valid/label\.csv is empty: restore it"):
        read(str(tmp_path), Choices())
    shutil.rmtree(tmp_path / "data" / VALID)
    with pytest.raises(FeridError, match=r"it has no FER2013Valid/label\.csv; give the folder"):
        read(str(tmp_path), Choices())


def test_a_pair_without_its_votes_or_without_a_folder_for_the_pictures(tmp_path):
    pair(tmp_path, ROWS)
    with pytest.raises(FeridError, match=r"fer2013\.csv holds the pictures as text: name a folder .* with `pictures`"):
        read(str(tmp_path), Choices())
    (tmp_path / "fer2013new.csv").unlink()
    with pytest.raises(FeridError, match=r"it has no fer2013new\.csv"):
        read(str(tmp_path), Choices(pictures=str(tmp_path)))


@pytest.mark.shared
def test_the_counts_of_the_published_lists(skeleton):
    root = str(skeleton / "FERPlus")
    reading = read(root, Choices())
    counts = Counter(zip(reading.samples["split"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))
    assert counts == {(split, label): n for split, labels in SOURCE.counts.items() for label, n in labels.items()}
    assert reading.rejected == [] and reading.left_out == {}
    expected = {
        "argmax8": {"train": 28_558, "validation": 3_579, "test": 3_573},
        "argmax10": {"train": 28_385, "validation": 3_555, "test": 3_545},
        "majority": {"train": 25_045, "validation": 3_191, "test": 3_137},
    }
    for rule, splits in expected.items():
        reading = read(root, Choices(ferplus_label_rule=rule))
        assert Counter(reading.samples["split"].to_pylist()) == splits
        assert reading.read == 35_710
