"""`ferid build`: writes the folder that `load_dataset("ferid", "category")` reads.

    ferid/README.md                               dataset card; its YAML names the Parquet files of each config
    ferid/category/train-3f1c09a2b5d86e47.parquet rows; pictures by path, or inside with `embed`
    ferid/rejected.jsonl                          {"id": ..., "path": ..., "reason": ...}, a line a picture left out
    ferid/faces/folder/train.parquet              cache of face priors, never published

File names carry a hash of their content: `datasets` caches by name and would serve the old rows of a rebuilt file. The
README is put in place last, so that at every moment the folder is either the old dataset or the new one.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCardData

from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.errors import FeridError
from ferid_dataset.faces import count_without_face, find_faces
from ferid_dataset.ferid import Ferid
from ferid_dataset.sources.base import Reading, Rejected
from ferid_dataset.sources.folder import read_folder
from ferid_dataset.verify import verify_pictures

CONFIGS = ("category", "conversation")
OWNED = {"README.md", "rejected.jsonl", "faces", *CONFIGS}  # what a build may leave in its folder
MARK = "<!-- written by ferid build -->"  # tells a folder of ours from any other, which is never overwritten


@dataclass
class BuildSummary:
    """What a build did; `str()` of it is what `ferid build` prints."""

    out: Path
    rows: dict[str, dict[str, int]]  # {"category": {"train": 957, "test": 319}}
    options: list[str]
    read: int  # pictures found
    rejected: int  # of those, left out
    looked: int = 0  # rows of `category` in which faces were looked for
    without_face: int = 0  # of those, without any
    drawn: bool = False  # all of them drawn faces, no photographs

    def __str__(self) -> str:
        lines = [f"{self.out}: " + ", ".join(self.options) + (" (drawn faces)" if self.drawn else "")]
        for config, splits in self.rows.items():
            lines.append(f"  {config}: " + ", ".join(f"{split} {count:,}" for split, count in splits.items()))
        if self.rejected:
            lines.append(f"  left out: {self.rejected:,} of {self.read:,} pictures, see {self.out / 'rejected.jsonl'}")
        if self.looked:
            lines.append(
                f"  no face found in {self.without_face:,} of {self.looked:,} pictures; "
                "they use the model's no-face embedding"
            )
        return "\n".join(lines)


def build_ferid(
    out: str | os.PathLike,
    *,
    folder: str | os.PathLike | None = None,
    configs: Sequence[str] = CONFIGS,
    annotations: str | os.PathLike | None = None,
    faces: str | None = None,
    embed: bool = False,
    verify: bool = True,
    max_rejected: float = 0.05,
    num_proc: int | None = None,
) -> BuildSummary:
    """Builds FERID from a folder of labelled pictures; over an earlier build it replaces its rows.

    Args:
        out: the folder to write, new, empty or of an earlier build. Its name is what `load_dataset` is given.
        folder: `folder/{train,test}/<emotion>/*.jpg`, see `sources/folder.py`.
        configs: which configs to write. `conversation` is left out when there are no annotations.
        annotations: a folder of `<source>/<split>.jsonl`, lines of `{"id", "messages"}`.
        faces: the face backend that looks for face priors, such as "dlib"; None: nobody looks.
        embed: writes the pictures into the Parquet files instead of their absolute paths.
        verify: decodes every picture, and finds pictures that are equal; without it no picture is opened.
        max_rejected: the share of pictures that may be left out, in [0, 1].
        num_proc: threads and processes to use; all cores by default.

    Raises:
        FeridError: nothing can be built, or (once everything else is built) more than `max_rejected` was left out.
    """
    out = Path(os.path.abspath(out))
    _check_request(out, folder, configs, max_rejected)

    samples, rejected = _usable_samples(folder, verify, faces, out / "faces", num_proc)
    read = len(samples) + len(rejected)

    sources = {"annotations": annotations and str(annotations), "faces": faces and str(out / "faces")}
    wanted = [config for config in configs if config == "category" or annotations or len(configs) == 1]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        work = Path(work)
        built = {config: _build_config(config, samples, sources, work) for config in wanted}
        files = {config: _write_config(splits, work / config, embed) for config, splits in built.items()}
        summary = BuildSummary(
            out=out,
            rows={config: {split: len(rows) for split, rows in splits.items()} for config, splits in built.items()},
            options=samples["options"][0].as_py(),
            read=read,
            rejected=len(rejected),
            drawn=are_drawn(samples["id"].to_pylist()),
        )
        if faces:
            tables = [rows.data.table for rows in built[wanted[0]].values()]
            summary.looked = sum(map(len, tables))
            summary.without_face = sum(map(count_without_face, tables))
        _write_rejected(rejected, work / "rejected.jsonl")
        (work / "README.md").write_text(_card(summary, files, embed), encoding="utf-8")
        _publish(work, out, files)

    if len(rejected) > max_rejected * read:
        raise FeridError(
            f"{len(rejected)} of {read} pictures were left out, over {max_rejected:.0%}: {out / 'rejected.jsonl'} "
            f"says why; mend or remove them, or raise --max-rejected (the other {len(samples)} are built)"
        )
    return summary


def _check_request(out: Path, folder: str | os.PathLike | None, configs: Sequence[str], max_rejected: float) -> None:
    if folder is None:
        raise FeridError("nothing to build from: give a folder of labelled pictures (--folder ROOT)")
    if unknown := set(configs) - set(CONFIGS):
        raise FeridError(f"there is no config {sorted(unknown)[0]!r}: choose from {', '.join(CONFIGS)}")
    if not configs:
        raise FeridError(f"no config to build: choose from {', '.join(CONFIGS)}")
    if not 0 <= max_rejected <= 1:
        raise FeridError(f"the share of rejected pictures must lie between 0 and 1, not {max_rejected}: 0.05 is 5 %")
    if out.exists() and not out.is_dir():
        raise FeridError(f"{out} is a file: give the name of a folder")
    readme = out / "README.md"
    ours = MARK in readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else False
    if out.exists() and not ours and not {entry.name for entry in out.iterdir()} <= OWNED - {"README.md"}:
        raise FeridError(f"{out} is not empty and holds no FERID: give another folder, nothing was touched")


def _usable_samples(
    folder: str | os.PathLike, verify: bool, faces: str | None, cache: Path, num_proc: int | None
) -> Reading:
    """The `Reading` of a folder after all checks: every picture that was found is in it once, usable or rejected."""
    samples, rejected = read_folder(folder)
    read = len(samples) + len(rejected)
    if verify:
        samples, broken = verify_pictures(samples, num_proc)
        rejected += broken
    if faces and len(samples):
        samples, broken = find_faces(samples, faces, cache, num_proc)
        rejected += broken
    assert read == len(samples) + len(rejected), "a picture was lost"
    if not len(samples):
        first = rejected[0]
        raise FeridError(f"none of the {read} pictures in {folder} can be used, such as {first.path}: {first.reason}")
    return Reading(samples, rejected)


def _build_config(config: str, samples: pa.Table, sources: dict, work: Path) -> dict[str, Dataset]:
    """The rows of a config by split, in Arrow files that last as long as `work`."""
    builder = Ferid(config_name=config, samples=samples, cache_dir=str(work / "cache"), **sources)
    builder.download_and_prepare()
    return builder.as_dataset()


def _write_config(splits: dict[str, Dataset], folder: Path, embed: bool) -> dict[str, str]:
    """One Parquet file a split; returns {split: file name}."""
    folder.mkdir()
    names = {}
    for split, rows in splits.items():
        file = folder / f"{split}.parquet"
        metadata = {"info": {"features": _in_old_spelling(rows.features.to_dict())}}
        schema = rows.features.arrow_schema.with_metadata({"huggingface": json.dumps(metadata)})
        with pq.ParquetWriter(file, schema) as writer:
            for table in rows.with_format("arrow").iter(batch_size=100 if embed else 10_000):
                table = embed_table_storage(table) if embed else table
                writer.write_table(table.replace_schema_metadata(schema.metadata))
        names[split] = f"{split}-{_content_hash(file)}.parquet"
        file.rename(folder / names[split])
    return names


def _in_old_spelling(feature: Any) -> Any:
    """Lists as `datasets` wrote them before 4.0, which every release reads: [x], or a Sequence of fixed length."""
    if not isinstance(feature, dict):
        return feature
    feature = {key: _in_old_spelling(value) for key, value in feature.items()}
    if feature.get("_type") != "List":
        return feature
    return feature | {"_type": "Sequence"} if "length" in feature else [feature["feature"]]


def _content_hash(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _write_rejected(rejected: list[Rejected], file: Path) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row._asdict()) + "\n" for row in sorted(rejected))


def _card(summary: BuildSummary, files: dict[str, dict[str, str]], embed: bool) -> str:
    """The dataset card: YAML that `load_dataset` reads, and what a reader must know."""
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": f"{config}/{name}"} for split, name in names.items()],
            # Names, not patterns: `datasets` keys its cache by what stands here.
            **({"default": True} if index == 0 else {}),
        }
        for index, (config, names) in enumerate(files.items())
    ]
    data = DatasetCardData(
        pretty_name="FERID",
        task_categories=["image-text-to-text", "image-classification"],
        language=["en"],
        tags=["facial-expression-recognition", "emotion"],
        configs=configs,
    )
    counts = "\n".join(
        f"| {config} | {split} | {count:,} |"
        for config, splits in summary.rows.items()
        for split, count in splits.items()
    )
    media = "The pictures are inside the Parquet files."
    if not embed:
        media = "Pictures are not redistributed: rows hold their absolute paths and load on the machine of the build."
    return f"""---
{data.to_yaml()}
---
{MARK}

# FERID: Facial Expression Recognition Instruction Dataset

```python
from datasets import load_dataset

load_dataset("{summary.out.name}", "{next(iter(files))}")  # in the folder that holds {summary.out.name}/
```

| config | split | rows |
|---|---|---|
{counts}

{"These are drawn faces, no photographs: what is measured on them says nothing about people." if summary.drawn else ""}
Expressions: {", ".join(summary.options)}.
Of {summary.read:,} pictures {summary.rejected:,} were left out; `rejected.jsonl` says why.

{media}
`faces/`, where it is, caches face priors. Face embeddings identify people: they are biometric data and must stay
on the machine.
"""


def _publish(work: Path, out: Path, files: dict[str, dict[str, str]]) -> None:
    """Moves a finished build to its place; until its README is replaced, an earlier build stays whole."""
    for config, names in files.items():
        (out / config).mkdir(parents=True, exist_ok=True)
        for name in names.values():
            (work / config / name).replace(out / config / name)
    (work / "rejected.jsonl").replace(out / "rejected.jsonl")
    (work / "README.md").replace(out / "README.md")
    for config in CONFIGS:
        for file in (out / config).glob("*.parquet"):
            if file.name not in files.get(config, {}).values():
                file.unlink()
        if config not in files and (out / config).is_dir() and not any((out / config).iterdir()):
            (out / config).rmdir()
