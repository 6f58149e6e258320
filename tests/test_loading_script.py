"""`ferid_dataset/ferid.py` as a loading script of `datasets` 3.6, the last release that runs scripts: the same rows.

That release needs an environment of its own, which pip fills in about half a minute.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ferid_dataset import ferid
from ferid_dataset.faces import CACHE
from ferid_dataset.ferid import Ferid

pytestmark = pytest.mark.slow

TURNS = [{"role": "user", "content": "Why does he smile?"}, {"role": "assistant", "content": "One cannot know."}]
FACE = {"box": [1, 2, 3, 4], "score": 0.5, "landmarks": [[1, 2], [3, 4]], "embedding": [0.625, 0.75]}
LOAD = """
import json
import sys
import datasets
assert datasets.__version__ == "3.6.0"
arguments = json.loads(sys.argv[1])
rows = {}
for config in ("category", "conversation"):
    for split, loaded in datasets.load_dataset("ferid", config, trust_remote_code=True, **arguments).items():
        rows[f"{config} {split}"] = loaded.with_format("arrow")[:].to_pylist()
        streamed = datasets.load_dataset(
            "ferid", config, split=split, streaming=True, trust_remote_code=True, **arguments
        )
        assert list(streamed) == list(loaded) and loaded[0]["images"][0].size == (8, 6), config
print(json.dumps(rows))
"""


@pytest.fixture
def python(tmp_path):
    """The Python of an environment with `datasets` 3.6; pip's own settings apply."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "datasets==3.6.0", "pillow"], check=True)
    return python


@pytest.fixture
def arguments(tmp_path):
    """Own pictures, a RAF-DB, conversations about both, and the faces of one."""
    rng = np.random.default_rng(0)

    def draw(path: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).save(file)

    for name in ("train/happy/a.png", "train/happy/b.png", "train/angry/a.jpg", "test/sad/c.png"):
        draw(f"photos/{name}")
    raf_db = {"train_00001": 5, "train_00002": 1, "train_00003": 7, "train_00004": 4, "test_0001": 2, "test_0002": 6}
    for name in raf_db:
        draw(f"RAF-DB/basic/Image/aligned/{name}_aligned.jpg")
    (tmp_path / "RAF-DB/basic/EmoLabel").mkdir()
    lines = "".join(f"{name}.jpg {code}\n" for name, code in raf_db.items())
    (tmp_path / "RAF-DB/basic/EmoLabel/list_patition_label.txt").write_text(lines)

    (tmp_path / "annotations/mixed").mkdir(parents=True)
    ids = ("folder/train/happiness/b", "raf_db/train_00003", "raf_db/test_0001")
    lines = "".join(json.dumps({"id": name, "messages": TURNS}) + "\n" for name in ids)
    (tmp_path / "annotations/mixed/all.jsonl").write_text(lines)
    (tmp_path / "faces/raf_db").mkdir(parents=True)
    faces = [{"id": "raf_db/train_00001", "stamp": "", "faces": [[FACE]]}]
    pq.write_table(pa.Table.from_pylist(faces, schema=CACHE), tmp_path / "faces/raf_db/train.parquet")
    return {
        "folder": str(tmp_path / "photos"),
        "raf_db": str(tmp_path / "RAF-DB"),
        "annotations": str(tmp_path / "annotations"),
        "faces": str(tmp_path / "faces"),
    }


def test_the_script_yields_the_rows_of_the_builder(tmp_path, python, arguments):
    (tmp_path / "ferid").mkdir()
    shutil.copy(ferid.__file__, tmp_path / "ferid/ferid.py")
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(ferid.__file__).parents[1]),  # ferid_dataset, which the script imports
    }
    command = [python, "-c", LOAD, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)

    built = {}
    for config in ("category", "conversation"):
        builder = Ferid(config_name=config, cache_dir=str(tmp_path / "cache"), **arguments)
        builder.download_and_prepare()
        for split, loaded in builder.as_dataset().items():
            built[f"{config} {split}"] = loaded.with_format("arrow")[:].to_pylist()
    assert rows == built
    assert {name: len(split) for name, split in rows.items()} == {
        "category train": 7,
        "category test": 3,
        "conversation train": 2,
        "conversation test": 1,
    }
    with_faces = [row for row in rows["category train"] if row["faces"]]
    assert [row["id"] for row in with_faces] == ["raf_db/train_00001"] and with_faces[0]["label"] == "sadness"
    assert with_faces[0]["faces"] == [[FACE | {"age": None, "gender": None}]]
    assert rows["conversation test"][0]["messages"] == TURNS
