"""FERV39k: its layouts, labels that folders confirm, and what is wrong with lists and media, row by row."""

import os
from collections import Counter

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.sources.base import SAMPLES, Choices
from ferid_dataset.sources.ferv39k import SOURCE, read


def write_lists(root, train=b"", test=b"\n", folder="4_setups/All_scenes"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "train_All.csv").write_bytes(train)
    (root / folder / "test_All.csv").write_bytes(test)


def add_clips(root, *clips, folder="2_ClipsforFaceCrop", frames=1):
    for clip in clips:
        (root / folder / clip).mkdir(parents=True)
        for number in range(frames):
            (root / folder / clip / f"{number}.jpg").write_bytes(b"not opened here")


def ids(reading):
    return reading.samples["id"].to_pylist()


def rejected(reading):
    """What was rejected: id, file and line, reason; in the order of the lines."""
    rows = [(row.id, os.path.basename(row.path), row.reason) for row in reading.rejected]
    return sorted(rows, key=lambda row: int(row[1].partition(":")[2]))


def test_a_row(tmp_path):
    write_lists(tmp_path, b"Action/Happy/0267 Happy\n", b"Talkshow/Sad/0001 Sad\n")
    add_clips(tmp_path, "Action/Happy/0267", "Talkshow/Sad/0001", frames=12)
    reading = read(str(tmp_path), Choices(frames=4))
    assert reading.samples.schema == SAMPLES
    assert reading.samples.slice(0, 1).to_pylist() == [
        {
            "id": "ferv39k/Action/Happy/0267",
            "source": "ferv39k",
            "split": "train",
            "media_type": "video",
            "paths": [  # the centres of 4 bins of 3 frames, by number: 2 comes before 10
                str(tmp_path / f"2_ClipsforFaceCrop/Action/Happy/0267/{number}.jpg") for number in (1, 4, 7, 10)
            ],
            "label": "happiness",
            "options": ["sadness", "joy", "surprise", "neutral", "fear", "anger", "disgust"],
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]
    assert reading.samples["split"].to_pylist() == ["train", "test"]
    assert reading.layout == "all scenes, frame folders of 2_ClipsforFaceCrop"
    assert (reading.rejected, reading.left_out, reading.read) == ([], {}, 2)


def test_labels(tmp_path):
    words = ["Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear"]
    clips = [f"Action/{word}/000{number}" for number, word in enumerate(words)]
    write_lists(
        tmp_path, "".join(f"{clip} {word}\n" for clip, word in zip(clips, words, strict=True)).encode(), test=b"\n"
    )
    add_clips(tmp_path, *clips)
    samples = {row["id"]: row["label"] for row in read(str(tmp_path), Choices()).samples.to_pylist()}
    labels = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
    assert samples == {f"ferv39k/{clip}": label for clip, label in zip(clips, labels, strict=True)}


def test_lists_alone_and_clips_in_a_folder_twice(tmp_path):
    write_lists(tmp_path, b"Action/Happy/0267 Happy\n", folder="All_scenes")
    add_clips(tmp_path, "Action/Happy/0267", folder="2_ClipsforFaceCrop/2_ClipsforFaceCrop")
    reading = read(str(tmp_path), Choices())
    assert ids(reading) == ["ferv39k/Action/Happy/0267"]
    assert reading.layout == "all scenes, frame folders of 2_ClipsforFaceCrop/2_ClipsforFaceCrop"


@pytest.mark.parametrize(
    "content",
    [b"A/Sad/1 Sad\r\nB/Sad/2 Sad\r\n", b"\xef\xbb\xbfA/Sad/1 Sad\nB/Sad/2 Sad", b"A/Sad/1 Sad\n\n\nB/Sad/2 Sad\n\n"],
    ids=["windows", "byte order mark", "blank lines"],
)
def test_lists_as_users_have_them(tmp_path, content):
    write_lists(tmp_path, content)
    add_clips(tmp_path, "A/Sad/1", "B/Sad/2")
    reading = read(str(tmp_path), Choices())
    assert (ids(reading), reading.rejected) == (["ferv39k/A/Sad/1", "ferv39k/B/Sad/2"], [])


def test_bad_rows_are_rejected_with_their_line(tmp_path):
    rows = [
        b"A/Sad/1 Sad",
        b"A/Sad/2 Happy",
        b"A/Sad/3",
        b"A/Sad/4 Sad Sad",
        b"A/Joy/5 Joy",
        b"A/Sad/6 2",
        b"A/\xff/7 Sad",
        b"\xff",
        b"../Sad/9 Sad",
        b"/etc/Sad/10 Sad",
        b"A/../Sad/11 Sad",
        b"A/Sad/12 Sad",
    ]
    write_lists(tmp_path, b"\n".join(rows))
    add_clips(tmp_path, "A/Sad/1", "A/Sad/2", "A/Joy/5", "A/Sad/6", "Sad/11")
    add_clips(tmp_path, "9", folder="Sad")
    reading = read(str(tmp_path), Choices())
    assert ids(reading) == ["ferv39k/A/Sad/1"]
    known = "is not of Happy, Sad, Neutral, Angry, Surprise, Disgust, Fear"
    leads_out = "the name leads out of the folder of the media"
    assert rejected(reading) == [
        ("ferv39k/A/Sad/2", "train_All.csv:2", "its folder is not one of its label: Happy"),
        ("ferv39k", "train_All.csv:3", "the line has 1 fields, not 2: 'A/Sad/3'"),
        ("ferv39k", "train_All.csv:4", "the line has 3 fields, not 2: 'A/Sad/4 Sad Sad'"),
        ("ferv39k/A/Joy/5", "train_All.csv:5", f"unknown label: 'Joy' {known}"),
        ("ferv39k/A/Sad/6", "train_All.csv:6", "its folder is not one of its label: 2"),
        ("ferv39k", "train_All.csv:7", "the line is not UTF-8"),
        ("ferv39k", "train_All.csv:8", "the line has 1 fields, not 2: '\ufffd'"),
        ("ferv39k/../Sad/9", "train_All.csv:9", leads_out),
        ("ferv39k//etc/Sad/10", "train_All.csv:10", "its folder is not one of its label: Sad"),
        ("ferv39k/A/../Sad/11", "train_All.csv:11", "its folder is not one of its label: Sad"),
        ("ferv39k/A/Sad/12", "train_All.csv:12", "the folder is missing"),
    ]
    assert reading.read == len(rows)


def test_a_clip_is_not_both_trained_on_and_tested(tmp_path):
    write_lists(tmp_path, train=b"A/Sad/1 Sad\nA/Sad/2 Sad\nA/Sad/2 Sad\n", test=b"A/Sad/1 Sad\n")
    add_clips(tmp_path, "A/Sad/1", "A/Sad/2")
    reading = read(str(tmp_path), Choices())
    splits = dict(zip(ids(reading), reading.samples["split"].to_pylist(), strict=True))
    assert splits == {"ferv39k/A/Sad/1": "test", "ferv39k/A/Sad/2": "train"}
    root = tmp_path / "4_setups/All_scenes"
    assert [(row.path, row.reason) for row in reading.rejected] == [
        (f"{root}/train_All.csv:1", f"listed twice: see {root}/test_All.csv:1"),
        (f"{root}/train_All.csv:3", f"listed twice: see {root}/train_All.csv:2"),
    ]
    assert reading.read == 4


def test_clips_that_cannot_be_used(tmp_path):
    write_lists(tmp_path, b"".join(b"A/Sad/%d Sad\n" % number for number in range(1, 5)) + b"B/Sad/5 Sad\n")
    media = tmp_path / "2_ClipsforFaceCrop"
    add_clips(tmp_path, "A/Sad/1")
    add_clips(tmp_path, "A/Sad/2", "B/Sad/5", folder="elsewhere")
    (media / "A/Sad/2").symlink_to(tmp_path / "elsewhere/A/Sad/2")
    (media / "A/Sad/3").mkdir()
    (media / "A/Sad/4").write_bytes(b"not a folder")
    (media / "B").symlink_to(tmp_path / "elsewhere/B")
    reading = read(str(tmp_path), Choices())
    assert ids(reading) == ["ferv39k/A/Sad/1"]
    assert rejected(reading) == [
        ("ferv39k/A/Sad/2", "train_All.csv:2", "a symbolic link leads out of the folder of the media"),
        ("ferv39k/A/Sad/3", "train_All.csv:3", "the folder of the clip holds no picture"),
        ("ferv39k/A/Sad/4", "train_All.csv:4", "it is no folder"),
        ("ferv39k/B/Sad/5", "train_All.csv:5", "a symbolic link leads out of the folder of the media"),
    ]
    assert reading.read == 5


def test_a_media_folder_that_is_a_link(tmp_path):
    write_lists(tmp_path, b"A/Sad/1 Sad\n")
    add_clips(tmp_path / "disk", "A/Sad/1")
    (tmp_path / "2_ClipsforFaceCrop").symlink_to(tmp_path / "disk/2_ClipsforFaceCrop")
    assert ids(read(str(tmp_path), Choices())) == ["ferv39k/A/Sad/1"]


def test_half_unpacked(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of FERV39k"):
        read(str(tmp_path / "nowhere"), Choices())
    with pytest.raises(
        FeridError, match="is not FERV39k, or not all of it: it has no 4_setups/All_scenes/train_All.csv"
    ):
        read(str(tmp_path), Choices())
    write_lists(tmp_path, b"A/Sad/1 Sad\n", test=b"")
    with pytest.raises(FeridError, match="it has no .* and no 2_ClipsforFaceCrop; .*unpack the rest"):
        read(str(tmp_path), Choices())
    add_clips(tmp_path, "A/Sad/1")
    with pytest.raises(FeridError, match="the list .*/test_All.csv is empty: restore it from the archive"):
        read(str(tmp_path), Choices())
    (tmp_path / "4_setups/All_scenes/test_All.csv").unlink()
    with pytest.raises(FeridError, match="it has no 4_setups/All_scenes/test_All.csv and no All_scenes/test_All.csv"):
        read(str(tmp_path), Choices())


@pytest.mark.shared
def test_the_real_lists(skeleton):
    reading = read(str(skeleton / "FERV39k"), Choices())
    assert (reading.rejected, reading.left_out, reading.read) == ([], {}, 38_935)
    found = Counter(zip(reading.samples["split"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))
    counts = {split: [found[split, label] for label in CLASSES["ferv39k"]] for split in ("train", "test")}
    assert counts == {
        "train": [5854, 5523, 7790, 5906, 2502, 1833, 1680],
        "test": [1473, 1393, 1958, 1487, 638, 467, 431],
    }
    assert {split: list(labels.values()) for split, labels in SOURCE.counts.items()} == counts
    assert {split: sum(labels) for split, labels in counts.items()} == {"train": 31_088, "test": 7_847}
