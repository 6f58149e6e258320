"""A folder of pictures to SAMPLES: names, order, and what is wrong said in one sentence."""

import os

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.sources import folder
from ferid_dataset.sources.base import SAMPLES


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not opened here")
    return root


def test_rows(tmp_path):
    fill(tmp_path, "train/Happy/b.JPG", "train/Happy/a.png", "test/ANGRY/a.tiff", "val/surprised/x.y.jpeg")
    fill(tmp_path, "train/Happy/.DS_Store", "train/.cache/x.jpg", "notes/readme.txt")
    samples, rejected, *_ = folder.read(tmp_path)
    assert rejected == []
    assert samples.schema == SAMPLES
    assert samples["id"].to_pylist() == [
        "folder/test/anger/a",
        "folder/train/happiness/a",
        "folder/train/happiness/b",
        "folder/validation/surprise/x.y",
    ]
    assert samples["label"].to_pylist() == ["anger", "happiness", "happiness", "surprise"]
    assert samples.slice(2, 1).to_pylist() == [
        {
            "id": "folder/train/happiness/b",
            "source": "folder",
            "split": "train",
            "media_type": "image",
            "paths": [str(tmp_path / "train/Happy/b.JPG")],
            "label": "happiness",
            "options": ["surprise", "happiness", "anger"],  # of all splits, in canonical order
            "attributes": {"age": None, "gender": None, "race": None},
        }
    ]


def test_a_relative_root_gives_absolute_paths(tmp_path, monkeypatch):
    fill(tmp_path / "photos", "train/joy/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert folder.read("photos").samples["paths"].to_pylist() == [[str(tmp_path / "photos/train/joy/a.jpg")]]


def test_two_folders_of_one_meaning_are_merged(tmp_path):
    fill(tmp_path, "train/joy/a.jpg", "train/happy/b.jpg", "train/happy/a.jpg")
    samples, rejected, *_ = folder.read(tmp_path)
    assert samples["id"].to_pylist() == ["folder/train/happiness/a", "folder/train/happiness/b"]
    assert [(row.id, row.path) for row in rejected] == [
        ("folder/train/happiness/a", str(tmp_path / "train/joy/a.jpg"))
    ]


def test_what_makes_no_row_is_rejected_with_its_reason(tmp_path):
    fill(tmp_path, "train/joy/a.jpg", "train/joy/a.png", "train/joy/list.txt", "train/joy/folder/x.jpg")
    samples, rejected, *_ = folder.read(tmp_path)
    assert samples["paths"].to_pylist() == [[str(tmp_path / "train/joy/a.jpg")]]
    assert [os.path.basename(row.path) for row in rejected] == ["a.png", "folder", "list.txt"]
    assert f"same name as {tmp_path / 'train/joy/a.jpg'}" in rejected[0].reason
    assert "not a picture file" in rejected[1].reason


def test_a_file_name_that_is_not_utf8_is_rejected(tmp_path):
    fill(tmp_path, "train/joy/a.jpg", "train/joy/é.jpg")
    (tmp_path / "train/joy" / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    samples, rejected, *_ = folder.read(tmp_path)
    assert len(samples) == 2
    assert [row.reason for row in rejected] == ["the file name is not UTF-8: rename it"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["anger/a.jpg"], "no folder named train, validation or test: pictures lie as ROOT/"),
        (["train/angr/a.jpg"], "unknown emotion folder .*train/angr: .* did you mean angry or anger"),
        (["train/class_7/a.jpg"], "unknown emotion folder .*class_7: .* known are surprise, fear"),
        (["train/anger/a.jpg", "train/joy/a.txt"], "train/joy holds no picture"),
        (["train/a.jpg"], "holds no picture: pictures lie as ROOT/"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, files, sentence):
    fill(tmp_path, *files)
    with pytest.raises(FeridError, match=sentence) as error:
        folder.read(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder"):
        folder.read(tmp_path / "nowhere")
    (tmp_path / "train" / "anger").mkdir(parents=True)
    with pytest.raises(FeridError, match="anger holds no picture .*: fill the folder or remove it"):
        folder.read(tmp_path)
