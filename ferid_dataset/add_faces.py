"""`ferid faces`: looks for faces in a built FERID, and joins what it finds to the rows of every config.

    add_faces("ferid", "dlib")  ->  AddedFaces(looked=1276, without_face=61, unreadable=[])

What is found is kept in `ferid/faces/`: a sample is looked at once, and again only when its picture has changed. A run
that was stopped takes up where it was, and a second run has nothing to do.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ferid_dataset.build import publish, write_config
from ferid_dataset.dataset_card import contents, dataset_card, read_build_facts
from ferid_dataset.errors import FeridError
from ferid_dataset.faces import find_faces
from ferid_dataset.ferid import ROWS_PER_SHARD
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import Rejected
from ferid_dataset.stats import count_rows, ferid_files, read_rows, sample_config

COLUMNS = ["id", "source", "media_type", "images", "messages", "label", "options", "attributes"]


class AddedFaces(NamedTuple):
    """What was found; `str()` of it is what `ferid faces` prints."""

    looked: int  # samples
    without_face: int  # of those, without any face in any frame
    unreadable: list[Rejected]  # samples whose pictures do not open: their rows stay, without faces

    def __str__(self) -> str:
        lines = [f"no face found in {self.without_face:,} of {self.looked:,} samples; they use the no-face embedding"]
        if self.unreadable:
            first = self.unreadable[0]
            lines.append(f"not readable: {len(self.unreadable):,}, such as {first.path}: build again with --verify")
        return "\n".join(lines)


def add_faces(
    out: str | os.PathLike, analyzer: str, num_proc: int | None = None, cropped: Collection[str] = ()
) -> AddedFaces:
    """Fills the column `faces` of a built FERID.

    Args:
        out: the folder that `ferid build` wrote, with its pictures by path.
        analyzer: the face backend, a name that `load_face_analyzer` takes, such as "dlib".
        num_proc: worker processes of one thread each; all cores by default.
        cropped: sources whose pictures are face crops, such as "raf_db": no detector looks at them.

    Raises:
        FeridError: `out` is no FERID or holds its pictures inside; no such backend or source.
    """
    if unknown := set(cropped) - set(SOURCES):
        raise FeridError(f"there is no source {sorted(unknown)[0]!r}: choose from {', '.join(SOURCES)}")
    out = Path(os.path.abspath(out))
    files, facts = ferid_files(out), read_build_facts(out)
    if "pictures" in contents(file for splits in files.values() for file in splits.values()):
        raise FeridError(f"{out} holds its pictures inside: build it with --faces instead")
    rows = {config: {split: _samples(file, split) for split, file in files[config].items()} for config in files}
    every = pa.concat_tables([table for splits in rows.values() for table in splits.values()])
    first = np.unique(every["id"].to_numpy(zero_copy_only=False), return_index=True)[1]  # in whichever config
    samples = every.take(first).drop_columns("messages")
    _, unreadable = find_faces(samples, analyzer, out / "faces", num_proc, cropped)
    found = {config: Counter() for config in rows}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        work = Path(work)
        names = {
            config: write_config(_shards(splits), work / config, False, str(out / "faces"), found[config])
            for config, splits in rows.items()
        }
        inside = contents(work / config / name for config in names for name in names[config].values())
        card = dataset_card(out.name, names, count_rows(rows), facts, inside)
        (work / "README.md").write_text(card, encoding="utf-8")
        publish(work, out, names)
    counts = found[sample_config(rows)]
    return AddedFaces(counts["looked"], counts["without"], unreadable)


def _samples(file: Path, split: str) -> pa.Table:
    """The rows of a Parquet file as samples with their messages, as `ferid.instruct` returns them."""
    rows = read_rows(file, COLUMNS)
    images = rows["images"].combine_chunks()
    paths = pa.ListArray.from_arrays(images.offsets, images.values.field("path"))
    columns = {name: rows[name] for name in COLUMNS if name != "images"}
    return pa.table(columns | {"paths": paths, "split": pa.repeat(split, len(rows))})


def _shards(splits: dict[str, pa.Table]) -> dict[str, list[pa.Table]]:
    return {
        split: [rows.slice(start, ROWS_PER_SHARD) for start in range(0, len(rows), ROWS_PER_SHARD)]
        for split, rows in splits.items()
    }
