"""Which samples of a built FERID get a conversation, and their rows, a few at a time.

    choice = choose(Path("ferid"), splits=["train"], sources=(), per_class=None, limit=1000, shard=None)
    choice.table                     id, source, split, label and media type of those chosen
    for row in rows(choice, wanted): {"id": "raf_db/train_00001", "split": "train", "images": [{"bytes": None,
                                      "path": "..."}], "label": "sadness", "options": [...], "attributes": {...}, ...}

A choice is the same on every machine and every day: samples are drawn by a hash of their ids. A larger `limit` or
`per_class` keeps all that a smaller one has chosen.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ferid_dataset.errors import FeridError
from ferid_dataset.stats import ferid_files, read_rows, sample_config

WITHOUT_CONVERSATIONS = "ferplus"  # 48 x 48 grey pictures, of which the paper has none
COLUMNS = ["id", "source", "media_type", "images", "label", "options", "attributes"]
ROWS_IN_MEMORY = 100  # with pictures inside, a row has up to megabytes


class Choice(NamedTuple):
    """The chosen samples."""

    table: pa.Table  # id, source, split, label, media_type
    files: dict[str, Path]  # the Parquet file of each split
    every: pa.Table  # the same columns of all samples of these splits, chosen or not


def choose(
    out: Path,
    *,
    splits: Sequence[str] = ("train",),
    sources: Sequence[str] = (),
    per_class: int | None = None,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> Choice:
    """
    Args:
        out: the folder that `ferid build` wrote.
        splits, sources: those wanted; no split: all; no source: all but FERPlus.
        per_class: at most so many of each label of each source and split.
        limit: at most so many altogether, evenly over the sources, and within a source evenly over its labels.
        shard: (i, n), the i-th of n parts, counted from 1; the parts together are the whole choice.

    Raises:
        FeridError: `out` is no FERID, or has none of these.
    """
    files = ferid_files(out)
    files = files[sample_config(files)]
    if unknown := [split for split in splits if split not in files]:
        raise FeridError(f"{out} has no split {unknown[0]!r}: choose from {', '.join(files)}")
    files = {split: files[split] for split in splits or files}
    tables = []
    for split, file in files.items():
        table = read_rows(file, ["id", "source", "label", "media_type"])
        tables.append(table.append_column("split", pa.repeat(split, len(table))))
    every = pa.concat_tables(tables).combine_chunks()
    known = pc.unique(every["source"]).to_pylist()
    if unknown := [source for source in sources if source not in known]:
        raise FeridError(f"{out} has no source {unknown[0]!r}: choose from {', '.join(known)}")
    wanted = list(sources) or [source for source in known if source != WITHOUT_CONVERSATIONS]
    table = every.filter(pc.is_in(every["source"], pa.array(wanted, pa.string())))
    if per_class or limit or shard:
        table = table.filter(pa.array(_draw(table, per_class, limit, shard)))
    return Choice(table, files, every)


def _draw(table: pa.Table, per_class: int | None, limit: int | None, shard: tuple[int, int] | None) -> np.ndarray:
    """Which rows are drawn."""
    hashes = np.array([zlib.crc32(id_.encode()) for id_ in table["id"].to_pylist()], np.uint32)
    drawn = np.ones(len(table), bool)
    if per_class or limit:
        ranks = _ranks(hashes, table, ["source", "split", "label"])
        drawn &= ranks < (per_class or len(table))
        if limit:
            places = np.full(len(table), len(table))
            places[drawn] = _ranks(ranks[drawn], table.filter(pa.array(drawn)), ["source"])
            drawn[np.argsort(places, kind="stable")[limit:]] = False
    if shard:
        drawn &= hashes % shard[1] == shard[0] - 1
    return drawn


def _ranks(keys: np.ndarray, table: pa.Table, columns: list[str]) -> np.ndarray:
    """The place of each row, by its key, among the rows that agree in these columns: 0, 1, 2, ..."""
    groups = pc.binary_join_element_wise(*(table[column] for column in columns), "\n").combine_chunks()
    groups = groups.dictionary_encode().indices.to_numpy()
    order = np.lexsort((keys, groups))
    sizes = np.bincount(groups)
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def rows(choice: Choice, wanted: Iterable[str], columns: Sequence[str] = COLUMNS) -> Iterator[dict[str, Any]]:
    """The rows of the wanted ids, in the order of the files; only a few are in memory at a time."""
    ids = pa.array(wanted, pa.string())
    for split, path in choice.files.items():
        of_split = choice.every.filter(pc.equal(choice.every["split"], split))
        mask = pc.is_in(of_split["id"].combine_chunks(), ids)
        with pq.ParquetFile(path) as file:
            end = 0
            for group in range(file.num_row_groups):
                start, end = end, end + file.metadata.row_group(group).num_rows
                if not mask[start:end].true_count:
                    continue
                for batch in file.iter_batches(ROWS_IN_MEMORY, row_groups=[group], columns=list(columns)):
                    for row in batch.filter(mask[start : start + len(batch)]).to_pylist():
                        yield row | {"split": split}
                    start += len(batch)
