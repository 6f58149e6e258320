"""For the tests of training: a FERID with faces that nobody had to look for, and `train_sft` on a tiny checkpoint."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import DatasetCardData
from PIL import Image
from trl.trainer import utils as trl_utils

import train_sft
from ferid_dataset.ferid import FACES, FEATURES, MESSAGES, category_messages, to_rows
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.base import SAMPLES
from ferid_dataset.train.arguments import read_recipe

ROOT = Path(train_sft.__file__).parent
LABELS = ("happiness", "happiness", "happiness", "happiness", "sadness", "sadness", "anger")  # a long tail, 4 : 2 : 1


def make_training_ferid(out: Path, rows: int = 21) -> Path:
    """`rows` stills for training and 6 for validation; conversations of different lengths about every other one."""
    random = np.random.default_rng(0)
    (pictures := out.with_name(f"{out.name}_pictures")).mkdir(parents=True)
    out.mkdir()
    configs = {"category": [], "conversation": []}
    for split, count in (("train", rows), ("validation", 6)):
        samples = [a_sample(pictures, split, i, random) for i in range(count)]
        table = pa.Table.from_pylist(samples, SAMPLES)
        messages = {
            "category": category_messages(table),
            "conversation": pa.array([a_conversation(i) for i in range(count)], MESSAGES),
        }
        faces = pa.array([[[a_face(random)] if i % 5 < 4 else []] for i in range(count)], FACES)  # or none is found
        for config, column in messages.items():
            built = to_rows(table.append_column("messages", column))
            built = built.set_column(built.column_names.index("faces"), "faces", faces)
            built = built.slice(0, count) if config == "category" else built.take(np.arange(0, count, 2))
            pq.write_table(built.cast(FEATURES.arrow_schema), out / f"{config}-{split}.parquet")
            configs[config].append({"split": split, "path": f"{config}-{split}.parquet"})
    card = DatasetCardData(configs=[{"config_name": name, "data_files": files} for name, files in configs.items()])
    (out / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
    return out


def a_sample(pictures: Path, split: str, index: int, random) -> dict:
    file = pictures / f"{split}_{index}.png"
    Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).save(file)
    known = {"age": "20-39", "gender": "female", "race": None} if index % 3 else {}
    return {
        "id": f"raf_db/{split}/{index:05}",
        "source": "raf_db",
        "split": split,
        "media_type": "image",
        "paths": [str(file)],
        "label": LABELS[index % 7],
        "options": list(options_of("raf_db")),
        "attributes": {name: known.get(name) for name in ("age", "gender", "race")},
    }


def a_conversation(index: int) -> list[dict]:
    question = "Why? " * (1 + index % 5) + "What does the face show?"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "It seems to smile. " * (index % 3 + 1)},
    ]


def a_face(random) -> dict:
    points = (5 + 14 * random.random((68, 2))).tolist()
    embedding = random.standard_normal(128).tolist()
    return {
        "box": [4, 4, 20, 20],
        "score": 1.0,
        "landmarks": points,
        "embedding": embedding,
        "age": None,
        "gender": None,
    }


def without_dropout(checkpoint: Path, out: Path) -> Path:
    """The checkpoint with nothing random in its forward pass, so that runs can be compared to the last digits."""
    shutil.copytree(checkpoint, out)
    config = json.loads((out / "config.json").read_text())
    config["face_config"] |= {"dropout": 0.0, "evidence_dropout": 0.0}
    for part in ("qformer_config", "vision_config", "text_config"):
        config[part] |= {name: 0.0 for name in config[part] if "dropout" in name or name == "drop_path_rate"}
    (out / "config.json").write_text(json.dumps(config))
    return out


def recipe(checkpoint: Path, ferid: Path, output: Path, **changes) -> list[str]:
    """The quickstart's recipe in float32, three steps of it, with changes; `None` leaves a setting out."""
    short = {"max_steps": 3, "align_epochs": 0, "per_device_train_batch_size": 4, "logging_steps": 1}
    exact = {"dtype": "float32", "bf16": "false", "weight_decay": 0, "train_sampling_strategy": "group_by_length"}
    words = ["--config", str(ROOT / "configs/sft/quickstart.yaml"), "--model_name_or_path", str(checkpoint)]
    words += ["--dataset_name", str(ferid), "--output_dir", str(output)]
    changes = short | exact | changes
    for name, value in changes.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *map(str, values)] if value is not None else []
    return words


def train_here(*words: str):
    """`train_sft.main` in this process; returns its trainer."""
    trainers = []

    class Recorded(train_sft.FeridTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sft, "FeridTrainer", Recorded)
        patch.setattr(trl_utils, "_use_triton", trl_utils._use_triton)  # is put back
        try:
            train_sft.main(*read_recipe(words))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    return trainers[-1]


def environment(**variables: str) -> dict[str, str]:
    """In which commands find this Python and the checkout, even one that is not installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables


def launch(words: list[str], *options: str, **variables: str) -> None:
    """The documented command, from a folder that is not the checkout's."""
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]  # wherever PATH leads
    command = [*accelerate, "launch", *options, str(ROOT / "train_sft.py"), *words]
    process = subprocess.run(command, env=environment(**variables), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


@contextmanager
def started(words: list[str]):
    """`python train_sft.py` as a process of its own, which is killed at the end if it still runs."""
    command = [sys.executable, str(ROOT / "train_sft.py"), *words]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def losses(state) -> list[float]:
    """Of every step, from a trainer's state or the JSON of one."""
    history = state["log_history"] if isinstance(state, dict) else state.log_history
    return [line["loss"] for line in history if "loss" in line]
