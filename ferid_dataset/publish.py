"""`ferid push`: publishes a built FERID on the Hub, by default its words alone.

    push_ferid("ferid", "user/ferid")   and then, anywhere,   load_dataset("user/ferid", "conversation")

Rows travel without pictures (`images` is empty), without paths and without faces; their ids stay, for whoever holds
the sources. Each of MEDIA must be asked for by its name:

    pictures    of a build with --embed; few licences let them be passed on: to a private repository only, but for OPEN
    faces       boxes, landmarks, predicted age and gender
    embeddings  they identify people, biometric data: as a part of faces, and to a private repository only

File names carry a hash of their content, so the same rows are never sent twice, nor what arrived before a push was
stopped. New files, the card and the removal of old files are one commit. What it removes stays in the history.
"""

import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils import tqdm
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import DatasetInfo

from ferid_dataset.build import content_hash
from ferid_dataset.dataset_card import LEAVES, contents, dataset_card, read_build_facts
from ferid_dataset.errors import FeridError
from ferid_dataset.hub_errors import check_login, check_name, hub_errors
from ferid_dataset.stats import count_ferid, ferid_files

MEDIA = {  # by name, how the paths of its columns in a Parquet file begin
    "pictures": "images.",
    "faces": "faces.",
    "embeddings": LEAVES["embeddings"],
}
OPEN = {"crema_d"}  # sources whose licence lets everybody pass the media on
OURS = re.compile(r"(category|conversation)/(train|validation|test)-[0-9a-f]{16}\.parquet")
ROWS_IN_MEMORY = 10_000
PICTURE_ROWS_IN_MEMORY = 100


@dataclass
class Published:
    """What a push did; `str()` of it is what `ferid push` prints."""

    repo: str
    url: str
    rows: dict[str, dict[str, int]]  # {"category": {"train": 957, "test": 319}}
    left_out: list[str]  # those of MEDIA that were not asked for
    sent: dict[str, int]  # bytes of each Parquet file that was not there yet; in a dry run, of each
    removed: list[str]  # Parquet files of earlier pushes
    commit: str | None  # None: all was there already, or a dry run
    dry_run: bool

    def __str__(self) -> str:
        lines = [self.url + (": nothing was sent, this is a dry run" if self.dry_run else "")]
        lines += [
            f"  {config}: " + ", ".join(f"{split} {count:,}" for split, count in splits.items())
            for config, splits in self.rows.items()
        ]
        if self.left_out:
            lines.append(f"  without {', '.join(self.left_out)}")
        parquet = f"{len(self.sent)} Parquet files ({sum(self.sent.values()) / 1e6:.1f} MB)"
        if self.dry_run:
            lines.append(f"  would be there: README.md and {parquet}")
        elif self.commit:
            lines.append(f"  sent README.md and {parquet}, removed {len(self.removed)} of earlier pushes")
        else:
            lines.append("  all of it was there already")
        return "\n".join([*lines, *(f'load_dataset("{self.repo}", "{config}")' for config in self.rows)])


def push_ferid(
    out: str | os.PathLike, repo: str, *, private: bool = False, media: Collection[str] = (), dry_run: bool = False
) -> Published:
    """
    Publish a built FERID.

    Args:
        out (`str` or `os.PathLike`):
            The folder that `ferid build` wrote. What is to be sent is first written beside it, and removed afterwards.
        repo (`str`):
            The dataset repository, such as "user/ferid"; it is made when it does not exist.
        private (`bool`, *optional*, defaults to `False`):
            Makes the repository a private one; one that is public already is refused.
        media (`Collection[str]`, *optional*):
            What is published besides words: names of `MEDIA`.
        dry_run (`bool`, *optional*, defaults to `False`):
            Does everything but call the Hub.

    Raises:
        [`FeridError`]: `out` is no FERID, the request is refused, or the Hub refuses or cannot be reached.
    """
    out = Path(os.path.abspath(out))
    files, stats, facts = ferid_files(out), count_ferid(out), read_build_facts(out)
    held = contents(file for splits in files.values() for file in splits.values())
    guarded = _check_request(out, repo, media, held, {source["source"] for source in stats["sources"]})
    api = HfApi()
    if not dry_run:
        with hub_errors(api, repo):
            info = _open_repository(api, repo, private, guarded)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        work = Path(work)
        names = {
            config: {split: _write_rows(file, work / config, split, media) for split, file in splits.items()}
            for config, splits in files.items()
        }
        written = sorted(work.glob("*/*.parquet"))
        card = dataset_card(repo, names, stats, facts, contents(written))
        result = Published(
            repo=repo,
            url=f"{api.endpoint}/datasets/{repo}",
            rows=stats["total"]["instructions"],
            left_out=[name for name in MEDIA if name not in media],
            sent={f"{file.parent.name}/{file.name}": file.stat().st_size for file in written},
            removed=[],
            commit=None,
            dry_run=dry_run,
        )
        if not dry_run:
            with hub_errors(api, repo):
                _commit(api, info, work, card, result)
    return result


def _check_request(out: Path, repo: str, media: Collection[str], held: set[str], sources: set[str]) -> str | None:
    """Refuses what no repository may get; returns why it must be a private one, if so."""
    check_name(repo)
    if unknown := set(media) - set(MEDIA):
        raise FeridError(f"there is no {sorted(unknown)[0]!r} to publish: choose from {', '.join(MEDIA)}")
    if "embeddings" in media and "faces" not in media:
        raise FeridError("an embedding is part of a face: ask for both, with faces and with embeddings")
    if missing := [name for name in MEDIA if name in media and name not in held]:
        option = "--embed" if missing[0] == "pictures" else "--faces"
        raise FeridError(f"{out} holds no {missing[0]}: build it with {option}, or push without them")
    if "embeddings" in media:
        return "face embeddings identify people, they are biometric data"
    closed = sorted(sources - OPEN)
    if "pictures" in media and closed:
        return f"pictures of {', '.join(closed)} are not free to be passed on"
    return None


def _open_repository(api: HfApi, repo: str, private: bool, guarded: str | None) -> DatasetInfo:
    """The repository as it stands, made if it does not exist.

    Raises:
        FeridError: nobody is logged in, it is public and must not be, or it holds something else.
    """
    check_login(api)
    if guarded and not private:
        raise FeridError(f"{guarded}: add --private to push them to a private repository")
    try:
        info = api.dataset_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type="dataset", private=private or None)  # None: as its organization has it
        info = api.dataset_info(repo)
    if private and not info.private:
        raise FeridError(f"{repo} exists and is public: make it private in its settings, or name another repository")
    there = {file.rfilename for file in info.siblings}
    if there - {".gitattributes", "README.md"} and not any(map(OURS.fullmatch, there)):
        raise FeridError(f"{repo} holds something else than a FERID: name another repository, nothing was touched")
    return info


def _write_rows(file: Path, folder: Path, split: str, media: Collection[str]) -> str:
    """Writes the rows of a Parquet file as they are to be published; returns the name of the new file."""
    rows = pq.ParquetFile(file)
    unwanted = tuple(start for name, start in MEDIA.items() if name not in media)
    columns = [rows.schema.column(index).path for index in range(len(rows.schema))]
    batches = rows.iter_batches(
        PICTURE_ROWS_IN_MEMORY if "pictures" in media else ROWS_IN_MEMORY,
        columns=[column for column in columns if not column.startswith(unwanted)],  # the others are not even read
    )
    folder.mkdir(exist_ok=True)
    unfinished = folder / f"{split}.unfinished"
    with (
        pq.ParquetWriter(unfinished, rows.schema_arrow) as writer,
        tqdm(total=rows.metadata.num_rows, desc=f"write {folder.name} {split}", unit=" rows") as bar,
    ):
        for batch in batches:
            writer.write_table(_publishable(batch, rows.schema_arrow))
            bar.update(len(batch))
    name = f"{split}-{content_hash(unfinished)}.parquet"
    unfinished.rename(folder / name)
    return name


def _publishable(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """Rows in their schema again: what was not read of them is empty (images) or null (faces, embeddings)."""
    rows = pa.Table.from_batches([batch])
    if "images" not in rows.column_names:
        none = pa.scalar([], schema.field("images").type)
        rows = rows.append_column("images", pa.repeat(none, len(rows)))
    if "faces" not in rows.column_names:
        rows = rows.append_column("faces", pa.nulls(len(rows), schema.field("faces").type))
    return rows.select(schema.names).cast(schema)


def _commit(api: HfApi, info: DatasetInfo, work: Path, card: str, result: Published) -> None:
    """Sends what is new and removes what the card no longer names, all in one commit; notes both in `result`."""
    there = {file.rfilename for file in info.siblings}
    result.removed = sorted(name for name in there - set(result.sent) if OURS.fullmatch(name))
    result.sent = {name: size for name, size in result.sent.items() if name not in there}
    done = api.create_commit(
        result.repo,
        [
            CommitOperationAdd("README.md", card.encode()),
            *(CommitOperationAdd(name, work / name) for name in result.sent),
            *(CommitOperationDelete(name) for name in result.removed),
        ],
        commit_message="FERID, by ferid push",
        repo_type="dataset",
        parent_commit=info.sha,  # refused if somebody else has committed since
    )
    result.commit = None if done.oid == info.sha else done.oid
