"""`ferid check`: recognises a dataset, and says what is missing or broken, class by class."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferid_dataset.check import check
from ferid_dataset.errors import FeridError
from ferid_dataset.sources.base import Choices


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def raf_db(tmp_path):
    """Six pictures, of which one is missing, one is broken and one is a copy; a label and a line that are wrong."""
    root = tmp_path / "RAF-DB"
    lines = ["train_00001.jpg 1", "train_00002.jpg 1", "train_00003.jpg 4", "train_00004.jpg 4", "train_00005.jpg 9"]
    lines += ["test_0001.jpg 4", "test_0002.jpg"]
    (root / "basic/EmoLabel").mkdir(parents=True)
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(["train_00001", "train_00003", "train_00004", "test_0001"]):
        picture(root / f"basic/Image/aligned/{name}_aligned.jpg", seed)
    aligned = root / "basic/Image/aligned"
    (aligned / "test_0001_aligned.jpg").write_bytes((aligned / "train_00003_aligned.jpg").read_bytes())
    whole = (aligned / "train_00004_aligned.jpg").read_bytes()
    (aligned / "train_00004_aligned.jpg").write_bytes(whole[: len(whole) // 2])
    return root


def test_what_is_wrong_is_told_class_by_class(raf_db):
    found = check(raf_db)
    assert (found.source, found.layout, found.is_whole) == ("raf_db", "aligned pictures of the basic set", False)
    assert found.classes["surprise"] == {"train": [1, 1290], "test": [0, 329], "rejected": 1}
    assert found.classes["happiness"] == {"train": [1, 4772], "test": [1, 1185], "rejected": 1}
    assert found.classes["fear"] == {"train": [0, 281], "test": [0, 74], "rejected": 0}
    assert {kind: len(samples) for kind, samples in found.problems.items()} == {
        "the line has 1 fields, not 2": 1,
        "unknown label": 1,
        "the file is missing": 1,
        "cannot be read": 1,
    }
    (missing,) = found.problems["the file is missing"]
    assert missing == f"raf_db/train_00002 ({raf_db}/basic/EmoLabel/list_patition_label.txt:2)"
    assert "'9' is not of 1, 2" in found.problems["unknown label"][0]
    assert found.copies == [["raf_db/train_00003", "raf_db/test_0001"]]


def test_without_decoding_files_must_only_exist(raf_db):
    found = check(raf_db, decode=False)
    assert "cannot be read" not in found.problems and found.copies == [] and not found.decoded
    assert found.classes["happiness"]["train"] == [2, 4772]


def test_a_folder_of_own_pictures_has_no_official_counts(tmp_path):
    for seed in range(4):
        picture(tmp_path / f"photos/train/{'joy' if seed % 2 else 'Angry'}/{seed}.png", seed)
    found = check(tmp_path / "photos")
    assert found.is_whole and found.source == "folder"
    assert found.classes == {
        "happiness": {"train": [2, None], "rejected": 0},
        "anger": {"train": [2, None], "rejected": 0},
    }


def test_a_truncated_clip_is_not_whole(tmp_path):
    av = pytest.importorskip("av")
    root = tmp_path / "MAFW"
    for split, name in (("train", "00025"), ("test", "00026")):
        file = root / f"Train & Test Set/single/no_caption/set_1/{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}.mp4 anger\n")
        clip = root / f"data/clips/{name}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(clip), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width = stream.height = 64
            for seed in range(50):
                pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(stream.encode())
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    found = check(root)
    assert len(found.truncated) == 1 and found.truncated[0].startswith("mafw/00026: only ")
    assert not found.is_whole and found.problems == {}


def test_the_skeleton_is_whole(skeleton):
    for folder, fold in (("RAF-DB", 1), ("AffectNet", 1), ("FERPlus", 1), ("FERV39k", 1), ("DFEW", 3), ("MAFW", 5)):
        found = check(skeleton / folder, Choices(fold=fold), decode=False)
        assert found.title == folder and found.is_whole, found.problems
    assert all(official is None for official in (found.classes["fear"][split][1] for split in ("train", "test")))


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nowhere", "there is no folder .*nowhere"),
        (".", r"holds RAF-DB/ \(RAF-DB\): check one of these folders"),
        ("RAF-DB/basic/Image", "is no dataset that FERID knows .FERPlus, RAF-DB, AffectNet.*give the folder"),
    ],
)
def test_folders_that_are_no_dataset(tmp_path, raf_db, path, sentence):
    with pytest.raises(FeridError, match=sentence):
        check(tmp_path / path)


def test_the_command(tmp_path, raf_db):
    def run(*arguments):
        command = [sys.executable, "-m", "ferid_dataset.cli", "check", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    table = run(raf_db)
    assert table.returncode == 1 and "1 of 4,772" in table.stdout and "the file is missing: 1, such as" in table.stdout
    done = run(raf_db, "--json", "--no-decode")
    assert done.returncode == 1 and json.loads(done.stdout)["problems"]["unknown label"]
    wrong = run(tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and wrong.stdout == ""
    for path in raf_db.rglob("*.txt"):
        path.write_text("train_00001.jpg 1\n")
    assert run(raf_db, "--no-decode").returncode == 1  # official counts are missed
