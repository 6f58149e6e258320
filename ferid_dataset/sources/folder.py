"""Any folder of labelled pictures, by layout alone: ROOT/{train,validation,test}/<emotion>/*.{jpg,jpeg,png,tif,tiff}

Access: your own pictures. Any of the splits may be missing. Emotion folders go by any spelling that `labels.py` knows
("Happy", "joy"), picture names by any case of suffix. The options are the labels that occur in the folder. One row:

    photos/train/angry/0001.JPG -> id "folder/train/anger/0001", label "anger", options ["happiness", "anger"]
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS, canonical
from ferid_dataset.sources.base import SAMPLES, SPLITS, Choices, Reading, Rejected, Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
SPLIT_OF_FOLDER = {split: split for split in SPLITS} | {"val": "validation", "valid": "validation"}
LAYOUT = "pictures lie as ROOT/{train,test}/<emotion>/name.jpg"


def read(root: str | os.PathLike, choices: Choices | None = None) -> Reading:
    """Lists the pictures under `root`, sorted by id, without opening any. There is nothing to choose.

    A file in an emotion folder that is no picture, and a second picture of the same name (the id would be the same),
    are rejected with their reason; hidden files are ignored.

    Raises:
        FeridError: `root` is missing or has no split folder, an emotion folder is unknown or empty.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise FeridError(f"there is no folder {root}: give the folder of your pictures; {LAYOUT}")
    splits = [
        (SPLIT_OF_FOLDER[name.lower()], path) for name, path in _folders(root) if name.lower() in SPLIT_OF_FOLDER
    ]
    if not splits:
        raise FeridError(f"{root} has no folder named train, validation or test: {LAYOUT}")

    path_of_id: dict[str, str] = {}
    labels: list[str] = []
    rejected: list[Rejected] = []
    for split, split_path in splits:
        for emotion, path in _folders(split_path):
            label = _label(emotion, path)
            for name in _files(path):
                stem, suffix = os.path.splitext(name)
                row = f"folder/{split}/{label}/{stem}"
                file = os.path.join(path, name)
                if reason := _unfit(name, suffix, path_of_id.get(row)):
                    rejected.append(Rejected(row, file, reason))
                else:
                    path_of_id[row] = file
                    labels.append(label)
    if not path_of_id and not rejected:
        raise FeridError(f"{root} holds no picture: {LAYOUT}")
    return Reading(_table(path_of_id, labels), sorted(rejected), layout="pictures in a folder for each expression")


def _folders(path: str) -> Iterator[tuple[str, str]]:
    """Name and path of each visible folder in `path`, sorted."""
    with os.scandir(path) as entries:
        found = [(entry.name, entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    yield from sorted(found)


def _files(path: str) -> list[str]:
    with os.scandir(path) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    if not any(name.lower().endswith(SUFFIXES) for name in names):
        raise FeridError(f"{path} holds no picture ({', '.join(SUFFIXES)}): fill the folder or remove it")
    return names


def _label(emotion: str, path: str) -> str:
    try:
        return canonical(emotion)
    except FeridError as error:
        raise FeridError(f"unknown emotion folder {Path(path)}: {error}") from error


def _unfit(name: str, suffix: str, same_id: str | None) -> str | None:
    """Why this file makes no row, if so."""
    if suffix.lower() not in SUFFIXES:
        return f"not a picture file ({', '.join(SUFFIXES)})"
    if same_id:
        return f"has the same name as {same_id}, so its id would be the same: rename one of them"
    if name != name.encode(errors="ignore").decode():
        return "the file name is not UTF-8: rename it"
    return None


def _table(path_of_id: dict[str, str], labels: list[str]) -> pa.Table:
    ids = pa.array(path_of_id, pa.string())
    rows = len(ids)
    options = [label for label in LABELS if label in set(labels)]
    unknown = pa.nulls(rows, pa.string())
    columns = {
        "id": ids,
        "source": pa.repeat("folder", rows),
        "split": pa.array([row.split("/", 2)[1] for row in path_of_id], pa.string()),
        "media_type": pa.repeat("image", rows),
        "paths": pa.ListArray.from_arrays(
            pa.array(range(rows + 1), pa.int32()), pa.array(path_of_id.values(), pa.string())
        ),
        "label": pa.array(labels, pa.string()),
        "options": pa.repeat(pa.scalar(options, SAMPLES.field("options").type), rows),
        "attributes": pa.StructArray.from_arrays([unknown] * 3, fields=list(SAMPLES.field("attributes").type)),
    }
    return pa.table(columns, schema=SAMPLES).sort_by("id")


SOURCE = Source(
    name="folder",
    title="own pictures",
    page="",
    access="your own",
    licence="not stated: ask who built this",
    citation="",
    media_type="image",
    marks=tuple(SPLIT_OF_FOLDER),
    read=read,
)
