"""Built FERIDs for the tests of generation: every picture is another, so that a server can tell samples apart."""

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData
from PIL import Image

from ferid_dataset.ferid import FEATURES, instruct, to_rows
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.base import SAMPLES

LABELS = ("happiness", "sadness", "anger")


def make_ferid(
    out: Path, stills: int = 0, clips: int = 0, *, source: str = "raf_db", frames: int = 4, side: int = 24
) -> Path:
    """Stills of one source and clips of DFEW in the split train, with their pictures in `<out>_pictures`."""
    pictures = out.with_name(f"{out.name}_pictures")
    pictures.mkdir(parents=True)
    random = np.random.default_rng(0)
    samples = []
    for i in range(stills + clips):
        video = i >= stills
        kind = {"source": "dfew" if video else source, "media_type": "video" if video else "image"}
        paths = [str(pictures / f"{i}_{frame}.png") for frame in range(frames if video else 1)]
        for path in paths:
            Image.fromarray(random.integers(0, 255, (side, side, 3), np.uint8)).save(path)
        sample = {"id": f"{kind['source']}/{i:05}", "split": "train", "paths": paths, "label": LABELS[i % 3]}
        samples.append(sample | kind | {"options": list(options_of(kind["source"]))})
    return write_ferid(out, samples)


def write_ferid(out: Path, samples: list[dict]) -> Path:
    out.mkdir(parents=True)
    files = []
    for split, shards in instruct(pa.Table.from_pylist(samples, SAMPLES), "category").items():
        # `datasets` takes a file of a name that it knows, in a folder of a name that it knows, from its cache
        name = f"{split}-{uuid.uuid4().hex}.parquet"
        with pq.ParquetWriter(out / name, FEATURES.arrow_schema) as writer:
            for shard in shards:
                writer.write_table(to_rows(shard).cast(FEATURES.arrow_schema))
        files.append({"split": split, "path": name})
    card = DatasetCardData(configs=[{"config_name": "category", "data_files": files}])
    (out / "README.md").write_text(f"---\n{card.to_yaml()}\n---\n", encoding="utf-8")
    return out


def annotations_of(folder: Path) -> dict[str, dict]:
    """The lines of the annotation files by id; none comes twice."""
    lines = [json.loads(line) for file in folder.glob("*/*.jsonl") for line in file.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}
