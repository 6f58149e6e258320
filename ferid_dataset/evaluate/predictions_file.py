"""Reads and checks `predictions.jsonl`, from which all figures are computed.

read_predictions("results/predictions.jsonl")
-> [{"id": "folder/test/fear/0007", "source": "folder", "label": "fear", "prediction": "surprise",
     "options": ["surprise", "fear", "disgust"], "probabilities": {"surprise": 0.61, ...}, ...}, ...]
"""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from sys import intern
from typing import Any

from ferid_dataset.errors import FeridError

REQUIRED = ("id", "label", "prediction", "options")


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """
    Read and check a `predictions.jsonl`.

    Args:
        path (`str` or `Path`):
            The file, one JSON object a line, or the folder of an evaluation, in which it is called
            `predictions.jsonl`. Blank lines are skipped.

    Returns:
        `list[dict]`: the rows as they stand in the file.

    Raises:
        [`FeridError`]: the file is missing or empty; a line is no JSON object, lacks a key, repeats an id, has a label
            or prediction that is not one of its options, or probabilities that are none. The message names the line.
    """
    path = Path(path) / "predictions.jsonl" if Path(path).is_dir() else Path(path)
    rows: dict[str, dict[str, Any]] = {}
    known_options: dict[tuple[str, ...], list[str]] = {}  # one list for all rows that offer the same
    with _no_garbage_collection():
        for place, row in json_lines(path, REQUIRED, "a prediction"):
            _check(row, place)
            if row["id"] in rows:
                raise FeridError(f"{place}: the id {row['id']!r} occurs twice; keep one of the lines.")
            row["options"] = known_options.setdefault(tuple(row["options"]), row["options"])
            rows[row["id"]] = row
    if not rows:
        raise FeridError(f"{path} holds no predictions; run the evaluation again.")
    return list(rows.values())


def fold_files(path: str | Path) -> list[Path]:
    """The predictions of the folds of a cross-validation, where `path` is a folder of such and of nothing else."""
    path = Path(path)
    return [] if (path / "predictions.jsonl").is_file() else sorted(path.glob("fold-*/predictions.jsonl"))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles, yet the collector walks through all of them again and again: half of the reading time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# All rows share their keys; as the decoder makes them, they would take a third of the memory.
_decode = json.JSONDecoder(object_pairs_hook=lambda pairs: {intern(key): value for key, value in pairs}).decode


def json_lines(path: Path, required: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    The objects of a JSON-lines file, each with its place for messages ("results/predictions.jsonl, line 7").

    Args:
        path (`Path`):
            The file.
        required (`Sequence[str]`):
            Keys that every object must have.
        what (`str`):
            What an object is, such as "a prediction".

    Raises:
        [`FeridError`]: the file is missing, or a line is no JSON object or lacks a key.
    """
    if not path.is_file():
        name = path.name if path.suffix == ".jsonl" else "predictions.jsonl"
        raise FeridError(f"{path} is not a file; give the {name} that an evaluation wrote.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = _decode(line.decode())
            except (ValueError, RecursionError) as error:  # no JSON, no UTF-8
                reason = getattr(error, "msg", error)
                raise FeridError(f"{place}: not JSON ({reason}); remove or mend the line.") from error
            if not isinstance(row, dict):
                raise FeridError(f"{place}: not a JSON object; remove or mend the line.")
            if missing := [key for key in required if key not in row]:
                raise FeridError(f"{place}: {', '.join(missing)} missing; {what} needs {', '.join(required)}.")
            yield place, row


def _check(row: dict[str, Any], place: str) -> None:
    options, label, prediction = row["options"], row["label"], row["prediction"]
    if not isinstance(row["id"], str):
        raise FeridError(f"{place}: the id {row['id']!r} is no text; write it in quotes.")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise FeridError(f'{place}: the options {options!r} are no list of texts; write ["fear", ...].')
    if label not in options:
        raise FeridError(f"{place}: the label {label!r} is not one of the options {options}; add it.")
    if prediction is not None and prediction not in options:
        raise FeridError(f"{place}: the prediction {prediction!r} is not one of the options {options}; write null.")
    if not isinstance(row.get("source"), str | None):
        raise FeridError(f"{place}: the source {row['source']!r} is no text; write it in quotes.")
    check_attributes(row, place)
    if (shares := _object(row, "probabilities", place)) and (
        wrong := next((name for name, share in shares.items() if not _is_share(share) or name not in options), None)
    ):
        advice = "each is a number from 0 to 1 for one of the options"
        raise FeridError(f"{place}: the probability of {wrong!r} is {shares[wrong]!r}; {advice}.")


def _is_share(value: Any) -> bool:
    return type(value) in (float, int) and 0 <= value <= 1.000001


def check_attributes(row: dict[str, Any], place: str) -> None:
    """
    Raises:
        [`FeridError`]: the `attributes` of a row are neither null nor an object of texts and nulls; names the place.
    """
    for name, value in _object(row, "attributes", place).items():
        if not isinstance(value, str | None):
            raise FeridError(f"{place}: the attribute {name!r} is {value!r}; each is a text or null.")


def _object(row: dict[str, Any], key: str, place: str) -> dict[str, Any]:
    values = row.get(key)
    if not isinstance(values, dict | None):
        raise FeridError(f"{place}: the {key} {values!r} are no JSON object; write null where there are none.")
    return values or {}
