"""The six datasets of FERID by their real annotation lists: exact counts, and the wording of every instruction."""

import json
import os
import subprocess
import sys

import pytest
from datasets import load_dataset

from ferid_dataset.build import build_ferid
from ferid_dataset.ferid import Ferid
from ferid_dataset.stats import count_ferid

pytestmark = pytest.mark.shared

FOLDERS = {
    "ferplus": "FERPlus",
    "raf_db": "RAF-DB",
    "affectnet": "AffectNet",
    "dfew": "DFEW",
    "ferv39k": "FERV39k",
    "mafw": "MAFW",
}
TRAIN = {
    "ferplus": 28_558,
    "raf_db": 12_271,
    "affectnet": 287_651,
    "dfew": 9_356,
    "ferv39k": 31_088,
    "mafw": 7_333,
}
LONG_TAIL = {"ferplus": 61.1, "raf_db": 17.0, "affectnet": 35.8, "dfew": 18.4, "ferv39k": 4.6, "mafw": 8.1}
OPTIONS = {
    "ferplus": "neutral, happiness, surprise, sadness, anger, disgust, fear, contempt",
    "raf_db": "surprise, fear, disgust, happiness, sadness, anger, neutral",
    "affectnet": "neutral, happiness, sadness, surprise, fear, disgust, anger, contempt",
    "dfew": "sadness, joy, surprise, neutral, fear, anger, disgust",
    "ferv39k": "sadness, joy, surprise, neutral, fear, anger, disgust",
    "mafw": "anger, disgust, fear, happiness, neutral, sadness, surprise, contempt, anxiety, helplessness, "
    "disappointment",
}


@pytest.fixture(scope="module")
def roots(skeleton):
    return {source: skeleton / folder for source, folder in FOLDERS.items()}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Conversations of two samples."""
    folder = tmp_path_factory.mktemp("annotations")
    turns = [{"role": "user", "content": "Why is she sad?"}, {"role": "assistant", "content": "It cannot be known."}]
    for source, name in (("raf_db", "train_00001"), ("mafw", "03747")):
        (folder / source).mkdir()
        line = json.dumps({"id": f"{source}/{name}", "messages": turns})
        (folder / source / "train.jsonl").write_text(line + "\n")
    return folder


@pytest.fixture(scope="module")
def built(roots, annotations, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "ferid"
    summary = build_ferid(out, annotations=annotations, **roots)
    assert summary.rejected == 0 and summary.rows["conversation"] == {"train": 2}
    return out


def test_the_counts_of_the_paper(built):
    counts = count_ferid(built)
    sources = {source["source"]: source for source in counts["sources"]}
    assert {name: source["samples"]["train"] for name, source in sources.items()} == TRAIN
    assert {name: round(source["long_tail_ratio"], 1) for name, source in sources.items()} == LONG_TAIL
    assert counts["total"]["samples"] == {"train": 376_257, "validation": 3_579, "test": 22_668}
    assert {name: source["samples"].get("test") for name, source in sources.items()} == {
        "ferplus": 3_573,
        "raf_db": 3_068,
        "affectnet": 4_000,
        "dfew": 2_341,
        "ferv39k": 7_847,
        "mafw": 1_839,
    }


def test_the_wording_of_each_source(built, tmp_path):
    rows = load_dataset(str(built), "category", split="train", cache_dir=str(tmp_path)).remove_columns("images")
    sources = rows["source"][:]
    for source, options in OPTIONS.items():
        row = rows[sources.index(source)]
        shown = "video" if source in ("dfew", "ferv39k", "mafw") else "image"
        question = (
            f"What is the facial expression of the person in the {shown}? Choose one from the following options: "
        )
        assert row["messages"][0] == {"role": "user", "content": f"{question}{{{options}}}."}
        assert row["options"] == options.split(", ")
        assert row["media_type"] == shown
    answers = {
        (source, label): turns[1]["content"]
        for source, label, turns in zip(sources, rows["label"][:], rows["messages"][:], strict=True)
    }
    assert answers["dfew", "happiness"] == "joy" and answers["mafw", "happiness"] == "happiness"
    assert all(answer == label for (_, label), answer in answers.items() if answer != "joy")


def test_pictures_and_frames_open_and_both_configs_load_by_name(built):
    code = """
from datasets import load_dataset
train = load_dataset("ferid", "category", split="train")
first = {source: index for index, source in reversed(list(enumerate(train["source"])))}
print({source: [picture.size for picture in train[index]["images"]] for source, index in first.items()})
print(load_dataset("ferid", "conversation", split="train")["id"][:])
"""
    environment = os.environ | {"HF_DATASETS_CACHE": str(built.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=built.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    sizes, ids = map(eval, done.stdout.splitlines())
    stills = {"ferplus": [(48, 48)], "raf_db": [(100, 100)], "affectnet": [(100, 100)]}
    clips = {"dfew": [(100, 100)] * 8, "ferv39k": [(100, 100)] * 8, "mafw": [(64, 64)] * 8}
    assert sizes == stills | clips
    assert sorted(ids) == ["mafw/03747", "raf_db/train_00001"]


def test_the_builder_as_a_library_streams(roots):
    rows = Ferid(config_name="category", raf_db=str(roots["raf_db"]), mafw=str(roots["mafw"]), fold=2)
    rows = rows.as_streaming_dataset(split="test")
    assert next(iter(rows))["id"] == "raf_db/test_0001"
    assert sum(row["source"] == "mafw" for row in rows.select_columns(["source"])) == 1_837
