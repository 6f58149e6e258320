"""What every source yields: a table of samples, and what it had to leave out.

One row of `SAMPLES`:

    id "raf_db/train_00001" · source "raf_db" · split "train" · media_type "image"
    paths ["/data/RAF-DB/basic/Image/aligned/train_00001_aligned.jpg"] · label "sadness"
    options ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
    attributes {"age": "20-39", "gender": "female", "race": "Caucasian"}

A source finds its lists and media; `assemble` does what is the same for all: it maps codes to labels and keeps
account, so that every row that was read is either a sample, or rejected with its reason, or left out by design.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import canonical

SPLITS = ("train", "validation", "test")

SAMPLES = pa.schema(
    {
        "id": pa.string(),  # source/name of the media inside the source, unique
        "source": pa.string(),
        "split": pa.string(),  # one of SPLITS
        "media_type": pa.string(),  # "image" or "video"
        "paths": pa.list_(pa.string()),  # absolute; one for a still, the frames in order for a clip
        "label": pa.string(),  # canonical
        "options": pa.list_(pa.string()),  # the labels that this source knows, as the model is shown them
        "attributes": pa.struct({"age": pa.string(), "gender": pa.string(), "race": pa.string()}),
    }
)
ATTRIBUTES = SAMPLES.field("attributes").type


class Rejected(NamedTuple):
    """A sample that is left out: one line of `rejected.jsonl`."""

    id: str
    path: str  # of the media, or "list.csv:17" where the line itself cannot be used
    reason: str  # the kind of problem, then what is special to this one behind a colon
    label: str | None = None  # where it is known


class Listed(NamedTuple):
    """The rows of annotation lists, and the lines that are none. What `assemble` takes has these columns:

    name (media, relative to their folder) · code (label as the list has it) · id · split · list · line (null where
    the file is no list, but the label or the media itself)
    """

    rows: pa.Table
    rejected: list[Rejected]


class Media(NamedTuple):
    """What lies on disk for a list of names, one entry a name."""

    paths: pa.Array  # list of string, as in SAMPLES; null where there is a problem
    problems: pa.Array  # string; null where there is none


class Reading(NamedTuple):
    """What a source found on disk. Every row of its lists is in exactly one of the three."""

    samples: pa.Table  # SAMPLES, in the order of the lists
    rejected: list[Rejected]
    left_out: dict[str, int] = {}  # rows that the protocol excludes, such as AffectNet's label 8, and how many
    layout: str = ""  # which of the shapes that users receive was found

    @property
    def read(self) -> int:
        return len(self.samples) + len(self.rejected) + sum(self.left_out.values())


@dataclass
class Choices:
    """The protocols that a user can choose between. Each source looks at its own.

    Args:
        fold: of DFEW, MAFW and CREMA-D, 1 to 5.
        frames: frames of a clip.
        affectnet_classes: 8, or 7 without contempt.
        ferplus_label_rule: "argmax8", "argmax10" or "majority", see `ferplus.py`.
        mafw_labels: "single", or "compound" as well as single expressions.
        mafw_male: the code of `gender.txt`, "0" or "1", that means male; None leaves gender unknown.
        pictures: a folder to unpack pictures to that come as text (`fer2013.csv`).
    """

    fold: int = 1
    frames: int = 8
    affectnet_classes: int = 8
    ferplus_label_rule: str = "argmax8"
    mafw_labels: str = "single"
    mafw_male: str | None = None
    pictures: str | None = None

    def __post_init__(self):
        allowed = {
            "fold": (1, 2, 3, 4, 5),
            "affectnet_classes": (7, 8),
            "ferplus_label_rule": ("argmax8", "argmax10", "majority"),
            "mafw_labels": ("single", "compound"),
            "mafw_male": ("0", "1", None),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                shown = ", ".join(str(value) for value in values if value is not None)
                raise FeridError(f"{name} must be one of {shown}, not {getattr(self, name)!r}")
        if not isinstance(self.frames, int) or self.frames < 1:
            raise FeridError(f"frames must be 1 or more, not {self.frames!r}")


@dataclass(frozen=True)
class Source:
    """A dataset: where it comes from, how it is recognised, and how it is read.

    Args:
        name: as in ids and options, such as "raf_db".
        title: as its authors write it.
        page: the official page.
        access: how one gets it.
        licence: its terms in a few words.
        citation: BibTeX.
        media_type: "image" or "video".
        marks: paths under the root, any of which tells that this dataset lies there.
        counts: official class counts of each split, of fold 1 where there are folds; empty where none are published.
        read: reads the dataset under a root.
    """

    name: str
    title: str
    page: str
    access: str
    licence: str
    citation: str
    media_type: str
    marks: tuple[str, ...]
    read: Callable[[str, Choices], Reading]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def find(root: str, title: str, *candidates: str) -> str:
    """The first of `candidates`, paths relative to `root`, that exists.

    Raises:
        FeridError: the root is missing or none of them is there.
    """
    if not os.path.isdir(root):
        raise FeridError(f"there is no folder {root}: give the folder of {title}")
    for candidate in candidates:
        path = os.path.join(root, candidate)
        if os.path.exists(path):
            return os.path.abspath(path)
    raise FeridError(
        f"{root} is not {title}, or not all of it: it has no {' and no '.join(candidates)}; "
        "give the folder that holds it, or unpack the rest of the archive"
    )


def assemble(
    source: str,
    media_type: str,
    listed: Listed,
    codes: Mapping[str, str],
    find_media: Callable[[pa.Array], Media],
    *,
    options: Sequence[str],
    excluded: Mapping[str, str] | None = None,
    attributes: Callable[[pa.Table], pa.Array] | None = None,
    layout: str = "",
) -> Reading:
    """Samples from the rows of the lists of a source.

    Args:
        source: its name.
        media_type: "image" or "video".
        listed: its rows, with the columns that [`Listed`] names.
        codes: label of each code of the lists.
        find_media: finds the media of names.
        options: the labels in the order and wording in which the model is shown them.
        excluded: codes that the protocol leaves out, and why.
        attributes: age, gender and race of rows, a column of `ATTRIBUTES`.
        layout: what was found, in words.
    """
    rows = listed.rows.combine_chunks()
    rejected = [row if row.id else row._replace(id=source) for row in listed.rejected]
    label_of_code = {code: canonical(label) for code, label in codes.items()}

    def reject(rows: pa.Table, problems: pa.Array | pa.ChunkedArray) -> pa.Table:
        """Rejects the rows that have a problem; the others are returned."""
        if problems.null_count == len(problems):
            return rows
        bad = rows.append_column("problem", problems).filter(problems.is_valid())
        for row in bad.select(["id", "list", "line", "problem", "code"]).to_pylist():
            rejected.append(Rejected(row["id"], _place(row), row["problem"], label_of_code.get(row["code"])))
        return rows.filter(problems.is_null())

    left_out = {}
    for code, reason in (excluded or {}).items():
        matches = pc.equal(rows["code"], code)
        if count := pc.sum(matches).as_py():
            left_out[reason] = left_out.get(reason, 0) + count
            rows = rows.filter(pc.invert(matches))

    rows = reject(rows, _messages(rows["split"].is_null(), "its name tells no split"))
    rows = reject(rows, _leaving(rows["name"]))
    rows = reject(rows, _repeated(rows))
    rows = reject(rows, _unknown(rows["code"], codes))
    media = find_media(rows["name"].combine_chunks())
    usable = media.problems.is_null()
    paths = media.paths.filter(usable) if usable.false_count else media.paths
    rows = reject(rows, media.problems)

    labels = pa.array(label_of_code.values(), pa.string())
    columns = {
        "id": rows["id"],
        "source": pa.repeat(source, len(rows)),
        "split": rows["split"],
        "media_type": pa.repeat(media_type, len(rows)),
        "paths": paths,
        "label": labels.take(pc.index_in(rows["code"].combine_chunks(), pa.array(codes, pa.string()))),
        "options": pa.array([options], pa.list_(pa.string())).take(pa.repeat(0, len(rows))),
        "attributes": attributes(rows) if attributes else pa.repeat(pa.scalar({}, ATTRIBUTES), len(rows)),
    }
    return Reading(pa.table(columns, schema=SAMPLES), rejected, left_out, layout)


def _place(row: dict) -> str:
    return row["list"] if row["line"] is None else f"{row['list']}:{row['line']}"


def _messages(mask: pa.ChunkedArray, message: pa.ChunkedArray | str) -> pa.ChunkedArray:
    """The message where the mask holds, else null."""
    return pc.if_else(mask, message, pa.scalar(None, pa.string()))


def _leaving(names: pa.ChunkedArray) -> pa.ChunkedArray:
    leaves = pc.match_substring_regex(names, r"^[/\\~]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|[\x00-\x1f]|^$")
    return _messages(leaves, "the name leads out of the folder of the media")


def _unknown(found: pa.ChunkedArray, codes: Mapping[str, str]) -> pa.Array | pa.ChunkedArray:
    unknown = pc.invert(pc.is_in(found, pa.array(codes, pa.string())))
    if not pc.any(unknown).as_py():
        return pa.nulls(len(found), pa.string())
    known = ", ".join(codes) if len(codes) <= 12 else f"{len(codes)} known ones"
    message = pc.binary_join_element_wise(
        "unknown label: '", pc.utf8_slice_codeunits(found, 0, 40), f"' is not of {known}", ""
    )
    return _messages(unknown, message)


def _repeated(rows: pa.Table) -> pa.Array:
    """Of rows with one id and one label the first stays, in the test split if it is there; of contradicting ones none.

    So nothing is both trained on and tested.
    """
    ids = rows["id"].combine_chunks().dictionary_encode()
    if len(ids.dictionary) == len(ids):
        return pa.nulls(len(rows), pa.string())
    counts = np.bincount(ids.indices.to_numpy())
    suspects = np.flatnonzero(counts[ids.indices.to_numpy()] > 1)
    by_id: dict[str, list[tuple[int, dict]]] = {}
    for index, row in zip(suspects, rows.take(suspects).to_pylist(), strict=True):
        by_id.setdefault(row["id"], []).append((int(index), row))
    problems: list[str | None] = [None] * len(rows)
    for same in by_id.values():
        kept, first = min(same, key=lambda pair: (-SPLITS.index(pair[1]["split"]), pair[0]))
        agree = len({row["code"] for _, row in same}) == 1
        for index, _ in same:
            if not agree:
                problems[index] = f"listed {len(same)} times with different labels"
            elif index != kept:
                problems[index] = f"listed twice: see {_place(first)}"
    return pa.array(problems, pa.string())
