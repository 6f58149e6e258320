"""What a built FERID holds, counted from its Parquet files, a column at a time; no picture is opened.

    count_ferid("ferid") ->
        {"drawn": False,
         "sources": [{"source": "raf_db", "title": "RAF-DB", "options": ["surprise", "fear", ...],
                      "samples": {"train": 12271, "test": 3068},
                      "classes": {"train": {"surprise": 1290, "fear": 281, ...}, "test": {...}},
                      "long_tail_ratio": 16.98,
                      "instructions": {"category": {"train": 12271, "test": 3068}, "conversation": {"train": 12100}}},
                     ...],
         "total": {"samples": {"train": 12271, "test": 3068}, "instructions": {...}}}

The table is that of the FERID figure `Statistics.png`: one row a source, in its order. It counts the train split, and
so do the instructions and the long-tail ratio, which is the largest class of the train split over the smallest.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from huggingface_hub import metadata_load

from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import SPLITS

COUNTED = ["id", "source", "label", "options"]


def count_ferid(out: str | os.PathLike) -> dict[str, Any]:
    """
    Count the samples, classes and instructions of a built FERID.

    Args:
        out (`str` or `os.PathLike`):
            The folder that `ferid build` wrote.

    Returns:
        `dict`, ready for JSON, as above:
            - **sources** (`list[dict]`): in the order of the figure. `long_tail_ratio` is over the classes that occur,
              `None` without a train split.
            - **total** (`dict`): sums over the sources.
            - **drawn** (`bool`): all of them are drawn faces, no photographs.

    Raises:
        [`FeridError`]: `out` is no FERID, or one without rows.
    """
    files = ferid_files(out)
    stats = count_rows({c: {s: read_rows(file, COUNTED) for s, file in files[c].items()} for c in files})
    if not stats["sources"]:
        raise FeridError(f"{out} holds no rows: build it again")
    return stats


def count_rows(rows: Mapping[str, Mapping[str, pa.Table]]) -> dict[str, Any]:
    """What `count_ferid` returns, of rows by config and split with at least the columns `COUNTED`."""
    counts = [
        {"config": config, "split": split, **count}
        for config, splits in rows.items()
        for split, table in splits.items()
        for count in _group(table)
    ]
    samples = sample_config(rows)
    names = in_order({count["source"] for count in counts}, SOURCES)
    sources = [_count_source(name, [count for count in counts if count["source"] == name], samples) for name in names]
    ids = (name.as_py() for table in rows[samples].values() for name in table["id"])
    return {
        "drawn": are_drawn(ids),  # the first photograph ends it
        "sources": sources,
        "total": {
            "samples": _sums(source["samples"] for source in sources),
            "instructions": {
                config: _sums(source["instructions"].get(config, {}) for source in sources) for config in rows
            },
        },
    }


def table_rows(stats: dict[str, Any], number: Callable[[int], str] = "{:,}".format) -> list[list[str]]:
    """The cells of the table, a row a source, then the totals: dataset, annotation, number of train, validation and
    test samples, category and conversation instructions of the train split, long-tail ratio of the train split.

    Args:
        stats: what `count_ferid` returned.
        number: writes a count; where there are none, the figure has "-".
    """
    rows = []
    for source in [*stats["sources"], stats["total"]]:
        ratio, options = source.get("long_tail_ratio"), source.get("options")
        numbers = [source["samples"].get(split) for split in SPLITS]
        numbers += [source["instructions"].get(config, {}).get("train") for config in ("category", "conversation")]
        rows.append(
            [
                source.get("title", "FERID"),
                f"{len(options)} expression{'s' if len(options) > 1 else ''}" if options else "",
                *(number(count) if count else "-" for count in numbers),
                f"{ratio:.1f}" if ratio else "-",
            ]
        )
    return rows


def ferid_files(out: str | os.PathLike) -> dict[str, dict[str, Path]]:
    """The Parquet files that the README of a FERID names: {"category": {"train": Path(...), "test": ...}, ...}.

    Raises:
        FeridError: `out` is missing or no FERID.
    """
    out = Path(out)
    if not out.is_dir():
        raise FeridError(f"there is no folder {out}: give the folder that ferid build wrote")
    try:
        files = {
            config["config_name"]: {file["split"]: out / file["path"] for file in config["data_files"]}
            for config in metadata_load(out / "README.md")["configs"]
        }
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # no card, or that of something else
        files = {}
    if not files:
        raise FeridError(f"{out} holds no FERID: give the folder that ferid build wrote")
    return files


def sample_config(configs: Iterable[str]) -> str:
    """The config whose rows are all samples: `category`, where it was built."""
    return "category" if "category" in configs else next(iter(configs))


def read_rows(file: Path, columns: list[str]) -> pa.Table:
    """Some columns of a Parquet file.

    Raises:
        FeridError: the file is missing, broken, or of another dataset.
    """
    try:
        return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise FeridError(f"{file} is missing or holds no rows of FERID: build it again") from error


def in_order(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """`names` in the given order; those that it does not know come last, by name."""
    place = {name: index for index, name in enumerate(order)}
    return sorted(names, key=lambda name: (place.get(name, len(place)), name))


def _group(rows: pa.Table) -> list[dict[str, Any]]:
    """{"source": "raf_db", "options": "surprise,fear,...", "label": "fear", "count_all": 281} for all that occur."""
    columns = {name: rows[name] for name in ("source", "label")}
    columns["options"] = pc.binary_join(rows["options"], ",")
    table = pa.table(columns)
    return table.group_by(table.column_names, use_threads=False).aggregate([([], "count_all")]).to_pylist()


def _count_source(name: str, counts: list[dict[str, Any]], samples: str) -> dict[str, Any]:
    """All of a source; its samples and classes are counted in the rows of the config `samples`."""
    instructions: dict[str, Counter] = {}
    classes: dict[str, Counter] = {}
    for count in counts:
        instructions.setdefault(count["config"], Counter())[count["split"]] += count["count_all"]
        if count["config"] == samples:
            classes.setdefault(count["split"], Counter())[count["label"]] += count["count_all"]
    train = classes.get("train")
    return {
        "source": name,
        "title": SOURCES[name].title if name in SOURCES else name,
        "options": list(dict.fromkeys(option for count in counts for option in count["options"].split(","))),
        "samples": {split: labels.total() for split, labels in classes.items()},
        "classes": {
            split: {label: labels[label] for label in in_order(labels, LABELS)} for split, labels in classes.items()
        },
        "long_tail_ratio": max(train.values()) / min(train.values()) if train else None,
        "instructions": {config: dict(splits) for config, splits in instructions.items()},
    }


def _sums(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = sum(map(Counter, counts), Counter())
    return {split: total[split] for split in SPLITS if split in total}
