"""`ferid compare`: did the second run really do better than the first, on the very same rows?

    compare({"no faces": read_predictions(a), "faces": read_predictions(b)})
    -> {"n": 3068, "left_out": 0, "runs": [{"name": "no faces", "war": 0.871, "war_ci95": [0.859, 0.883], ...}, ...],
        "differences": [{"a": "no faces", "b": "faces",
                         "war": {"difference": 0.013, "ci95": [0.004, 0.022], "p": 0.006}, "uar": {...},
                         "mcnemar": {"only_a_right": 61, "only_b_right": 101, "p": 0.0021},
                         "recall": {"fear": {"a": 0.51, "b": 0.58, "difference": 0.07, "n": 74}, ...}}]}

Rows are matched by id and resampled together, so that what is hard for both runs is no noise: the interval of the
difference is narrower than the intervals of the two figures let one think.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.metrics import as_numbers, war_and_uar
from ferid_dataset.evaluate.predictions_file import fold_files, read_predictions

RESAMPLES = 10_000  # p is a share of these: its smallest value is 0.0002
Rows = Sequence[dict[str, Any]]


def compare(runs: Mapping[str, Rows], *, common: bool = False, seed: int = 0) -> dict[str, Any]:
    """
    Compare runs with the first of them.

    Args:
        runs (`Mapping[str, Sequence[dict]]`):
            Name and predictions of each run, two or more, as [`read_runs`] returns them.
        common (`bool`, *optional*, defaults to `False`):
            Compare the rows that all runs have with the same label, and leave out the others.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `dict`, ready for JSON:
            - **n**, **left_out** (`int`): rows compared, and ids that were left out by `common`.
            - **runs** (`list[dict]`): `name`, `n`, `war`, `war_ci95`, `uar`, `uar_ci95`, `invalid_rate` of each.
            - **differences** (`list[dict]`): of each run but the first, as above; `a` is the first run, and a positive
              difference is in favour of `b`. `p` of WAR and UAR is the bootstrap's (see [`paired_bootstrap`]), that
              of `mcnemar` is exact.

    Raises:
        [`FeridError`]: fewer than two runs, or they hold other rows or labels; says how many.
    """
    if len(runs) < 2:
        raise FeridError("A comparison takes two or more runs; give the predictions of each.")
    ids, left_out = _matched_ids(runs, common)
    by_id = {name: {row["id"]: row for row in rows} for name, rows in runs.items()}
    matched = {name: [rows[id_] for id_ in ids] for name, rows in by_id.items()}
    first, *others = matched
    labels = sorted({row["label"] for row in matched[first]})
    truth = np.array([labels.index(row["label"]) for row in matched[first]])
    right = {name: np.array([row["label"] == row["prediction"] for row in rows]) for name, rows in matched.items()}
    return {
        "n": len(ids),
        "left_out": left_out,
        "runs": [_figures(name, rows, seed) for name, rows in matched.items()],
        "differences": [
            {"a": first, "b": other} | _difference(truth, right[first], right[other], labels, seed) for other in others
        ],
    }


def _figures(name: str, rows: Rows, seed: int) -> dict[str, Any]:
    labels, truth, predicted = as_numbers(rows)
    rates = war_and_uar(truth, predicted, len(labels), seed)
    return {"name": name, "n": len(rows), **rates, "invalid_rate": float((predicted == len(labels)).mean())}


def _difference(truth: np.ndarray, a: np.ndarray, b: np.ndarray, labels: list[str], seed: int) -> dict[str, Any]:
    """Two runs, by which rows they have right."""
    counts = paired_counts(truth, a, b, len(labels))
    war, uar = paired_bootstrap(counts, seed)
    _, only_a, only_b, _ = counts.sum(axis=1).tolist()
    discordant = only_a + only_b
    sizes = counts.sum(axis=0)
    recalls_a, recalls_b = (counts[0] + counts[1]) / sizes, (counts[0] + counts[2]) / sizes
    return {
        "war": war,
        "uar": uar,
        "mcnemar": {
            "only_a_right": only_a,
            "only_b_right": only_b,
            "p": float(binomtest(only_a, discordant).pvalue) if discordant else 1.0,
        },
        "recall": {
            label: {"a": float(one), "b": float(other), "difference": float(other - one), "n": int(n)}
            for label, one, other, n in zip(labels, recalls_a, recalls_b, sizes, strict=True)
        },
    }


def paired_counts(truth: np.ndarray, a: np.ndarray, b: np.ndarray, num_labels: int) -> np.ndarray:
    """
    Args:
        truth (`np.ndarray` of shape `(n,)`):
            Number of the label of each row.
        a, b (`np.ndarray` of shape `(n,)`, boolean):
            Which rows each run has right.
        num_labels (`int`):
            How many labels there are.

    Returns:
        `np.ndarray` of shape `(4, num_labels)`: rows that both have right, only `a`, only `b`, and neither.
    """
    outcome = np.where(a, np.where(b, 0, 1), np.where(b, 2, 3))
    return np.bincount(outcome * num_labels + truth, minlength=4 * num_labels).reshape(4, num_labels)


def paired_bootstrap(
    counts: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The differences of WAR and UAR, with 95 % percentile intervals and p values of a paired bootstrap.

    A row is drawn with what both runs made of it. As in [`bootstrap_intervals`], a resample is one draw from a
    multinomial distribution. `p` is two-sided, and the interval's counterpart: below 0.05 where that leaves out zero.
    It is twice the share of resamples in which the difference has the other sign or is zero, one added to them.

    Args:
        counts (`np.ndarray` of shape `(4, num_labels)`):
            What [`paired_counts`] returned.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draws.
        resamples (`int`, *optional*, defaults to 10,000):
            Number of resamples.

    Returns:
        `tuple[dict, dict]`: `{"difference", "ci95": [low, high], "p"}` of WAR and of UAR, `b` minus `a`.
    """
    n = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    observed = _differences(counts[None])
    bootstrapped = _differences(drawn.reshape(resamples, *counts.shape))
    found = []
    for (difference,), values in zip(observed, bootstrapped, strict=True):
        low, high = np.percentile(values, [2.5, 97.5]).tolist()
        beyond = min((values <= 0).sum(), (values >= 0).sum())
        p = min(1.0, 2 * float(beyond + 1) / (resamples + 1))
        found.append({"difference": float(difference), "ci95": [low, high], "p": p})
    return found[0], found[1]


def _differences(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of WAR and UAR, each `[resamples]`, from counts `[resamples, 4, labels]`."""
    gained = counts[:, 2] - counts[:, 1]  # [resamples, labels]
    sizes = counts.sum(axis=1)
    uars = (gained / sizes.clip(min=1)).sum(axis=1) / (sizes > 0).sum(axis=1)
    return gained.sum(axis=1) / sizes.sum(axis=1), uars


def _matched_ids(runs: Mapping[str, Rows], common: bool) -> tuple[list[str], int]:
    """The ids to compare, in the order of the first run, and how many others there are."""
    labels = [{row["id"]: row["label"] for row in rows} for rows in runs.values()]
    shared = [id_ for id_ in labels[0] if all(id_ in other for other in labels)]
    ids = [id_ for id_ in shared if all(other[id_] == labels[0][id_] for other in labels)]
    left_out = len(set().union(*labels)) - len(ids)
    if left_out and not common:
        raise FeridError(_mismatch(list(runs), labels, len(ids)))
    if not ids:
        raise FeridError(f"{' and '.join(runs)} have no row in common; compare runs on the same data and split.")
    return ids, left_out


def _mismatch(names: list[str], labels: list[dict[str, str]], alike: int) -> str:
    """The sentence about runs of other rows: how many, and an example of each kind."""
    other = next(i for i in range(1, len(labels)) if labels[i] != labels[0])
    a, b = labels[0], labels[other]
    kinds = {
        f"only in {names[0]}": a.keys() - b.keys(),
        f"only in {names[other]}": b.keys() - a.keys(),
        "with another label": {id_ for id_ in a.keys() & b.keys() if a[id_] != b[id_]},
    }
    found = [f"{len(ids):,} {kind} (such as {min(ids)})" for kind, ids in kinds.items() if ids]
    return (
        f"{names[0]} and {names[other]} do not hold the same rows: {', '.join(found)}; "
        f"give --common to compare the {alike:,} rows that all hold with the same label."
    )


def read_runs(paths: Sequence[str | Path]) -> dict[str, Rows]:
    """
    Read the predictions of runs, under the shortest names that tell them apart.

    Args:
        paths (`Sequence[str or Path]`):
            Each a `predictions.jsonl`, the folder of an evaluation, or one with the folders `fold-1`, `fold-2`, ... of
            a cross-validation, whose rows are taken together.

    Raises:
        [`FeridError`]: as [`read_predictions`], or one run is given twice.
    """
    paths = [Path(path) for path in paths]
    folders = [path.parent if path.name == "predictions.jsonl" else path for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise FeridError("One run is given twice; a run differs from itself in nothing.")
    names = [folder.name or str(folder) for folder in folders]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return {name: _read_run(path) for name, path in zip(names, paths, strict=True)}


def _read_run(path: Path) -> Rows:
    if not (folds := fold_files(path)):
        return read_predictions(path)
    rows = list(chain.from_iterable(map(read_predictions, folds)))
    if len({row["id"] for row in rows}) < len(rows):
        raise FeridError(f"{path}: its folds share rows; compare a single fold, such as {folds[0].parent}.")
    return rows
