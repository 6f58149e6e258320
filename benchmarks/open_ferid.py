"""Opening a built FERID and reading 10,000 random rows without media, against a JSON file of the same instructions.

    OMP_NUM_THREADS=1 python benchmarks/open_ferid.py

The rows are a `category` build in the size of the paper's: 376,257 train samples of six sources, 8 frames a clip, with
made-up paths that nobody opens, in a temporary folder. The other file is what the training scripts of LLaVA and its
kin read: `json.load` of one list of {"id", "image" or "video", "conversations"}, and then an index. "First" converts
Parquet to Arrow, which happens once a build; "again" is every later opening. Both then read the same rows one at a
time, as a loader does. The rounds take turns in one process; seconds are CPU time of all threads, and wall time.
Expected: "again" takes less than 1 s.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, disable_progress_bars, load_dataset
from huggingface_hub import DatasetCardData

from ferid_dataset.ferid import FEATURES, instruct, to_rows
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.base import SAMPLES

TRAIN = {"ferplus": 28558, "raf_db": 12271, "affectnet": 287651, "dfew": 9356, "ferv39k": 31088, "mafw": 7333}
CLIPS = {"dfew", "ferv39k", "mafw"}
ROWS, ROUNDS = 10_000, 5


def made_up_samples() -> pa.Table:
    rows = []
    for source, count in TRAIN.items():
        options = list(options_of(source))
        for i in range(count):
            name = f"/data/expressions/{source}/media/train/{i:06}"
            clip = {"media_type": "video", "paths": [f"{name}/{frame}.jpg" for frame in range(8)]}
            still = {"media_type": "image", "paths": [f"{name}.jpg"]}
            label = "happiness" if i % 2 else "sadness"
            sample = {"id": f"{source}/{i:06}", "source": source, "split": "train", "label": label, "options": options}
            rows.append(sample | (clip if source in CLIPS else still))
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def write_both(out: Path) -> tuple[Path, Path]:
    """A FERID as `ferid build` writes it, and the JSON file."""
    ferid, listed = out / "ferid", []
    ferid.mkdir()
    with pq.ParquetWriter(ferid / "train.parquet", FEATURES.arrow_schema) as writer:
        for shard in instruct(made_up_samples(), "category")["train"]:
            rows = to_rows(shard).cast(FEATURES.arrow_schema)
            writer.write_table(rows)
            for row in rows.select(["id", "media_type", "images", "messages"]).to_pylist():
                turns = zip(("human", "gpt"), row["messages"], strict=True)
                path = row["images"][0]["path"]
                conversations = [{"from": speaker, "value": turn["content"]} for speaker, turn in turns]
                listed.append({"id": row["id"], row["media_type"]: path, "conversations": conversations})
    files = [{"split": "train", "path": "train.parquet"}]
    card = DatasetCardData(configs=[{"config_name": "category", "data_files": files}])
    (ferid / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
    (out / "ferid.json").write_text(json.dumps(listed), encoding="utf-8")
    return ferid, out / "ferid.json"


def open_ferid(ferid: Path, cache: str) -> Dataset:
    return load_dataset(str(ferid), "category", split="train", cache_dir=cache).remove_columns("images")


def measure(open_rows: Callable[[], Sequence[dict]], wanted: list[int]) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, and of these the seconds until the rows are open."""
    cpu, wall = time.process_time(), time.perf_counter()
    rows = open_rows()
    opened = time.perf_counter() - wall
    for index in wanted:
        rows[index]
    return time.process_time() - cpu, time.perf_counter() - wall, opened


def main() -> None:
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        ferid, listed = write_both(Path(folder))
        seconds: dict[str, list[tuple[float, float, float]]] = {"first": [], "again": [], "JSON": []}
        for round_ in range(ROUNDS):
            wanted = random.Random(round_).sample(range(sum(TRAIN.values())), ROWS)
            cache = f"{folder}/cache_{round_}"
            seconds["first"].append(measure(lambda cache=cache: open_ferid(ferid, cache), wanted))
            seconds["again"].append(measure(lambda cache=cache: open_ferid(ferid, cache), wanted))
            seconds["JSON"].append(measure(lambda: json.loads(listed.read_text(encoding="utf-8")), wanted))
    for name, rounds in seconds.items():
        cpu, wall, opened = map(statistics.median, zip(*rounds, strict=True))
        print(f"{name:5}  {cpu:5.2f} CPU-s, {wall:5.2f} s, of these {opened:5.2f} s to open")
    for name in ("first", "again"):
        ratios = [json_[0] / ours[0] for json_, ours in zip(seconds["JSON"], seconds[name], strict=True)]
        print(f"JSON / {name}: {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
