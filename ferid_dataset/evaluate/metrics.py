"""The figures of the `category` task, computed from predictions alone: no model is needed to compute them again.

One line of `predictions.jsonl`:

    {"id": "folder/test/fear/0007", "source": "folder", "label": "fear", "prediction": "surprise", "text": "surprise",
     "options": ["surprise", "fear", "disgust"], "probabilities": {"surprise": 0.61, "fear": 0.37, "disgust": 0.02},
     "attributes": {"age": "20-39", "gender": "female", "race": null}, "method": "score"}

WAR (weighted average recall) is the accuracy. UAR (unweighted average recall) is the mean recall of the classes that
occur in the ground truth. An answer outside the options is stored as `"prediction": null`: it counts as wrong, shows
as `invalid_rate`, and is never a class of its own.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.groups import ATTRIBUTES, SMALLEST_GROUP, rows_by_group
from ferid_dataset.evaluate.predictions_file import read_predictions  # noqa: F401 (it is asked for here)

INVALID = "invalid"  # name of the confusion matrix's last column
RESAMPLES = 2000
CALIBRATION_BINS = 15
RATES = ("war", "uar", "macro_f1", "invalid_rate", "ece")  # what has a mean over folds


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
            - **ece** (`float` or `None`): see [`expected_calibration_error`].
            - **war_ci95**, **uar_ci95** (`[low, high]`): see [`bootstrap_intervals`].
            - **recall** (`{label: {"recall": float, "n": int}}`): the classes of the ground truth.
            - **labels** (`list[str]`): all options, in the order in which they first appear.
            - **confusion_matrix** (`list[list[int]]` of shape `(num_labels, num_labels + 1)`): counts; rows are the
              truth, columns the predictions, both in the order of `labels`; the last column is "invalid".
            - **by_source** (`{source: dict}`): all of the above for the rows of each source.
            - **by_group** (`{attribute: {value: {"n", "classes", "small", "war", "war_ci95", "uar", "uar_ci95"}}}`):
              for each of age, gender and race that some row knows, with "unknown" for the rows that do not. A group of
              fewer than `smallest_group` rows is `small`, and has `None` for its rates. `classes` counts the
              expressions over which the UAR is taken: groups with other ones compare badly.
            - **smallest_group** (`int`).

    Raises:
        [`FeridError`]: there are no predictions.
    """
    if not predictions:
        raise FeridError("There are no predictions to evaluate; check that the split holds rows.")
    sources: dict[str, list[dict]] = {}
    for row in predictions:
        sources.setdefault(row.get("source"), []).append(row)
    whole = _figures(predictions, seed)
    by_source = {
        source: whole if len(sources) == 1 else _figures(sources[source], seed)
        for source in sorted(sources.keys() - {None})
    }
    return whole | {"by_source": by_source, "by_group": _groups(predictions, seed), "smallest_group": SMALLEST_GROUP}


def _figures(predictions: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The figures of rows that are taken together."""
    labels, truth, predicted = as_numbers(predictions)
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
        "invalid_rate": float((predicted == len(labels)).mean()),
        "ece": expected_calibration_error(predictions),
        "recall": {
            labels[i]: {"recall": float(recall), "n": int(confusion[i].sum())}
            for i, recall in zip(present, recalls, strict=True)
        },
        "labels": labels,
        "confusion_matrix": confusion.tolist(),
    }


def _groups(predictions: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    labels, truth, predicted = as_numbers(predictions)
    groups = {attribute: rows_by_group(predictions, attribute) for attribute in ATTRIBUTES}
    return {
        attribute: {value: _group(truth[rows], predicted[rows], len(labels), seed) for value, rows in values.items()}
        for attribute, values in groups.items()
        if values
    }


def _group(truth: np.ndarray, predicted: np.ndarray, num_labels: int, seed: int) -> dict[str, Any]:
    """WAR and UAR of one group of people, unless it is so small that they would only mislead."""
    present = np.unique(truth)
    group = {"n": len(truth), "classes": len(present), "small": len(truth) < SMALLEST_GROUP}
    if group["small"]:
        return group | dict.fromkeys(("war", "war_ci95", "uar", "uar_ci95"))
    return group | war_and_uar(truth, predicted, num_labels, seed)


def war_and_uar(truth: np.ndarray, predicted: np.ndarray, num_labels: int, seed: int = 0) -> dict[str, Any]:
    """
    The two figures with their intervals.

    Args:
        truth, predicted (`np.ndarray` of shape `(n,)`):
            Numbers of labels, as [`as_numbers`] returns them.
        num_labels (`int`):
            How many labels there are.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `dict`: `war`, `war_ci95`, `uar`, `uar_ci95`.
    """
    confusion = confusion_matrix(truth, predicted, labels=range(num_labels + 1))[:-1]
    war_interval, uar_interval = bootstrap_intervals(confusion, seed)
    uar = float(recall_score(truth, predicted, labels=np.unique(truth), average="macro"))
    war = float((truth == predicted).mean())
    return {"war": war, "war_ci95": war_interval, "uar": uar, "uar_ci95": uar_interval}


def as_numbers(predictions: Sequence[dict[str, Any]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All options, and truth and prediction of each row as indices into them; an invalid one is past the last."""
    offered = dict.fromkeys(tuple(row["options"]) for row in predictions)
    labels = list(dict.fromkeys(option for options in offered for option in options))
    number = {label: i for i, label in enumerate(labels)} | {None: len(labels)}
    truth = np.array([number[row["label"]] for row in predictions])
    return labels, truth, np.array([number[row["prediction"]] for row in predictions])


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


def expected_calibration_error(predictions: Iterable[dict[str, Any]]) -> float | None:
    """
    How far the probability of the most probable option is from how often that option is right.

    Rows are put in 15 bins of equal width by their top probability. The error is the mean over the bins of
    |share of right ones - mean top probability|, weighted by rows (Guo et al., 2017, https://arxiv.org/abs/1706.04599).
    It is of the probabilities: the most probable option counts, also where the model wrote another one.

    Args:
        predictions (`Iterable[dict]`):
            Rows with `label` and `probabilities` (`{option: probability}`).

    Returns:
        `float` between 0 and 1, or `None` when a row has no probabilities.
    """
    tops, right = [], []
    for row in predictions:
        shares = row.get("probabilities")
        if not shares:
            return None
        best = max(shares, key=shares.get)
        tops.append(shares[best])
        right.append(best == row["label"])
    tops, right = np.array(tops), np.array(right)
    bins = np.minimum((tops * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)  # 1.0 is of the last one
    # n_bin / n * |mean(right) - mean(top)| is |sum(right) - sum(top)| / n
    gaps = np.bincount(bins, weights=right, minlength=CALIBRATION_BINS) - np.bincount(
        bins, weights=tops, minlength=CALIBRATION_BINS
    )
    return float(np.abs(gaps).sum() / len(tops))


def summarise_folds(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Mean and spread over the folds of a cross-validation, such as the five of DFEW and of MAFW.

    Args:
        folds (`Sequence[dict]`):
            What [`compute_metrics`] returned for each fold.

    Returns:
        `dict`, ready for JSON:
            - **folds** (`int`): how many.
            - **n** (`list[int]`): rows of each.
            - **war**, **uar**, **macro_f1**, **invalid_rate**, **ece** (`{"mean", "std", "values"}`): `std` is that of
              a sample (`ddof=1`), `None` for a single fold; `values` has that of each fold. A figure that some fold
              lacks is `None` there, and has no mean.
            - **recall** (`{label: {"mean", "std", "values"}}`): over the folds that have the class.
            - **by_source** (`{source: {"n", "war", ...}}`): the same for each source.

    Raises:
        [`FeridError`]: there are no folds.
    """
    if not folds:
        raise FeridError("There are no folds to summarise; evaluate at least one.")
    by_source = [fold.get("by_source", {}) for fold in folds]
    absent = {"n": 0, "recall": {}}
    return _summary(folds) | {
        "by_source": {
            source: _summary([figures.get(source, absent) for figures in by_source])
            for source in sorted(set().union(*by_source))
        }
    }


def _summary(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labels = dict.fromkeys(label for fold in folds for label in fold["recall"])
    recalls = {label: [fold["recall"].get(label, {}).get("recall") for fold in folds] for label in labels}
    return {
        "folds": len(folds),
        "n": [fold["n"] for fold in folds],
        **{name: _mean_and_spread([fold.get(name) for fold in folds]) for name in RATES},
        "recall": {label: _mean_and_spread(values, skip_missing=True) for label, values in recalls.items()},
    }


def _mean_and_spread(values: list[float | None], skip_missing: bool = False) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known or (len(known) < len(values) and not skip_missing):
        return {"mean": None, "std": None, "values": values}
    std = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "std": std, "values": values}


def write_reports(
    predictions: Sequence[dict[str, Any]], output: str | Path, title: str, extra: dict[str, Any]
) -> dict[str, Any]:
    """
    Compute all figures and write `metrics.json`, `confusion_matrix.csv` and `confusion_matrix.png`.

    Args:
        predictions (`Sequence[dict]`):
            As [`read_predictions`] returns them.
        output (`str` or `Path`):
            Folder of the files, made when missing.
        title (`str`):
            Title of the picture, such as "EMO-LLaMA on RAF-DB test".
        extra (`dict`):
            What `metrics.json` is to hold besides the figures, such as model and data.

    Returns:
        `dict`: what `metrics.json` holds.

    Raises:
        [`FeridError`]: there are no predictions, or `output` is a file.
    """
    from ferid_dataset.evaluate.confusion_picture import save_confusion_picture  # brings matplotlib

    output = Path(output)
    if output.is_file():
        raise FeridError(f"{output} is a file: give the name of a folder")
    metrics = compute_metrics(predictions) | extra
    output.mkdir(parents=True, exist_ok=True)
    write_confusion_csv(metrics, output / "confusion_matrix.csv")
    save_confusion_picture(metrics, output / "confusion_matrix.png", title)
    write_metrics(metrics, output / "metrics.json")
    return metrics


def write_confusion_csv(metrics: dict[str, Any], path: str | Path) -> None:
    """
    Write the counts of the confusion matrix: a row for each class, a column for each answer, "invalid" the last.

    Args:
        metrics (`dict`):
            What [`compute_metrics`] returned.
        path (`str` or `Path`):
            The file to write, in a folder that exists.
    """
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["truth \\ prediction", *metrics["labels"], INVALID])
        lines.writerows(
            [label, *counts] for label, counts in zip(metrics["labels"], metrics["confusion_matrix"], strict=True)
        )


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
