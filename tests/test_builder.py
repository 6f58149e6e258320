"""The builder as a library: rows, splits, streaming, caching, and what it joins."""

import json
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ferid_dataset.errors import FeridError
from ferid_dataset.faces import CACHE
from ferid_dataset.ferid import FEATURES, Ferid
from ferid_dataset.sources import folder

TURNS = [
    {"role": "user", "content": "What is the person's facial expression?"},
    {"role": "assistant", "content": "The person is smiling."},
]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/happy/a.png", "train/happy/b.png", "train/angry/a.jpg", "test/happy/c.tif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 6, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def annotate(tmp_path, **lines_of_split):
    for split, lines in lines_of_split.items():
        file = tmp_path / "annotations" / "folder" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(tmp_path / "annotations")


def build(tmp_path, photos, config="category", **sources):
    builder = Ferid(config_name=config, folder=str(photos), cache_dir=str(tmp_path / "cache"), **sources)
    builder.download_and_prepare()
    return builder.as_dataset()


def test_category_rows(tmp_path, photos):
    splits = build(tmp_path, photos)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "test": 1}
    assert splits["train"].features == FEATURES
    assert splits["train"]["id"][:] == [f"folder/train/{name}" for name in ("anger/a", "happiness/a", "happiness/b")]
    row = splits["train"][0]
    assert row.pop("images")[0].size == (6, 8)
    assert row == {
        "id": "folder/train/anger/a",
        "source": "folder",
        "media_type": "image",
        "messages": [
            {
                "role": "user",
                "content": "What is the facial expression of the person in the image? "
                "Choose one from the following options: {happiness, anger}.",
            },
            {"role": "assistant", "content": "anger"},
        ],
        "label": "anger",
        "options": ["happiness", "anger"],
        "attributes": {"age": None, "gender": None, "race": None},
        "faces": None,
    }
    assert [row["messages"][1]["content"] for row in splits["train"]] == ["anger", "happiness", "happiness"]


def test_pictures_are_not_copied(tmp_path, photos):
    rows = build(tmp_path, photos)["train"].with_format("arrow")[:]
    assert rows["images"].to_pylist()[0] == [{"bytes": None, "path": str(photos / "train/angry/a.jpg")}]


def test_conversation_rows_are_those_with_annotations(tmp_path, photos):
    annotations = annotate(
        tmp_path,
        train=[
            {"id": "folder/train/happiness/b", "messages": TURNS, "model": "someone", "turns": 1},
            {"id": "folder/train/happiness/gone", "messages": TURNS},
        ],
        test=[],
    )
    splits = build(tmp_path, photos, "conversation", annotations=annotations)
    assert list(splits) == ["train"]
    assert splits["train"].features == FEATURES
    assert splits["train"]["id"][:] == ["folder/train/happiness/b"]
    assert splits["train"][0]["messages"] == TURNS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{oops\n", "not JSON lines"),
        ('{"id": 3, "messages": []}\n', "not JSON lines"),
        ('{"id": "a"}\n', "a line without id or messages"),
        ('{"id": "a", "messages": []}\n' * 2, "an id comes twice"),
        ('{"id": "a", "messages": []}\n', "no annotation is of a sample here"),
    ],
)
def test_broken_annotations(tmp_path, photos, text, sentence):
    annotations = annotate(tmp_path, train=[])
    (tmp_path / "annotations/folder/train.jsonl").write_text(text)
    with pytest.raises(FeridError, match=sentence):
        build(tmp_path, photos, "conversation", annotations=annotations)


def test_conversation_without_annotations(tmp_path, photos):
    with pytest.raises(FeridError, match="conversations need annotations"):
        build(tmp_path, photos, "conversation")
    with pytest.raises(FeridError, match="give the folder of at least one of ferplus"):
        Ferid(config_name="category", cache_dir=str(tmp_path))


def test_faces_are_joined_by_id(tmp_path, photos):
    face = {"box": [1, 2, 3, 4], "score": 0.5, "landmarks": [[1, 2], [3, 4]], "embedding": [0.6, 0.8]}
    rows = [
        {"id": "folder/train/happiness/b", "stamp": "", "faces": [[face]]},
        {"id": "folder/train/anger/a", "stamp": "", "faces": [[]]},
    ]
    (tmp_path / "faces" / "folder").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=CACHE), tmp_path / "faces/folder/train.parquet")
    splits = build(tmp_path, photos, faces=str(tmp_path / "faces"))
    assert splits["train"]["faces"][:2] == [[[]], None]  # looked and found none; nobody looked
    joined = splits["train"][2]["faces"][0][0]
    assert joined["box"] == [1, 2, 3, 4] and joined["landmarks"] == [[1, 2], [3, 4]]
    assert joined["embedding"] == pytest.approx([0.6, 0.8]) and joined["age"] is joined["gender"] is None
    assert splits["test"]["faces"][:] == [None]


def test_a_changed_folder_is_not_served_from_the_cache(tmp_path, photos):
    assert len(build(tmp_path, photos)["train"]) == 3
    (photos / "train/happy/a.png").unlink()
    assert len(build(tmp_path, photos)["train"]) == 2


def test_streaming(tmp_path, photos):
    builder = Ferid(config_name="category", folder=str(photos), cache_dir=str(tmp_path))
    rows = builder.as_streaming_dataset(split="train")
    assert [row["label"] for row in rows] == ["anger", "happiness", "happiness"]
    assert next(iter(rows))["images"][0].size == (6, 8)
    assert next(iter(rows.map(lambda row: {"upper": row["label"].upper()})))["upper"] == "ANGER"


def test_many_rows_make_several_shards_that_processes_share(tmp_path):
    for number in range(25):
        path = tmp_path / "photos" / "train" / "anger" / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not opened here")
    samples = folder.read(tmp_path / "photos").samples
    samples = pa.concat_tables([samples] * 900)  # 22,500 rows
    builder = Ferid(config_name="category", samples=samples, cache_dir=str(tmp_path))
    assert builder.as_streaming_dataset(split="train").num_shards == 3
    builder.download_and_prepare(num_proc=2)
    rows = builder.as_dataset(split="train")
    assert rows["id"][:] == samples["id"].to_pylist()
    paths = rows.with_format("arrow")[:]["images"].combine_chunks().flatten().field("path")
    assert paths.to_pylist() == samples["paths"].combine_chunks().flatten().to_pylist()


def test_rows_pickle_and_configs_interleave(tmp_path, photos):
    category = build(tmp_path, photos)["train"]
    row = pickle.loads(pickle.dumps(category[0]))
    assert row["label"] == "anger" and row["images"][0].size == (6, 8)
    annotations = annotate(tmp_path, train=[{"id": "folder/train/anger/a", "messages": TURNS}])
    conversation = build(tmp_path, photos, "conversation", annotations=annotations)["train"]
    mixed = datasets.interleave_datasets([category, conversation])
    assert [len(row["messages"]) for row in mixed] == [2, 2]


def test_the_data_wing_imports_no_torch():
    code = (
        "import sys, ferid_dataset.build, ferid_dataset.prompts, ferid_dataset.cli;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
