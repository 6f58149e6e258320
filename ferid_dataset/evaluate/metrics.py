"""The figures of the `category` task, computed from predictions alone: no model is needed to compute them again.

One line of `predictions.jsonl`:

    {"id": "folder/test/fear/0007", "source": "folder", "label": "fear", "prediction": "surprise", "text": "surprise",
     "options": ["surprise", "fear", "disgust"], "probabilities": {"surprise": 0.61, "fear": 0.37, "disgust": 0.02}}

WAR (weighted average recall) is the accuracy. UAR (unweighted average recall) is the mean recall of the classes that
occur in the ground truth. An answer outside the options is stored as `"prediction": null`: it counts as wrong, shows
as `invalid_rate`, and is never a class of its own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from ferid_dataset.errors import FeridError

INVALID = "invalid"  # name of the confusion matrix's last column
REQUIRED = ("id", "label", "prediction", "options")
RESAMPLES = 2000


def compute_metrics(predictions: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """
    All figures of a list of predictions. Their order does not matter.

    Args:
        predictions (`Sequence[dict]`):
            Rows with at least `id`, `label`, `prediction` (a label or `None`) and `options`, as [`read_predictions`]
            returns them. Rows of sources with different options may be mixed: the labels are then all that occur.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `dict`, ready for JSON; rates are between 0 and 1:
            - **n** (`int`), **war**, **uar**, **macro_f1**, **invalid_rate** (`float`); `macro_f1` is over the classes
              of the ground truth, like `uar`.
            - **war_ci95**, **uar_ci95** (`[low, high]`): see [`bootstrap_intervals`].
            - **recall** (`{label: {"recall": float, "n": int}}`): the classes of the ground truth.
            - **labels** (`list[str]`): all options, in the order in which they first appear.
            - **confusion_matrix** (`list[list[int]]` of shape `(num_labels, num_labels + 1)`): counts; rows are the
              truth, columns the predictions, both in the order of `labels`; the last column is "invalid".

    Raises:
        [`FeridError`]: there are no predictions.
    """
    if not predictions:
        raise FeridError("There are no predictions to evaluate; check that the split holds rows.")
    labels = list(dict.fromkeys(option for row in predictions for option in row["options"]))
    number = {label: i for i, label in enumerate(labels)} | {None: len(labels)}
    truth = np.array([number[row["label"]] for row in predictions])
    predicted = np.array([number[row["prediction"]] for row in predictions])

    present = np.unique(truth)
    recalls = recall_score(truth, predicted, labels=present, average=None)
    confusion = confusion_matrix(truth, predicted, labels=range(len(labels) + 1))[:-1]
    war_interval, uar_interval = bootstrap_intervals(confusion, seed)
    return {
        "n": len(predictions),
        "war": float((truth == predicted).mean()),
        "war_ci95": war_interval,
        "uar": float(recalls.mean()),
        "uar_ci95": uar_interval,
        "macro_f1": float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0)),
        "invalid_rate": float((predicted == number[None]).mean()),
        "recall": {
            labels[i]: {"recall": float(recall), "n": int(confusion[i].sum())}
            for i, recall in zip(present, recalls, strict=True)
        },
        "labels": labels,
        "confusion_matrix": confusion.tolist(),
    }


def bootstrap_intervals(
    confusion: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[list[float], list[float]]:
    """
    95 % percentile bootstrap intervals of WAR and UAR.

    Drawing n rows with replacement and counting the right and the wrong ones of each class is one draw from a
    multinomial distribution, so the resamples cost the same for a hundred rows and for a million. The UAR of a
    resample is over the classes that occur in it; a class of one or two rows is missing from some resamples.

    Args:
        confusion (`np.ndarray` of shape `(num_labels, num_columns)`):
            Counts; rows are the truth, `confusion[i, i]` the right answers.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.
        resamples (`int`, *optional*, defaults to 2000):
            Number of resamples.

    Returns:
        `tuple[list[float], list[float]]`: `[low, high]` of WAR and of UAR.
    """
    n = confusion.sum()
    right = confusion.diagonal()
    outcomes = np.concatenate([right, confusion.sum(axis=1) - right])  # [2 * labels]
    drawn = np.random.default_rng(seed).multinomial(n, outcomes / n, size=resamples)
    right, wrong = drawn.reshape(resamples, 2, -1).swapaxes(0, 1)  # each [resamples, labels]
    support = right + wrong
    recall_sums = (right / support.clip(min=1)).sum(axis=1)  # an absent class adds 0 here and is not counted below
    wars, uars = right.sum(axis=1) / n, recall_sums / (support > 0).sum(axis=1)
    war_interval, uar_interval = np.percentile([wars, uars], [2.5, 97.5], axis=1).T.tolist()
    return war_interval, uar_interval


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """
    Read and check a `predictions.jsonl`.

    Args:
        path (`str` or `Path`):
            The file, one JSON object a line. Blank lines are skipped.

    Returns:
        `list[dict]`: the rows as they stand in the file.

    Raises:
        [`FeridError`]: the file is missing or empty; a line is no JSON object, lacks a key, repeats an id, or has a
            label or prediction that is not one of its options. The message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FeridError(f"{path} is not a file; give the predictions.jsonl that an evaluation wrote.")
    rows: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _parse_row(line, f"{path}, line {number}")
            if row["id"] in rows:
                raise FeridError(f"{path}, line {number}: the id {row['id']!r} occurs twice; keep one of the lines.")
            rows[row["id"]] = row
    if not rows:
        raise FeridError(f"{path} holds no predictions; run the evaluation again.")
    return list(rows.values())


def write_metrics(metrics: dict[str, Any], path: str | Path) -> None:
    """
    Write the metrics as indented JSON.

    Args:
        metrics (`dict`):
            What [`compute_metrics`] returned.
        path (`str` or `Path`):
            The file to write, in a folder that exists.
    """
    Path(path).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _parse_row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FeridError(f"{place}: not JSON ({error.msg}); remove or mend the line.") from error
    if not isinstance(row, dict):
        raise FeridError(f"{place}: not a JSON object; remove or mend the line.")
    if missing := [key for key in REQUIRED if key not in row]:
        raise FeridError(f"{place}: {', '.join(missing)} missing; a prediction needs {', '.join(REQUIRED)}.")
    if row["label"] not in row["options"]:
        raise FeridError(f"{place}: the label {row['label']!r} is not one of the options {row['options']}; add it.")
    if row["prediction"] is not None and row["prediction"] not in row["options"]:
        raise FeridError(
            f"{place}: the prediction {row['prediction']!r} is not one of the options {row['options']}; write null."
        )
    return row
