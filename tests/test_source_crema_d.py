"""CREMA-D to SAMPLES: labels from names, folds by actor, demographics as attributes, and every kind of bad input."""

import os
import re
from collections import Counter

import pytest

from ferid_dataset.errors import FeridError
from ferid_dataset.sources.base import SAMPLES, Choices
from ferid_dataset.sources.crema_d import read

PEOPLE = """"ActorID","Age","Sex","Race","Ethnicity"
1001,51,"Male","Caucasian","Not Hispanic"
1002,21,"Female","African American","Hispanic"
1003,33,"Female","Unknown","Hispanic"
1004,?,"","Unknown","Not Hispanic"
1005,25,"Male","Asian","Not Hispanic"
"""
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:10dc3fd1\nsize 265922\n"


def fill(root, *names, people=PEOPLE, content=b"not opened here", folder="VideoFlash"):
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "VideoDemographics.csv").write_text(people)
    for name in names:
        (root / folder / name).write_bytes(content)
    return root


def label_of_id(reading):
    return dict(zip(reading.samples["id"].to_pylist(), reading.samples["label"].to_pylist(), strict=True))


def test_labels_are_those_that_the_actors_were_asked_to_show(tmp_path):
    codes = {
        "ANG": "anger",
        "DIS": "disgust",
        "FEA": "fear",
        "HAP": "happiness",
        "NEU": "neutral",
        "SAD": "sadness",
    }
    levels = ["XX", "LO", "MD", "HI", "XX", "XX"]
    names = [f"1001_IEO_{code}_{level}" for code, level in zip(codes, levels, strict=True)]
    reading = read(str(fill(tmp_path, *(f"{name}.flv" for name in names))), Choices(frames=4))
    assert reading.samples.schema == SAMPLES
    assert reading.rejected == []
    assert reading.layout == "fold 1 of our own, the clips of VideoFlash"
    assert label_of_id(reading) == {f"crema_d/{name}": codes[name[9:12]] for name in names}
    path = tmp_path / "VideoFlash/1001_IEO_ANG_XX.flv"
    assert [row for row in reading.samples.to_pylist() if row["label"] == "anger"] == [
        {
            "id": "crema_d/1001_IEO_ANG_XX",
            "source": "crema_d",
            "split": "test",
            "media_type": "video",
            "paths": [f"frame://{i}of4::{path}" for i in range(4)],
            "label": "anger",
            "options": ["anger", "disgust", "fear", "happiness", "neutral", "sadness"],
            "attributes": {"age": "51", "gender": "male", "race": "Caucasian"},
        }
    ]


def test_attributes(tmp_path):
    names = [f"{actor}_DFA_HAP_XX.flv" for actor in range(1001, 1007)]
    reading = read(str(fill(tmp_path, *names)), Choices())
    attributes = dict(zip(reading.samples["id"].to_pylist(), reading.samples["attributes"].to_pylist(), strict=True))
    assert {int(row[8:12]): tuple(person.values()) for row, person in attributes.items()} == {
        1001: ("51", "male", "Caucasian"),
        1002: ("21", "female", "African-American, Hispanic"),
        1003: ("33", "female", "Hispanic"),
        1004: (None, None, None),
        1005: ("25", "male", "Asian"),
        1006: (None, None, None),  # not in the list
    }


def test_folds_test_on_every_actor_once(tmp_path):
    actors = range(1001, 1092)
    fill(tmp_path, *(f"{actor}_{sentence}_SAD_XX.flv" for actor in actors for sentence in ("DFA", "TAI")))
    tested = Counter()
    for fold in range(1, 6):
        samples = read(str(tmp_path), Choices(fold=fold)).samples
        split_of_actor = {}
        for name, split in zip(samples["id"].to_pylist(), samples["split"].to_pylist(), strict=True):
            assert split_of_actor.setdefault(name[8:12], split) == split
        test = sorted(int(actor) for actor, split in split_of_actor.items() if split == "test")
        assert test[:2] == [1000 + fold, 1005 + fold]
        assert len(split_of_actor) == 91 and set(split_of_actor.values()) == {"train", "test"}
        tested.update(test)
    assert tested == dict.fromkeys(actors, 1)


def test_conversions_to_mp4_are_used_where_they_are(tmp_path):
    root = fill(tmp_path, "1001_DFA_ANG_XX.flv", "1002_DFA_ANG_XX.flv", "1002_DFA_ANG_XX.mp4")
    reading = read(str(root), Choices(frames=1))
    assert [os.path.basename(path) for (path,) in reading.samples["paths"].to_pylist()] == [
        "1001_DFA_ANG_XX.flv",
        "1002_DFA_ANG_XX.mp4",
    ]
    fill(tmp_path, "1003_DFA_ANG_XX.mp4", folder="VideoMP4")
    reading = read(str(root), Choices(frames=1))
    assert reading.layout == "fold 1 of our own, the clips of VideoMP4"
    assert reading.samples["id"].to_pylist() == ["crema_d/1003_DFA_ANG_XX"]
    assert reading.rejected == []


def test_what_is_wrong_with_a_clip_is_said(tmp_path):
    clips = fill(tmp_path / "CREMA-D", "1001_DFA_ANG_XX.flv", ".hidden", content=b"FLV") / "VideoFlash"
    fill(tmp_path / "CREMA-D", "1001_IEO_ANG_XX.flv", content=POINTER)
    fill(tmp_path / "CREMA-D", "1003_DFA_JOY_XX.flv")
    misnamed = ["1004_DFA_ANG_X.flv", "1004_DFA_ANG_XX.avi", "notes.txt", "١٠٠١_DFA_ANG_XX.flv", "1001_dfa_ang_xx.flv"]
    fill(tmp_path / "CREMA-D", *misnamed, os.fsdecode(b"\xff.flv"))
    (clips / "1004_DFA_ANG_XX.flv").mkdir()
    (clips / "1005_DFA_ANG_XX.flv").symlink_to(tmp_path / "nowhere.flv")
    (tmp_path / "outside.flv").write_bytes(b"FLV")
    (clips / "1005_DFA_SAD_XX.flv").symlink_to(tmp_path / "outside.flv")
    (clips / "1005_DFA_HAP_XX.flv").symlink_to(clips / "1001_DFA_ANG_XX.flv")  # leads nowhere else
    reading = read(str(tmp_path / "CREMA-D"), Choices())
    assert label_of_id(reading) == {"crema_d/1001_DFA_ANG_XX": "anger", "crema_d/1005_DFA_HAP_XX": "happiness"}
    said = {os.path.basename(row.path): row.reason for row in reading.rejected}
    assert said.pop("1001_IEO_ANG_XX.flv") == "only a pointer to the clip is there: fetch the clips with git lfs pull"
    assert "'JOY' is not of ANG, DIS, FEA, HAP, NEU, SAD" in said.pop("1003_DFA_JOY_XX.flv")
    assert said.pop("1004_DFA_ANG_XX.flv") == "it is no file"
    for name in ("1005_DFA_ANG_XX.flv", "1005_DFA_SAD_XX.flv"):
        assert said.pop(name) == "a symbolic link leads out of the folder of the media"
    assert said == dict.fromkeys(
        [*misnamed, os.fsdecode(b"\xff.flv")], "the name is not <actor>_<sentence>_<emotion>_<level>.flv or .mp4"
    )
    assert reading.read == 13


def test_what_is_wrong_with_a_line_of_the_demographics_is_said(tmp_path):
    people = b"\xef\xbb\xbf" + PEOPLE.replace("\n", "\r\n").encode() + b"1006,44\r\n\r\n1007,44,caf\xe9,Asian,x\r\n"
    root = fill(tmp_path, *(f"{actor}_DFA_HAP_XX.flv" for actor in (1001, 1006, 1007)))
    (tmp_path / "VideoDemographics.csv").write_bytes(people)
    reading = read(str(root), Choices())
    assert [person["age"] for person in reading.samples["attributes"].to_pylist()] == ["51", None, None]
    assert {row.path.rsplit("/", 1)[1]: row.reason[:23] for row in reading.rejected} == {
        "VideoDemographics.csv:7": "the line has 2 fields, ",
        "VideoDemographics.csv:9": "the line is not UTF-8",
    }


def test_a_wrong_root_or_half_a_clone_is_one_sentence(tmp_path):
    with pytest.raises(FeridError, match="there is no folder .*nowhere: give the folder of CREMA-D"):
        read(str(tmp_path / "nowhere"), Choices())
    with pytest.raises(FeridError, match="not CREMA-D, or not all of it: it has no VideoMP4/ and no VideoFlash/;"):
        read(str(tmp_path), Choices())
    (tmp_path / "VideoFlash").write_text("no folder")
    with pytest.raises(FeridError, match="it has no VideoMP4/ and no VideoFlash/;"):
        read(str(tmp_path), Choices())
    (tmp_path / "VideoFlash").unlink()
    (tmp_path / "VideoFlash").mkdir()
    with pytest.raises(FeridError, match=re.escape("it has no VideoDemographics.csv; give the folder")):
        read(str(tmp_path), Choices())
    fill(tmp_path, "readme.txt")
    with pytest.raises(FeridError, match=r"VideoFlash holds no clip with a name like 1001_DFA_ANG_XX\.flv: clone"):
        read(str(tmp_path), Choices())
