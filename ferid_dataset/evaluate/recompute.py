"""`ferid metrics`: the figures of an evaluation again, from its predictions alone.

    recompute("results/predictions.jsonl", "figures")   -> what figures/metrics.json then holds
    recompute("results")                                -> the same, or the mean over results/fold-1, ...

What the predictions cannot tell (model, data, split) is taken over from a `metrics.json` that lies beside them.
"""

import json
from pathlib import Path
from typing import Any

from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.metrics import compute_metrics, summarise_folds, write_metrics, write_reports
from ferid_dataset.evaluate.predictions_file import fold_files, read_predictions

FACTS = ("model", "data", "split", "source", "method", "measured_on")


def recompute(path: str | Path, output: str | Path | None = None) -> dict[str, Any]:
    """
    Args:
        path (`str` or `Path`):
            A `predictions.jsonl`, or the folder of an evaluation, or one with the folders of its folds.
        output (`str` or `Path`, *optional*):
            Folder for `metrics.json` and the confusion matrix (CSV and PNG); by default nothing is written.

    Returns:
        `dict`: what [`compute_metrics`] returns, and the facts of the evaluation that are known. Of folds, what
            [`summarise_folds`] returns.

    Raises:
        [`FeridError`]: the predictions, or the `metrics.json` beside them, cannot be read.
    """
    if folds := fold_files(path):
        return _recompute_folds(Path(path), folds, output)
    rows = read_predictions(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    facts = _facts(folder / "metrics.json")
    if "measured_on" not in facts:
        drawn = " (drawn faces, no photographs)" if are_drawn(row["id"] for row in rows) else ""
        facts["measured_on"] = f"{folder.resolve().name}{drawn}"
    if output is None:
        return compute_metrics(rows) | facts
    return write_reports(rows, output, facts["measured_on"], facts)


def _recompute_folds(path: Path, files: list[Path], output: str | Path | None) -> dict[str, Any]:
    folds = [recompute(file, output and Path(output) / file.parent.name) for file in files]
    summary = summarise_folds(folds) | {"measured_on": path.resolve().name} | _facts(path / "metrics.json")
    if output:
        write_metrics(summary, Path(output) / "metrics.json")
    return summary


def _facts(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        known = json.loads(file.read_bytes())
        return {key: known[key] for key in FACTS if key in known}
    except (ValueError, TypeError) as error:
        raise FeridError(f"{file} is not the metrics.json of an evaluation ({error}); move it away") from error
