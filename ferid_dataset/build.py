"""`ferid build`: writes the folder that `load_dataset("ferid", "category")` reads.

    ferid/README.md                               dataset card; its YAML names the Parquet files of each config
    ferid/category/train-3f1c09a2b5d86e47.parquet rows; pictures by path, or inside with `embed`
    ferid/rejected.jsonl                          {"id": ..., "path": ..., "reason": ...}, a line a sample left out
    ferid/truncated.jsonl                         the same of clips of which only a part can be decoded
    ferid/faces/folder/train.parquet              cache of face priors, never published
    ferid/pictures/ferplus-<hash>/fer0000000.png  pictures that came as text (`fer2013.csv`)

File names carry a hash of their content: `datasets` caches by name and would serve the old rows of a rebuilt file. The
README is put in place last, so that at every moment the folder is either the old dataset or the new one.
"""

import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Image
from datasets.utils import tqdm

from ferid_dataset.dataset_card import MARK, build_facts, contents, dataset_card
from ferid_dataset.errors import FeridError
from ferid_dataset.faces import count_without_face, find_faces
from ferid_dataset.ferid import FEATURES, instruct, read_sources, to_rows
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import Choices, Reading, Rejected
from ferid_dataset.stats import count_rows
from ferid_dataset.verify import verify_media

CONFIGS = ("category", "conversation")
OWNED = {"README.md", "rejected.jsonl", "truncated.jsonl", "faces", "pictures", *CONFIGS}  # what a build may leave


@dataclass
class BuildSummary:
    """What a build did; `str()` of it is what `ferid build` prints."""

    out: Path
    readings: dict[str, Reading]  # by source, before anything was verified
    rejected: int  # samples that cannot be used, of all that were read
    truncated: int  # clips of which only a part can be decoded
    rows: dict[str, dict[str, int]] = field(default_factory=dict)  # {"category": {"train": 957, "test": 319}}
    looked: int = 0  # rows of `category` in which faces were looked for
    without_face: int = 0  # of those, without any
    drawn: bool = False  # all of them drawn faces, no photographs

    @property
    def read(self) -> int:
        return sum(reading.read for reading in self.readings.values())

    def __str__(self) -> str:
        lines = [f"{self.out}{' (drawn faces)' if self.drawn else ''}"]
        for name, reading in self.readings.items():
            lines.append(f"  {SOURCES[name].title}: {reading.layout}; {len(reading.samples):,} samples")
            lines += [f"    left out by its protocol: {count:,} ({why})" for why, count in reading.left_out.items()]
        for config, splits in self.rows.items():
            lines.append(f"  {config}: " + ", ".join(f"{split} {count:,}" for split, count in splits.items()))
        if self.rejected:
            lines.append(f"  rejected: {self.rejected:,} of {self.read:,}, see {self.out / 'rejected.jsonl'}")
        if self.truncated:
            lines.append(
                f"  truncated clips: {self.truncated:,}, of which the readable part is used, "
                f"see {self.out / 'truncated.jsonl'}"
            )
        if self.looked:
            lines.append(
                f"  no face found in {self.without_face:,} of {self.looked:,} samples; "
                "they use the model's no-face embedding"
            )
        return "\n".join(lines)


@dataclass
class _Usable:
    """What is left of the readings after all checks."""

    samples: pa.Table
    rejected: list[Rejected]
    truncated: list[Rejected] = field(default_factory=list)


def build_ferid(
    out: str | os.PathLike,
    *,
    choices: Choices | None = None,
    configs: Sequence[str] = CONFIGS,
    annotations: str | os.PathLike | None = None,
    faces: str | None = None,
    embed: bool = False,
    verify: bool = False,
    max_rejected: float = 0.05,
    num_proc: int | None = None,
    **roots: str | os.PathLike | None,
) -> BuildSummary:
    """Builds FERID from your copies of its source datasets; over an earlier build it replaces its rows.

    Args:
        out: the folder to write, new, empty or of an earlier build. Its name is what `load_dataset` is given.
        choices: the fold, the frames of a clip, and what else can be chosen; see [`Choices`].
        configs: which configs to write. `conversation` is left out when there are no annotations.
        annotations: a folder of `<source>/<split>.jsonl`, lines of `{"id", "messages"}`.
        faces: the face backend that looks for face priors, such as "dlib"; None: nobody looks.
        embed: writes the pictures into the Parquet files instead of their absolute paths; verifies them first.
        verify: decodes every picture and clip, and finds pictures of `folder` that are equal; without it, files must
            exist but are not opened.
        max_rejected: the share of samples that may be rejected, in [0, 1].
        num_proc: threads and processes to use; all cores by default.
        roots: the folder of each source, by its name: `raf_db="RAF-DB"`, `dfew="DFEW"`, `folder="photos"`, ...

    Raises:
        FeridError: nothing can be built, or (once everything else is built) more than `max_rejected` was rejected.
    """
    out = Path(os.path.abspath(out))
    _check_request(out, configs, max_rejected)
    choices = choices or Choices()
    if choices.pictures is None:
        choices = replace(choices, pictures=str(out / "pictures"))

    verify = verify or embed  # what is read anyway is not written unread
    readings = read_sources({name: root for name, root in roots.items() if root is not None}, choices)
    usable = _check_samples(readings, verify, faces, out / "faces", num_proc)
    faces_folder = str(out / "faces") if faces else None
    wanted = [config for config in configs if config == "category" or annotations or len(configs) == 1]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        work = Path(work)
        summary = BuildSummary(out, readings, rejected=len(usable.rejected), truncated=len(usable.truncated))
        rows = {config: instruct(usable.samples, config, annotations and str(annotations)) for config in wanted}
        counts = count_rows(
            {config: {split: pa.concat_tables(rows[config][split]) for split in rows[config]} for config in rows}
        )
        summary.rows, summary.drawn = counts["total"]["instructions"], counts["drawn"]
        found: dict[str, Counter] = {config: Counter() for config in wanted}
        files = {
            config: write_config(rows[config], work / config, embed, faces_folder, found[config]) for config in rows
        }
        summary.looked, summary.without_face = found[wanted[0]]["looked"], found[wanted[0]]["without"]
        _write_lines(usable.rejected, work / "rejected.jsonl")
        _write_lines(usable.truncated, work / "truncated.jsonl")
        card = dataset_card(
            out.name,
            files,
            counts,
            build_facts(choices, readings, usable.rejected, usable.truncated),
            contents(work / config / name for config, names in files.items() for name in names.values()),
        )
        (work / "README.md").write_text(card, encoding="utf-8")
        publish(work, out, files)

    if summary.rejected > max_rejected * summary.read:
        raise FeridError(
            f"{summary.rejected} of {summary.read} samples were rejected, over {max_rejected:.0%}: "
            f"{out / 'rejected.jsonl'} says why; mend or remove them, or raise --max-rejected "
            f"(the other {len(usable.samples)} are built)"
        )
    return summary


def _check_request(out: Path, configs: Sequence[str], max_rejected: float) -> None:
    if unknown := set(configs) - set(CONFIGS):
        raise FeridError(f"there is no config {sorted(unknown)[0]!r}: choose from {', '.join(CONFIGS)}")
    if not configs:
        raise FeridError(f"no config to build: choose from {', '.join(CONFIGS)}")
    if not 0 <= max_rejected <= 1:
        raise FeridError(f"the share of rejected samples must lie between 0 and 1, not {max_rejected}: 0.05 is 5 %")
    if out.exists() and not out.is_dir():
        raise FeridError(f"{out} is a file: give the name of a folder")
    readme = out / "README.md"
    ours = MARK in readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else False
    if out.exists() and not ours and not {entry.name for entry in out.iterdir()} <= OWNED - {"README.md"}:
        raise FeridError(f"{out} is not empty and holds no FERID: give another folder, nothing was touched")


def _check_samples(
    readings: dict[str, Reading], verify: bool, faces: str | None, cache: Path, num_proc: int | None
) -> _Usable:
    """The samples after all checks: each that was read is usable, rejected, or left out by its protocol."""
    samples = pa.concat_tables([reading.samples for reading in readings.values()])
    usable = _Usable(samples, [row for reading in readings.values() for row in reading.rejected])
    if verify:
        usable.samples, broken, usable.truncated = verify_media(samples, num_proc)
        usable.rejected += broken
    if faces and len(usable.samples):
        usable.samples, broken = find_faces(usable.samples, faces, cache, num_proc)
        usable.rejected += broken
    left_out = sum(sum(reading.left_out.values()) for reading in readings.values())
    read = sum(reading.read for reading in readings.values())
    assert read == len(usable.samples) + len(usable.rejected) + left_out, "a sample was lost"
    if not len(usable.samples):
        first = f", such as {usable.rejected[0].path}: {usable.rejected[0].reason}" if usable.rejected else ""
        raise FeridError(f"none of the {read} samples can be used{first}")
    return usable


def write_config(
    splits: dict[str, list[pa.Table]], folder: Path, embed: bool, faces: str | None, found: Counter
) -> dict[str, str]:
    """Writes the rows of a config as one Parquet file a split; returns {split: file name}.

    Args:
        splits: samples with their messages, in shards, as `ferid.instruct` returns them.
        folder: the folder of the config, which is made.
        embed: whether the pictures are written in.
        faces: the folder of the face priors.
        found: counts the rows in which somebody looked for faces ("looked"), and those "without" any.
    """
    folder.mkdir()
    metadata = {"info": {"features": _in_old_spelling(FEATURES.to_dict())}}
    schema = FEATURES.arrow_schema.with_metadata({"huggingface": json.dumps(metadata)})
    names = {}
    total = sum(len(shard) for shards in splits.values() for shard in shards)
    with tqdm(total=total, desc=f"write {folder.name}", unit=" rows") as bar:
        for split, shards in splits.items():
            file = folder / f"{split}.parquet"
            with pq.ParquetWriter(file, schema) as writer:
                for shard in shards:
                    rows = to_rows(shard, faces)
                    if faces:
                        found.update(looked=len(rows) - rows["faces"].null_count, without=count_without_face(rows))
                    for batch in rows.to_batches(max_chunksize=100 if embed else len(rows)):
                        table = pa.Table.from_batches([batch])
                        table = _embed(table) if embed else table
                        writer.write_table(table.cast(schema))
                        bar.update(len(batch))
            names[split] = f"{split}-{content_hash(file)}.parquet"
            file.rename(folder / names[split])
    return names


def _embed(rows: pa.Table) -> pa.Table:
    """Puts the pictures into the rows: files as they are, frames of video files as PNG."""
    images = rows["images"].combine_chunks()
    pictures = pa.array(
        [_encoded(picture["path"]) for picture in images.flatten().to_pylist()], images.type.value_type
    )
    offsets = pa.compute.subtract(images.offsets, images.offsets[0])
    return rows.set_column(rows.column_names.index("images"), "images", pa.ListArray.from_arrays(offsets, pictures))


def _encoded(path: str) -> dict[str, Any]:
    if not path.startswith("frame://"):
        return {"bytes": Path(path).read_bytes(), "path": os.path.basename(path)}
    buffer = io.BytesIO()
    Image().decode_example({"path": path, "bytes": None}).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _in_old_spelling(feature: Any) -> Any:
    """Lists as `datasets` wrote them before 4.0, which every release reads: [x], or a Sequence of fixed length."""
    if not isinstance(feature, dict):
        return feature
    feature = {key: _in_old_spelling(value) for key, value in feature.items()}
    if feature.get("_type") != "List":
        return feature
    return feature | {"_type": "Sequence"} if "length" in feature else [feature["feature"]]


def content_hash(file: Path) -> str:
    """16 hexadecimal digits that change with the bytes of the file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _write_lines(rows: list[Rejected], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row._asdict()) + "\n" for row in sorted(rows, key=itemgetter(0, 1, 2)))


def publish(work: Path, out: Path, files: dict[str, dict[str, str]]) -> None:
    """Moves what was written in `work` to its place; until its README is replaced, an earlier build stays whole."""
    for config, names in files.items():
        (out / config).mkdir(parents=True, exist_ok=True)
        for name in names.values():
            (work / config / name).replace(out / config / name)
    for file in work.glob("*.jsonl"):
        file.replace(out / file.name)
    (work / "README.md").replace(out / "README.md")
    for config in CONFIGS:
        for file in (out / config).glob("*.parquet"):
            if file.name not in files.get(config, {}).values():
                file.unlink()
        if config not in files and (out / config).is_dir() and not any((out / config).iterdir()):
            (out / config).rmdir()
