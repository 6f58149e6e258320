"""DFEW: both shapes of its clips, all folds, and what is wrong with lists and media, row by row."""

import os
from collections import Counter

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.sources.base import SAMPLES, Choices
from ferid_dataset.sources.dfew import SOURCE, read

HEADER = b"video_name,label\n"


def write_lists(root, train=b"", test=b"", fold=1, kind="single-labeled"):
    for split, rows in (("train", train), ("test", test)):
        file = root / f"EmoLabel_DataSplit/{split}({kind})/set_{fold}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(HEADER + rows)


def add_frames(root, *clips, folder="Clip/clip_224x224", frames=1):
    for clip in clips:
        (root / folder / clip).mkdir(parents=True)
        for number in range(frames):
            (root / folder / clip / f"{int(clip)}_{number}.jpg").write_bytes(b"not opened here")


def add_videos(root, *names):
    (root / "Clip/original").mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / "Clip/original" / name).write_bytes(b"not opened here")


def summary(reading):
    """(id, split, label) of the samples, sorted, and where and why others were rejected."""
    samples = reading.samples.select(["id", "split", "label"]).to_pylist()
    return (
        sorted(tuple(row.values()) for row in samples),
        [(row.id, *row.path.rsplit("/", 2)[1:], row.reason) for row in reading.rejected],
    )


def test_a_row(tmp_path):
    write_lists(tmp_path, b"2522,5\n")
    add_frames(tmp_path, "02522", frames=20)
    reading = read(str(tmp_path), Choices())
    assert reading.samples.schema == SAMPLES
    assert reading.samples.to_pylist() == [
        {
            "id": "dfew/02522",
            "source": "dfew",
            "split": "train",
            "media_type": "video",
            "paths": [  # the centres of 8 bins of 2.5 frames, by number: 2 comes before 10
                str(tmp_path / f"Clip/clip_224x224/02522/2522_{number}.jpg") for number in (1, 3, 6, 8, 11, 13, 16, 18)
            ],
            "label": "surprise",
            "options": ["sadness", "joy", "surprise", "neutral", "fear", "anger", "disgust"],
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]
    assert (reading.rejected, reading.left_out, reading.read) == ([], {}, 1)


def test_labels(tmp_path):
    write_lists(tmp_path, b"".join(b"%d,%d\n" % (number, number) for number in range(1, 8)))
    add_frames(tmp_path, *(f"0000{number}" for number in range(1, 8)))
    samples, _ = summary(read(str(tmp_path), Choices()))
    labels = ["happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"]
    assert samples == [(f"dfew/0000{number}", "train", label) for number, label in enumerate(labels, start=1)]


@pytest.mark.parametrize("folder", ["Clip/clip_224x224", "Clip/clip_224x224_16f"])
def test_frame_folders(tmp_path, folder):
    write_lists(tmp_path, b"7,1\n")
    add_frames(tmp_path, "00007", folder=folder, frames=3)
    add_videos(tmp_path, "7.mp4")  # not needed
    reading = read(str(tmp_path), Choices(frames=2))
    assert reading.layout == f"fold 1, frame folders of {folder}"
    names = ("7_0.jpg", "7_2.jpg")
    assert reading.samples["paths"].to_pylist() == [[str(tmp_path / folder / "00007" / name) for name in names]]


def test_the_original_clips_have_the_same_ids(tmp_path):
    write_lists(tmp_path, b"7,1\n", b"12345,2\n")
    add_videos(tmp_path, "7.mp4", "12345.mp4")
    reading = read(str(tmp_path), Choices(frames=2))
    assert reading.layout == "fold 1, video files of Clip/original"
    assert reading.samples["id"].to_pylist() == ["dfew/00007", "dfew/12345"]
    assert reading.samples["paths"].to_pylist() == [
        [f"frame://{frame}of2::{tmp_path}/Clip/original/{name}" for frame in (0, 1)] for name in ("7.mp4", "12345.mp4")
    ]


def test_folds(tmp_path):
    for fold in range(1, 6):
        write_lists(tmp_path, b"%d,1\n" % fold, b"%d,2\n" % (fold + 10), fold=fold)
        add_frames(tmp_path, f"0000{fold}", f"0001{fold}")
    for fold in range(1, 6):
        reading = read(str(tmp_path), Choices(fold=fold))
        expected = [(f"dfew/0000{fold}", "train", "happiness"), (f"dfew/0001{fold}", "test", "sadness")]
        assert summary(reading) == (expected, [])
        assert reading.layout.startswith(f"fold {fold},")


def test_the_spelling_of_the_readme(tmp_path):
    write_lists(tmp_path, b"1,1\n", b"2,1\n", kind="single_labeled")
    add_frames(tmp_path, "00001", "00002")
    assert len(read(str(tmp_path), Choices()).samples) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"video_name,label\r\n1,2\r\n2,3\r\n",
        b"\xef\xbb\xbfvideo_name,label\n1,2\n2,3",
        b"1,2\n2,3\n",
        b"video_name,label\n00001,2\n 2 , 3 \n\n",
    ],
    ids=["windows", "byte order mark", "no header", "padded"],
)
def test_lists_as_users_have_them(tmp_path, content):
    write_lists(tmp_path)
    (tmp_path / "EmoLabel_DataSplit/train(single-labeled)/set_1.csv").write_bytes(content)
    add_frames(tmp_path, "00001", "00002")
    assert summary(read(str(tmp_path), Choices())) == (
        [("dfew/00001", "train", "sadness"), ("dfew/00002", "train", "neutral")],
        [],
    )


def test_bad_rows_are_rejected_with_their_line(tmp_path):
    rows = [b"1,1", b"2", b"3,1,1", b"4,0", b"5,8", b"6,happy", b"\xff,1", b",1", b"../../x,1", b"/etc/passwd,1"]
    write_lists(tmp_path, b"\n".join(rows))
    add_frames(tmp_path, *(f"0000{number}" for number in range(1, 7)))
    add_frames(tmp_path, "1", folder="x")
    reading = read(str(tmp_path), Choices())
    samples, rejected = summary(reading)
    assert samples == [("dfew/00001", "train", "happiness")]
    known = "is not of 1, 2, 3, 4, 5, 6, 7"
    folder = "train(single-labeled)"
    assert sorted(rejected, key=lambda row: int(row[2].partition(":")[2])) == [
        ("dfew", folder, "set_1.csv:3", "the line has 1 fields, not 2: '2'"),
        ("dfew", folder, "set_1.csv:4", "the line has 3 fields, not 2: '3,1,1'"),
        ("dfew/00004", folder, "set_1.csv:5", f"unknown label: '0' {known}"),
        ("dfew/00005", folder, "set_1.csv:6", f"unknown label: '8' {known}"),
        ("dfew/00006", folder, "set_1.csv:7", f"unknown label: 'happy' {known}"),
        ("dfew", folder, "set_1.csv:8", "the line is not UTF-8"),
        ("dfew/00000", folder, "set_1.csv:9", "the folder is missing"),
        ("dfew/../../x", folder, "set_1.csv:10", "the name leads out of the folder of the media"),
        ("dfew//etc/passwd", folder, "set_1.csv:11", "the name leads out of the folder of the media"),
    ]
    assert reading.read == len(rows)


def test_a_clip_is_not_both_trained_on_and_tested(tmp_path):
    write_lists(tmp_path, train=b"1,1\n2,1\n3,1\n3,1\n", test=b"00001,1\n2,5\n")
    add_frames(tmp_path, "00001", "00002", "00003")
    reading = read(str(tmp_path), Choices())
    samples, rejected = summary(reading)
    assert samples == [("dfew/00001", "test", "happiness"), ("dfew/00003", "train", "happiness")]
    root = tmp_path / "EmoLabel_DataSplit"
    train, test = root / "train(single-labeled)/set_1.csv", root / "test(single-labeled)/set_1.csv"
    assert [(row.id, row.path, row.reason) for row in reading.rejected] == [
        ("dfew/00001", f"{train}:2", f"listed twice: see {test}:2"),
        ("dfew/00002", f"{train}:3", "listed 2 times with different labels"),
        ("dfew/00003", f"{train}:5", f"listed twice: see {train}:4"),
        ("dfew/00002", f"{test}:3", "listed 2 times with different labels"),
    ]
    assert reading.read == 6


def test_frame_folders_that_cannot_be_used(tmp_path):
    write_lists(tmp_path, b"".join(b"%d,1\n" % number for number in range(1, 8)))
    media = tmp_path / "Clip/clip_224x224"
    add_frames(tmp_path, "00001", "00002", "00007")
    add_frames(tmp_path, "00001", folder="elsewhere")
    (media / "00002/notes.txt").write_bytes(b"no picture")  # beside one
    (media / "00003").mkdir()
    (media / "00004").mkdir()
    (media / "00004/.hidden.jpg").write_bytes(b"")
    (media / "00005").write_bytes(b"not a folder")
    (media / "00006").symlink_to(tmp_path / "elsewhere/00001")
    (media / "00007").rename(media / "7")  # the number is not padded
    reading = read(str(tmp_path), Choices())
    samples, rejected = summary(reading)
    assert [row[0] for row in samples] == ["dfew/00001", "dfew/00002"]
    assert [(row[0], row[3]) for row in rejected] == [
        ("dfew/00003", "the folder of the clip holds no picture"),
        ("dfew/00004", "the folder of the clip holds no picture"),
        ("dfew/00005", "it is no folder"),
        ("dfew/00006", "a symbolic link leads out of the folder of the media"),
        ("dfew/00007", "the folder is missing"),
    ]
    assert reading.read == 7


def test_files_that_are_not_needed_do_no_harm(tmp_path):
    write_lists(tmp_path, b"1,1\n")
    add_frames(tmp_path, "00001", frames=3)
    clips = tmp_path / "Clip/clip_224x224"
    (clips / "00001/1_2.jpg").write_bytes(b"")
    for folder in (clips, clips / "00001"):
        (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"")  # a name that is not UTF-8
        (folder / "Thumbs.db").write_bytes(b"")
    reading = read(str(tmp_path), Choices(frames=1))
    assert reading.samples["paths"].to_pylist() == [[str(clips / "00001/1_1.jpg")]]


def test_clips_that_cannot_be_used(tmp_path):
    write_lists(tmp_path, b"".join(b"%d,1\n" % number for number in range(1, 6)))
    add_videos(tmp_path, "1.mp4", "2.mp4")
    media = tmp_path / "Clip/original"
    (media / "2.mp4").unlink()
    (media / "3.mp4").mkdir()
    (tmp_path / "elsewhere.mp4").write_bytes(b"not opened here")
    (media / "4.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    samples, rejected = summary(read(str(tmp_path), Choices()))
    assert [row[0] for row in samples] == ["dfew/00001"]
    assert [(row[0], row[3]) for row in rejected] == [
        ("dfew/00002", "the file is missing"),
        ("dfew/00003", "it is no file"),
        ("dfew/00004", "a symbolic link leads out of the folder of the media"),
        ("dfew/00005", "the file is missing"),
    ]


def test_half_unpacked(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of DFEW"):
        read(str(tmp_path / "nowhere"), Choices())
    with pytest.raises(
        FeridError, match=r"is not DFEW, or not all of it: it has no EmoLabel_DataSplit/train\(single-"
    ):
        read(str(tmp_path), Choices())
    write_lists(tmp_path, b"1,1\n")
    with pytest.raises(FeridError, match="it has no Clip/clip_224x224 and no .*_16f and no Clip/original; .*unpack"):
        read(str(tmp_path), Choices())
    add_frames(tmp_path, "00001")
    with pytest.raises(FeridError, match=r"it has no EmoLabel_DataSplit/train\(single-labeled\)/set_5.csv"):
        read(str(tmp_path), Choices(fold=5))
    (tmp_path / "EmoLabel_DataSplit/test(single-labeled)/set_1.csv").write_bytes(b"")
    with pytest.raises(FeridError, match=r"the list .*test\(single-labeled\)/set_1.csv is empty: restore it"):
        read(str(tmp_path), Choices())


@pytest.mark.shared
def test_the_real_lists(skeleton):
    sizes = {1: (9356, 2341), 2: (9356, 2341), 3: (9357, 2340), 4: (9358, 2339), 5: (9361, 2336)}
    tested = []
    for fold, (train, test) in sizes.items():
        reading = read(str(skeleton / "DFEW"), Choices(fold=fold))
        splits = Counter(reading.samples["split"].to_pylist())
        assert (splits["train"], splits["test"], reading.rejected) == (train, test, [])
        assert reading.read == 11_697
        tested += [row["id"] for row in reading.samples.to_pylist() if row["split"] == "test"]
        if fold == 1:
            found = Counter(
                zip(reading.samples["split"].to_pylist(), reading.samples["label"].to_pylist(), strict=True)
            )
            expected = {split: {label: found[split, label] for label in CLASSES["dfew"]} for split in SOURCE.counts}
            assert expected == SOURCE.counts
            assert expected["test"] == dict(zip(CLASSES["dfew"], (489, 379, 534, 435, 294, 29, 181), strict=True))
    assert len(tested) == len(set(tested)) == 11_697  # each clip is tested once in the five folds
