"""`ferid check`: which dataset lies in a folder, in which layout, and what is wrong with it, class by class.

check("RAF-DB") -> Check(source="raf_db", layout="aligned pictures of the basic set",
                         classes={"train": {"surprise": {"usable": 1289, "rejected": 1, "official": 1290}, ...}},
                         problems={"the file is missing": ["raf_db/train_00001 (.../list_patition_label.txt:1)"]})
"""

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import SPLITS, Choices, Source
from ferid_dataset.verify import copies, look


@dataclass
class Check:
    """What was found; `as_dict()` of it is what `ferid check --json` prints."""

    root: str
    source: str  # "raf_db"
    title: str  # "RAF-DB"
    layout: str  # which of the shapes that users receive
    fold: int  # which the lists are of, where there are folds
    classes: dict[
        str, dict[str, Any]
    ]  # label -> split -> [usable, official number or None]; and how many are rejected
    problems: dict[str, list[str]]  # kind -> the samples that have it
    left_out: dict[str, int]  # by the protocol: no problem
    truncated: list[str] = field(default_factory=list)  # clips of which only a part can be decoded
    copies: list[list[str]] = field(default_factory=list)  # samples whose media are equal byte for byte
    decoded: bool = True  # whether the media were opened

    @property
    def is_whole(self) -> bool:
        """Nothing is missing or broken. Copies do not count: published datasets have them."""
        complete = all(
            official in (None, usable)
            for counts in self.classes.values()
            for usable, official in (counts[split] for split in SPLITS if split in counts)
        )
        return complete and not self.problems and not self.truncated

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_whole": self.is_whole}


def check(
    root: str | os.PathLike, choices: Choices | None = None, decode: bool = True, num_proc: int | None = None
) -> Check:
    """Recognises the dataset under `root`, reads it as a build would, and decodes its media.

    Args:
        root: the folder of one dataset.
        choices: the fold, and what else can be chosen.
        decode: opens every picture and clip; without it, files must only exist.
        num_proc: threads that decode; all cores by default.

    Raises:
        FeridError: no dataset that FERID knows lies there, or its lists cannot be read.
    """
    root = os.path.abspath(root)
    choices = choices or Choices()
    source = recognise(root)
    reading = source.read(root, choices)
    rejected = [(row.id, row.path, row.reason, row.label) for row in reading.rejected]
    rows = reading.samples.select(["id", "split", "label", "paths"]).to_pylist()
    truncated, groups = [], []
    if decode:
        seen = list(zip(rows, look(reading.samples, num_proc), strict=True))
        groups = [[row["id"] for row in group] for group in copies(seen)]
        truncated = [f"{row['id']}: {result.truncated}" for row, result in seen if result.truncated]
        rejected += [
            (row["id"], row["paths"][0], result.problem, row["label"]) for row, result in seen if result.problem
        ]
        rows = [row for row, result in seen if not result.problem]
    problems: dict[str, list[str]] = {}
    for name, path, reason, _ in rejected:
        kind, _, detail = reason.partition(": ")
        problems.setdefault(kind, []).append(f"{name} ({path}){': ' if detail else ''}{detail}")
    return Check(
        root=root,
        source=source.name,
        title=source.title,
        layout=reading.layout,
        fold=choices.fold,
        classes=_classes(rows, Counter(label for *_, label in rejected), _official_counts(source, choices)),
        problems=problems,
        left_out=reading.left_out,
        truncated=truncated,
        copies=groups,
        decoded=decode,
    )


def recognise(root: str) -> Source:
    """The dataset that lies under `root`.

    Raises:
        FeridError: none that FERID knows; names those that lie one folder deeper.
    """
    if not os.path.isdir(root):
        raise FeridError(f"there is no folder {root}: give the folder of a dataset")
    if found := _matches(root):
        return found
    with os.scandir(root) as entries:
        deeper = [(entry.name, _matches(entry.path)) for entry in entries if entry.is_dir()]
    if named := sorted(f"{name}/ ({match.title})" for name, match in deeper if match):
        raise FeridError(f"{root} holds {', '.join(named)}: check one of these folders")
    titles = ", ".join(source.title for source in SOURCES.values() if source.name != "folder")
    raise FeridError(
        f"{root} is no dataset that FERID knows ({titles}, or pictures as ROOT/{{train,test}}/<emotion>/): "
        "give the folder that holds its lists, or unpack the rest of it"
    )


def _official_counts(source: Source, choices: Choices) -> dict[str, dict[str, int]]:
    """What is published of the default protocol; nothing for others."""
    standard = Choices(frames=choices.frames, mafw_male=choices.mafw_male, pictures=choices.pictures)
    return source.counts if choices == standard else {}


def _classes(rows: list[dict], rejected: Counter, official: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    usable = Counter((row["label"], row["split"]) for row in rows)
    splits = [split for split in SPLITS if split in official or any(key[1] == split for key in usable)]
    labels = {label for label, _ in usable} | {label for label in rejected if label}
    labels |= {label for counts in official.values() for label in counts}
    in_order = sorted(labels, key=lambda label: (LABELS.index(label.partition(" and ")[0]), label))
    return {
        label: {
            split: [usable[label, split], official.get(split, {}).get(label, 0) if official else None]
            for split in splits
        }
        | {"rejected": rejected[label]}
        for label in in_order
    }


def _matches(folder: str) -> Source | None:
    # `folder`, the last of SOURCES, has the loosest marks.
    for source in SOURCES.values():
        if any(os.path.exists(os.path.join(folder, mark)) for mark in source.marks):
            return source
    return None
