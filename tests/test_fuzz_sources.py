"""Lists and media broken at random: every line is accounted for, no label is wrong, no list leads out of the folder.

The oracle reads the same lists line by line in plain Python.
"""

import io
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import canonical
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import Choices
from ferid_dataset.verify import verify_media

CODES_1_TO_7 = {
    "raf_db": "surprise fear disgust happiness sadness anger neutral",
    "dfew": "happiness sadness neutral anger surprise disgust fear",
}
AFFECTNET = "neutral happiness sadness surprise fear disgust anger contempt".split()
FERPLUS = "neutral happiness surprise sadness anger disgust fear contempt".split()


class Tree(NamedTuple):
    """A small copy of a dataset, and how a plain reader takes its lines."""

    lists: dict[str, list[str]]  # file -> lines
    media: list[str]
    delimiter: str
    fields: int
    header: str | None  # what a header begins with


TREES = {
    "raf_db": Tree(
        {
            "basic/EmoLabel/list_patition_label.txt": [
                "train_00001.jpg 5",
                "train_00002.jpg 1",
                "train_00003.jpg 7",
                "test_0001.jpg 4",
                "test_0002.jpg 2",
            ]
        },
        [
            f"basic/Image/aligned/{name}_aligned.jpg"
            for name in ("train_00001", "train_00002", "test_0001", "test_0002")
        ],
        " ",
        2,
        None,
    ),
    "affectnet": Tree(
        {
            f"Manually_Annotated_file_lists/{file}.csv": [
                "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal",
                *(f"{i}/{file}{i}.jpg,1,1,9,9,1.0;2.0,{i * 3},0.1,0.1" for i in range(4)),
            ]
            for file in ("training", "validation")
        },
        [
            f"Manually_Annotated/Manually_Annotated_Images/{i}/{file}{i}.jpg"
            for file in ("training", "validation")
            for i in range(4)
        ],
        ",",
        9,
        "subDirectory_filePath",
    ),
    "ferplus": Tree(
        {
            f"data/FER2013{split}/label.csv": [
                f'fer000000{i}.png,"(0, 0, 48, 48)",{i % 3},{i},0,1,0,0,0,2,0,0' for i in range(first, first + 3)
            ]
            for first, split in ((0, "Train"), (3, "Valid"), (6, "Test"))
        },
        [
            f"data/FER2013{split}/fer000000{i}.png"
            for first, split in ((0, "Train"), (3, "Valid"), (6, "Test"))
            for i in range(first, first + 3)
        ],
        ",",
        15,
        None,
    ),
    "dfew": Tree(
        {
            "EmoLabel_DataSplit/train(single-labeled)/set_1.csv": ["video_name,label", "2522,6", "31,2", "7,1"],
            "EmoLabel_DataSplit/test(single-labeled)/set_1.csv": ["video_name,label", "16000,3", "8,4"],
        },
        [f"Clip/clip_224x224/{name}/{i}.jpg" for name in ("02522", "00031", "00007", "16000") for i in range(2)],
        ",",
        2,
        "video_name",
    ),
    "ferv39k": Tree(
        {
            "4_setups/All_scenes/train_All.csv": [
                "Crime/Angry/0063 Angry",
                "Action/Fear/0001 Fear",
                "War/Sad/0002 Sad",
            ],
            "4_setups/All_scenes/test_All.csv": ["Daily/Happy/0063 Happy", "Action/Fear/0009 Fear"],
        },
        [
            f"2_ClipsforFaceCrop/{clip}/{i}.jpg"
            for clip in (
                "Crime/Angry/0063",
                "Action/Fear/0001",
                "War/Sad/0002",
                "Daily/Happy/0063",
                "Action/Fear/0009",
            )
            for i in range(3)
        ],
        " ",
        2,
        None,
    ),
    "mafw": Tree(
        {
            "Train & Test Set/single/no_caption/set_1/train.txt": ["00025.mp4 anger", "00031.mp4 contempt"],
            "Train & Test Set/single/no_caption/set_1/test.txt": ["00032.mp4 anxiety", "00033.mp4 neutral"],
        },
        [f"data/clips/{name}.mp4" for name in ("00025", "00031", "00032", "00033")],
        " ",
        2,
        None,
    ),
}

FRAME_FOLDERS = ("dfew", "ferv39k")  # a list names these folders, not the files in them
BYTES = [
    b"\x00",
    b"\xff",
    b"\xe9",
    "é".encode(),
    b" ",
    b",",
    b"\t",
    b"\r",
    b"\n",
    b'"',
    b"'",
    b"/",
    b"\\",
    b".",
    b"0",
    b"9",
]
WORDS = [b"../", b"/etc/passwd", b"\r\n", b"\n\n", b"-1", b"8", b"anger", b"1000000000000", b"\xef\xbb\xbf", b"NaN"]
list_changes = st.tuples(
    st.sampled_from(["insert", "replace", "delete", "repeat line", "drop line", "cut", "crlf", "bom", "empty"]),
    st.integers(0, 2**16),
    st.sampled_from(BYTES + WORDS),
)
media_changes = st.tuples(st.sampled_from(["remove", "empty", "link out", "link in", "folder"]), st.integers(0, 2**16))


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture()  # whatever the name of the file says; clips of MAFW are none, and never pass verification


def write(root: Path, tree: Tree) -> None:
    for file, lines in tree.lists.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(("\n".join(lines) + "\n").encode())
    for file in tree.media:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(PICTURE)


def change_list(file: Path, kind: str, position: int, payload: bytes) -> None:
    data = file.read_bytes()
    position %= len(data) + 1
    lines = data.splitlines(keepends=True) or [b""]
    line = position % len(lines)
    file.write_bytes(
        {
            "insert": data[:position] + payload + data[position:],
            "replace": data[:position] + payload + data[position + len(payload) :],
            "delete": data[:position] + data[position + 3 :],
            "repeat line": b"".join(lines[: line + 1] + lines[line:]),
            "drop line": b"".join(lines[:line] + lines[line + 1 :]),
            "cut": data[:position],
            "crlf": data.replace(b"\n", b"\r\n"),
            "bom": b"\xef\xbb\xbf" + data,
            "empty": b"",
        }[kind]
    )


def change_media(file: Path, kind: str, root: Path, outside: Path) -> None:
    if not file.is_file() or file.is_symlink():
        return
    file.unlink()
    if kind == "empty":
        file.touch()
    elif kind == "link out":
        file.symlink_to(outside)
    elif kind == "link in":
        inside = file.with_name("other" + file.suffix)
        inside.write_bytes(PICTURE)
        file.symlink_to(inside)
    elif kind == "folder":
        file.mkdir()


def plain_rows(root: Path, tree: Tree) -> tuple[int, set[tuple[str, ...]]]:
    """How many rows there are, and the fields of those that can be read."""
    count, rows = 0, set()
    for file in tree.lists:
        data = (root / file).read_bytes().removeprefix(b"\xef\xbb\xbf")
        for number, line in enumerate(re.split(rb"\r\n|\r|\n", data)):
            line = line.rstrip(b" \t") if tree.delimiter == " " else line
            fields = tuple(field.strip() for field in line.decode(errors="replace").split(tree.delimiter))
            whole = len(fields) == tree.fields
            is_header = tree.header is not None and not number and line.startswith(tree.header.encode())
            if not line.strip() or (whole and not any(fields)) or is_header:
                continue
            count += 1
            if whole:
                rows.add(fields)
    return count, rows


def plain_label(name: str, fields: tuple[str, ...]) -> str | None:
    try:
        return _label(name, fields)
    except (FeridError, ValueError, IndexError):
        return None


def _label(name: str, fields: tuple[str, ...]) -> str:
    if name in CODES_1_TO_7:
        return CODES_1_TO_7[name].split()[int(fields[1]) - 1]
    if name == "affectnet":
        return AFFECTNET[int(fields[6])]
    if name == "ferplus":
        votes = [int(vote) for vote in fields[5:13]]
        return FERPLUS[votes.index(max(votes))]
    return canonical(fields[1])


def plain_id(name: str, fields: tuple[str, ...]) -> str:
    stem = fields[0] if name == "ferv39k" else os.path.splitext(fields[0])[0]
    return f"{name}/{stem.zfill(5) if name == 'dfew' else stem}"


@pytest.mark.parametrize("name", TREES)
@settings(max_examples=150, deadline=None)
@given(
    lists=st.lists(st.tuples(st.integers(0, 9), list_changes), max_size=4),
    media=st.lists(st.tuples(st.integers(0, 99), media_changes), max_size=3),
)
def test_nothing_is_lost_and_no_label_is_wrong(name, lists, media):
    tree = TREES[name]
    root = Path(tempfile.mkdtemp())
    try:
        outside = root / "outside.jpg"
        outside.write_bytes(b"not of the dataset")
        data = root / "data set"
        write(data, tree)
        for which, (kind, position, payload) in lists:
            change_list(data / list(tree.lists)[which % len(tree.lists)], kind, position, payload)
        for which, (kind, _) in media:
            change_media(data / tree.media[which % len(tree.media)], kind, data, outside)
        try:
            reading = SOURCES[name].read(str(data), Choices(frames=4))
        except FeridError as error:
            assert str(root) in str(error) and "\n" not in str(error)
            return
        count, rows = plain_rows(data, tree)
        samples = reading.samples.to_pylist()
        assert count == reading.read == len(samples) + len(reading.rejected) + sum(reading.left_out.values())
        assert len({sample["id"] for sample in samples}) == len(samples)
        for sample in samples:
            labels = {plain_label(name, row) for row in rows if plain_id(name, row) == sample["id"]}
            assert labels - {None} == {sample["label"]}, sample["id"]  # a damaged copy of its line is rejected
            for path in sample["paths"]:
                file = Path(path.rpartition("::")[2])
                assert file.exists() and file.parent.resolve().is_relative_to(data)
                assert file.resolve().is_relative_to(data) or name in FRAME_FOLDERS
        assert all(row.reason and row.path.startswith(str(data)) for row in reading.rejected)

        verified = verify_media(reading.samples, num_proc=1)
        assert len(verified.samples) + len(verified.rejected) == len(samples)
        for sample in verified.samples.to_pylist():
            assert all(os.path.getsize(path.rpartition("::")[2]) for path in sample["paths"])
    finally:
        shutil.rmtree(root)
