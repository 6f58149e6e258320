"""MAFW: single and compound labels, both shapes of its clips, captions of any bytes, and what is wrong row by row."""

import os
from collections import Counter

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.sources.base import SAMPLES, Choices
from ferid_dataset.sources.mafw import SOURCE, read, read_captions

SINGLE = [
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
]


def write_lists(root, train=b"", test=b"\n", kind="single/no_caption", fold=1):
    folder = root / f"Train & Test Set/{kind}/set_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_bytes(train)
    (folder / "test.txt").write_bytes(test)


def add_clips(root, *clips):
    (root / "data/clips").mkdir(parents=True, exist_ok=True)
    for clip in clips:
        (root / f"data/clips/{clip}.mp4").write_bytes(b"not opened here")


def add_frames(root, *clips, frames=1):
    for clip in clips:
        (root / f"data/frames/{clip}").mkdir(parents=True)
        for number in range(frames):
            (root / f"data/frames/{clip}/{number:05d}.jpg").write_bytes(b"not opened here")


def labels(reading):
    return dict(zip(reading.samples["id"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))


def rejected(reading):
    """What was rejected: id, file and line, reason; in the order of the lines."""
    rows = [(row.id, os.path.basename(row.path), row.reason) for row in reading.rejected]
    return sorted(rows, key=lambda row: int(row[1].partition(":")[2]))


def test_a_row(tmp_path):
    write_lists(tmp_path, b"00025.mp4 anger\n", b"00030.mp4 contempt\n")
    add_clips(tmp_path, "00025", "00030")
    reading = read(str(tmp_path), Choices(frames=2))
    assert reading.samples.schema == SAMPLES
    assert reading.samples.slice(0, 1).to_pylist() == [
        {
            "id": "mafw/00025",
            "source": "mafw",
            "split": "train",
            "media_type": "video",
            "paths": [f"frame://{frame}of2::{tmp_path}/data/clips/00025.mp4" for frame in (0, 1)],
            "label": "anger",
            "options": SINGLE,
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]
    assert reading.samples["split"].to_pylist() == ["train", "test"]
    assert reading.layout == "single labels of fold 1, video files of data/clips"
    assert (reading.rejected, reading.left_out, reading.read) == ([], {}, 2)


def test_labels(tmp_path):
    write_lists(tmp_path, "".join(f"{number:05d}.mp4 {name}\n" for number, name in enumerate(SINGLE)).encode())
    add_clips(tmp_path, *(f"{number:05d}" for number in range(11)))
    assert labels(read(str(tmp_path), Choices())) == {f"mafw/{n:05d}": name for n, name in enumerate(SINGLE)}


def test_frame_folders_are_preferred(tmp_path):
    write_lists(tmp_path, b"00025.mp4 anger\n")
    add_clips(tmp_path, "00025")
    add_frames(tmp_path, "00025", frames=5)
    reading = read(str(tmp_path), Choices(frames=3))
    assert reading.layout == "single labels of fold 1, frame folders of data/frames"
    frames = [str(tmp_path / f"data/frames/00025/{number:05d}.jpg") for number in (0, 2, 4)]
    assert reading.samples["paths"].to_pylist() == [frames]


def test_folds(tmp_path):
    for fold in range(1, 6):
        write_lists(tmp_path, b"0000%d.mp4 fear\n" % fold, b"0001%d.mp4 fear\n" % fold, fold=fold)
        add_clips(tmp_path, f"0000{fold}", f"0001{fold}")
    for fold in range(1, 6):
        reading = read(str(tmp_path), Choices(fold=fold))
        assert list(labels(reading)) == [f"mafw/0000{fold}", f"mafw/0001{fold}"]
        assert reading.layout.startswith(f"single labels of fold {fold},")


def test_compound_labels(tmp_path):
    rows = b"00001.mp4 sadness_helplessness\n00002.mp4 neutral\n00003.mp4 anger_disgust_anxiety\n"
    write_lists(tmp_path, rows, b"00004.mp4 anger_disgust\n00005.mp4 sadness_helplessness\n", "compound/no_caption")
    add_clips(tmp_path, *(f"0000{number}" for number in range(1, 6)))
    reading = read(str(tmp_path), Choices(mafw_labels="compound"))
    assert labels(reading) == {
        "mafw/00001": "sadness and helplessness",
        "mafw/00002": "neutral",
        "mafw/00003": "anger and disgust and anxiety",
        "mafw/00004": "anger and disgust",
        "mafw/00005": "sadness and helplessness",
    }
    compounds = ["anger and disgust", "anger and disgust and anxiety", "sadness and helplessness"]
    assert reading.samples["options"].to_pylist() == [SINGLE + compounds] * 5
    assert reading.layout == "compound labels of fold 1, video files of data/clips"


def test_what_is_no_compound_label(tmp_path):
    rows = [b"anger_disgust", b"disgust_anger", b"anger_anger", b"anger_joy", b"anger_", b"_", b"anger and disgust"]
    write_lists(
        tmp_path,
        b"".join(b"0000%d.mp4 %s\n" % (number, row) for number, row in enumerate(rows, start=1)),
        kind="compound/no_caption",
    )
    add_clips(tmp_path, *(f"0000{number}" for number in range(1, 8)))
    reading = read(str(tmp_path), Choices(mafw_labels="compound"))
    assert labels(reading) == {"mafw/00001": "anger and disgust"}
    assert [row[2].split(" is not")[0] for row in rejected(reading)] == [
        "unknown label: 'disgust_anger'",
        "unknown label: 'anger_anger'",
        "unknown label: 'anger_joy'",
        "unknown label: 'anger_'",
        "unknown label: '_'",
        "the line has 4 fields, not 2: '00007.mp4 anger and disgust'",
    ]
    assert reading.samples["options"].to_pylist() == [[*SINGLE, "anger and disgust"]]


def test_a_compound_is_no_single_label(tmp_path):
    write_lists(tmp_path, b"00001.mp4 anger_disgust\n")
    add_clips(tmp_path, "00001")
    assert rejected(read(str(tmp_path), Choices()))[0][2].startswith("unknown label: 'anger_disgust' is not of anger,")


CAPTIONED = (
    "00025.mp4\tanger\t一个男人说话。\tA man speaks.\r\n".encode("gb18030")
    + "00026.mp4\tfear\t她的眼睛\tThe woman’s eyes are wide.\r\n".encode("gb18030")
    + b"00027.mp4\tsadness\t\xff\x00\x80broken\tShe cries.\r\n"
)


def test_lists_with_captions_give_labels_where_there_are_no_others(tmp_path):
    write_lists(tmp_path, CAPTIONED + b"00028.mp4\tfear\t\xd2\xbb\r\n", kind="single/with_caption")
    add_clips(tmp_path, "00025", "00026", "00027")
    reading = read(str(tmp_path), Choices())
    assert labels(reading) == {"mafw/00025": "anger", "mafw/00026": "fear", "mafw/00027": "sadness"}
    assert rejected(reading) == [
        ("mafw", "train.txt:4", "the line has 3 fields, not 4: '00028.mp4\\tfear\\tһ'")  # the bytes are of two worlds
    ]
    assert reading.layout.endswith("; lists with captions, which leave out the neutral clips")
    write_lists(tmp_path, b"00025.mp4 neutral\n")
    reading = read(str(tmp_path), Choices())
    assert labels(reading) == {"mafw/00025": "neutral"} and "captions" not in reading.layout


def test_captions(tmp_path):
    utf8 = "\ufeff00030.mp4\tfear\t她\tThe “old” woman’s eyes.\nno caption\n00031.mp4\tfear\t她\t\n"
    write_lists(tmp_path, CAPTIONED, utf8.encode(), kind="single/with_caption")
    assert read_captions(str(tmp_path), Choices()) == {
        "mafw/00025": "A man speaks.",
        "mafw/00026": "The woman’s eyes are wide.",
        "mafw/00027": "She cries.",
        "mafw/00030": "The “old” woman’s eyes.",
    }
    with pytest.raises(FeridError, match="it has no Train & Test Set/compound/with_caption/set_2/train.txt"):
        read_captions(str(tmp_path), Choices(mafw_labels="compound", fold=2))


@pytest.mark.parametrize(("male", "genders"), [("1", ["male", "female", None]), ("0", ["female", "male", None])])
def test_gender_by_the_code_that_the_user_names(tmp_path, male, genders):
    write_lists(tmp_path, b"00001.mp4 anger\n00002.mp4 anger\n00003.mp4 anger\n")
    add_clips(tmp_path, "00001", "00002", "00003")
    (tmp_path / "Labels(auto)").mkdir()
    (tmp_path / "Labels(auto)/gender.txt").write_bytes(b"00001: 1\r\n00002: 0\r\n00003: 2\r\n")
    found = read(str(tmp_path), Choices(mafw_male=male)).samples["attributes"].to_pylist()
    assert found == [{"age": None, "gender": gender, "race": None} for gender in genders]
    unknown = read(str(tmp_path), Choices()).samples["attributes"].to_pylist()
    assert unknown == [{"age": None, "gender": None, "race": None}] * 3


def test_gender_without_its_list(tmp_path):
    write_lists(tmp_path, b"00001.mp4 anger\n")
    add_clips(tmp_path, "00001")
    with pytest.raises(FeridError, match=r"it has no Labels\(auto\)/gender.txt"):
        read(str(tmp_path), Choices(mafw_male="1"))


@pytest.mark.parametrize(
    "content",
    [
        b"00001.mp4 fear\r\n00002.mp4 fear\r\n",
        b"\xef\xbb\xbf00001.mp4 fear\n00002.mp4 fear",
        b"\n00001.mp4 fear\n\n00002 fear\n",
    ],
    ids=["windows", "byte order mark", "blank lines, no suffix"],
)
def test_lists_as_users_have_them(tmp_path, content):
    write_lists(tmp_path, content)
    add_clips(tmp_path, "00001", "00002")
    reading = read(str(tmp_path), Choices())
    assert (labels(reading), reading.rejected) == ({"mafw/00001": "fear", "mafw/00002": "fear"}, [])


def test_bad_rows_are_rejected_with_their_line(tmp_path):
    rows = [
        b"00001.mp4 fear",
        b"00002.mp4",
        b"00003.mp4 fear anger",
        b"00004.mp4 joy",
        b"00005.mp4 12",
        b"\xff.mp4 fear",
        b"../00007.mp4 fear",
        b"/data/clips/00008.mp4 fear",
        b"sub/../../00009.mp4 fear",
    ]
    write_lists(tmp_path, b"\n".join(rows))
    add_clips(tmp_path, *(f"0000{number}" for number in range(1, 10)))
    reading = read(str(tmp_path), Choices())
    assert labels(reading) == {"mafw/00001": "fear"}
    known, leads_out = f"is not of {', '.join(SINGLE)}", "the name leads out of the folder of the media"
    assert rejected(reading) == [
        ("mafw", "train.txt:2", "the line has 1 fields, not 2: '00002.mp4'"),
        ("mafw", "train.txt:3", "the line has 3 fields, not 2: '00003.mp4 fear anger'"),
        ("mafw/00004", "train.txt:4", f"unknown label: 'joy' {known}"),
        ("mafw/00005", "train.txt:5", f"unknown label: '12' {known}"),
        ("mafw", "train.txt:6", "the line is not UTF-8"),
        ("mafw/../00007", "train.txt:7", leads_out),
        ("mafw//data/clips/00008", "train.txt:8", leads_out),
        ("mafw/sub/../../00009", "train.txt:9", leads_out),
    ]
    assert reading.read == len(rows)


def test_a_clip_is_not_both_trained_on_and_tested(tmp_path):
    write_lists(tmp_path, train=b"00001.mp4 fear\n00002.mp4 fear\n", test=b"00001.mp4 fear\n00002.mp4 anger\n")
    add_clips(tmp_path, "00001", "00002")
    reading = read(str(tmp_path), Choices())
    assert reading.samples.select(["id", "split"]).to_pylist() == [{"id": "mafw/00001", "split": "test"}]
    folder = tmp_path / "Train & Test Set/single/no_caption/set_1"
    assert [(row.path, row.reason) for row in reading.rejected] == [
        (f"{folder}/train.txt:1", f"listed twice: see {folder}/test.txt:1"),
        (f"{folder}/train.txt:2", "listed 2 times with different labels"),
        (f"{folder}/test.txt:2", "listed 2 times with different labels"),
    ]
    assert reading.read == 4


def test_media_that_cannot_be_used(tmp_path):
    write_lists(tmp_path, b"".join(b"0000%d.mp4 fear\n" % number for number in range(1, 6)))
    add_clips(tmp_path, "00001", "00002")
    clips = tmp_path / "data/clips"
    (clips / "00002.mp4").unlink()
    (clips / "00003.mp4").mkdir()
    (clips / "00004.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    reading = read(str(tmp_path), Choices())
    assert labels(reading) == {"mafw/00001": "fear"}
    outside = "a symbolic link leads out of the folder of the media"
    assert [row[2] for row in rejected(reading)] == [
        "the file is missing",
        "it is no file",
        outside,
        "the file is missing",
    ]
    add_frames(tmp_path, "00001")
    frames = tmp_path / "data/frames"
    (frames / "00002").mkdir()
    (frames / "00003").write_bytes(b"not a folder")
    (frames / "00004").symlink_to(tmp_path)
    reading = read(str(tmp_path), Choices())
    assert labels(reading) == {"mafw/00001": "fear"}
    assert [row[2] for row in rejected(reading)] == [
        "the folder of the clip holds no picture",
        "it is no folder",
        outside,
        "the folder is missing",
    ]
    assert reading.read == 5


def test_half_unpacked(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of MAFW"):
        read(str(tmp_path / "nowhere"), Choices())
    with pytest.raises(
        FeridError, match="is not MAFW, or not all of it: it has no Train & Test Set/single/no_caption/"
    ):
        read(str(tmp_path), Choices())
    write_lists(tmp_path, b"00001.mp4 fear\n")
    with pytest.raises(FeridError, match="it has no data/frames and no data/clips; .*unpack the rest"):
        read(str(tmp_path), Choices())
    add_clips(tmp_path, "00001")
    with pytest.raises(
        FeridError, match="it has no Train & Test Set/compound/no_caption/set_1 and no .*/with_caption/"
    ):
        read(str(tmp_path), Choices(mafw_labels="compound"))
    (tmp_path / "Train & Test Set/single/no_caption/set_1/test.txt").unlink()
    with pytest.raises(FeridError, match="set_1/test.txt cannot be opened: No such file or directory; restore it"):
        read(str(tmp_path), Choices())


@pytest.mark.shared
def test_the_real_lists(skeleton):
    sizes = {1: (7333, 1839), 2: (7335, 1837), 3: (7339, 1833), 4: (7340, 1832), 5: (7341, 1831)}
    tested = []
    for fold, (train, test) in sizes.items():
        reading = read(str(skeleton / "MAFW"), Choices(fold=fold))
        splits = Counter(reading.samples["split"].to_pylist())
        assert (splits["train"], splits["test"], reading.rejected) == (train, test, [])
        tested += [row["id"] for row in reading.samples.to_pylist() if row["split"] == "test"]
        found = Counter(zip(reading.samples["split"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))
        total = [found["train", label] + found["test", label] for label in CLASSES["mafw"]]
        assert total == [1390, 639, 625, 1242, 1138, 1470, 1072, 236, 916, 262, 182]
        if fold == 1:
            counts = {split: {label: found[split, label] for label in CLASSES["mafw"]} for split in SOURCE.counts}
            assert counts == SOURCE.counts
    assert len(tested) == len(set(tested)) == 9_172  # each clip is tested once in the five folds
