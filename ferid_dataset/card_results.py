"""What was measured, for the model card: tables to read, and the Hub's structured results.

    | rows                |      n | WAR                  | UAR                  | macro-F1 | invalid | ... |
    | RAF-DB, test        |  3,068 | 0.871 [0.859, 0.883] | 0.803 [0.785, 0.820] | 0.799    | 0.1 %   | ... |
    | DFEW, test, 5 folds | 11,697 | 0.601 ± 0.012        | 0.489 ± 0.009        | 0.488    | 0.0 %   | ... |

One `EvalResult` of WAR and one of UAR for each source and split. Drawn faces are named as such everywhere.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult

from ferid_dataset.dataset_card import table
from ferid_dataset.labels import LABELS
from ferid_dataset.sources import SOURCES
from ferid_dataset.stats import in_order

DRAWN = "Drawn faces, no photographs"
EXPLAINED = (
    "WAR is accuracy, UAR the mean recall over the classes of the truth; in brackets, 95 % bootstrap intervals{folds}."
    " An answer outside the options is invalid and counts as wrong. Calibration error: how far the probability of the"
    " most probable option is from how often it is right (15 bins)."
)


class Measured(NamedTuple):
    """Figures of one source and split, or of all sources of a split together."""

    rows: str  # "RAF-DB, test"
    dataset: str  # "raf_db": what tells results apart on the Hub
    title: str  # "RAF-DB"
    split: str | None
    figures: Mapping[str, Any]  # of `compute_metrics` or `summarise_folds`


def is_drawn(metrics: Mapping[str, Any]) -> bool:
    """Whether these are figures on drawn faces, which must never pass for figures on people."""
    return "drawn faces" in str(metrics.get("measured_on", "")).lower()


def measured(metrics: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Every set of figures in some `metrics.json`, each with a name and an identifier of its own."""
    found: list[Measured] = []
    for figures in metrics:
        sources = figures.get("by_source") or {figures.get("source"): figures}
        if len(sources) > 1:
            found.append(_named(found, figures, "ferid", f"All {len(sources)} sources"))
        for source, part in sources.items():
            found.append(_named(found, {**figures, **part}, *_source(source, figures)))
    return found


def _source(source: str | None, figures: Mapping[str, Any]) -> tuple[str, str]:
    """Identifier and title of a source."""
    if is_drawn(figures):
        return "drawn-faces", DRAWN
    data = Path(str(figures.get("data") or "FERID")).name
    if source in SOURCES and source != "folder":
        return source, SOURCES[source].title
    name = f"{source}-{data}" if source else data
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"), f"Own pictures ({data})"


def _named(found: list[Measured], figures: Mapping[str, Any], dataset: str, title: str) -> Measured:
    split = figures.get("split")
    folds = f"{figures['folds']} folds" if "folds" in figures else None
    method = figures.get("method") and {"score": "most probable option", "generate": "generated answer"}.get(
        figures["method"]
    )
    rows = ", ".join(filter(None, (title, split, folds, method)))
    # The Hub tells results apart by dataset and split alone: two of the same would be taken for one.
    taken = {(other.dataset, other.split) for other in found}
    names = (dataset if number == 1 else f"{dataset}-{number}" for number in range(1, len(found) + 2))
    return Measured(rows, next(name for name in names if (name, split) not in taken), title, split, figures)


def eval_results(metrics: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """The Hub's structured results: WAR and UAR of each source and split."""
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Facial expression recognition",
            dataset_type=part.dataset,
            dataset_name=part.title,
            dataset_config="category",
            dataset_split=part.split,
            metric_type=kind,
            metric_name=key.upper(),
            metric_value=round(value, 4),
            metric_args=arguments,
        )
        for part in measured(metrics)
        for key, kind, arguments in (("war", "accuracy", None), ("uar", "recall", {"average": "macro"}))
        if (value := _mean(part.figures.get(key))) is not None
    ]


def results(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The section "Results": tables of rates, of recalls and of groups of people."""
    if not metrics:
        return "Not measured yet: nothing is known of how well it does."
    parts = measured(metrics)
    folds = ", or the standard deviation over folds" if any("folds" in part.figures for part in parts) else ""
    sections = [_rates_table(parts), EXPLAINED.format(folds=folds)]
    if any("{fold}" in str(figures.get("model")) for figures in metrics):
        sections.append("Folds: each was measured on a model of its own, trained without it; this is one of them.")
    sections += ["Recall by class:", _recalls_table(parts)]
    if groups := _group_lines(metrics):
        small = max(figures.get("smallest_group") or 0 for figures in metrics)
        sections += [
            f"By groups of people, as far as the sources name them (too small: fewer than {small} rows; UAR over the "
            "number of classes given):",
            table(["rows", "attribute", "group", "n", "classes", "WAR", "UAR"], groups),
        ]
    return "\n\n".join(sections)


def _rates_table(parts: Sequence[Measured]) -> str:
    lines = []
    for part in parts:
        figures = part.figures
        count = figures.get("n")
        invalid = _mean(figures.get("invalid_rate"))
        lines.append(
            [
                part.rows,
                "-" if count is None else sum(count) if isinstance(count, list) else count,
                rate(figures, "war"),
                rate(figures, "uar"),
                rate(figures, "macro_f1"),
                "-" if invalid is None else f"{invalid:.1%}".replace("%", " %"),
                rate(figures, "ece"),
            ]
        )
    return table(["rows", "n", "WAR", "UAR", "macro-F1", "invalid", "calibration error"], lines)


def _recalls_table(parts: Sequence[Measured]) -> str:
    recalls = {part.rows: part.figures.get("recall") or {} for part in parts}
    labels = in_order({label for found in recalls.values() for label in found}, LABELS)

    def cell(found: Mapping[str, Any] | None) -> str:
        if found is None:
            return "-"
        if "mean" in found:
            return f"{found['mean']:.3f}"
        return f"{found['recall']:.3f} (n {found['n']:,})"

    return table(["rows", *labels], [[rows, *(cell(found.get(x)) for x in labels)] for rows, found in recalls.items()])


def _group_lines(metrics: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    lines = []
    for figures in metrics:
        whole = measured([figures])[0]
        for attribute, groups in (figures.get("by_group") or {}).items():
            for group, found in groups.items():
                rates = ["too small"] * 2 if found.get("small") else [rate(found, "war"), rate(found, "uar")]
                lines.append([whole.rows, attribute, group, found["n"], found.get("classes", "-"), *rates])
    return lines


def rate(figures: Mapping[str, Any], key: str) -> str:
    """0.584 [0.519, 0.645] · 0.584 ± 0.012 · 0.584 · -"""
    value, mean = figures.get(key), _mean(figures.get(key))
    if mean is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{mean:.3f} ± {value['std']:.3f}" if value.get("std") is not None else f"{mean:.3f}"
    interval = figures.get(f"{key}_ci95")
    return f"{mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{mean:.3f}"


def _mean(value: Any) -> float | None:
    """Of a figure, or of its mean over folds."""
    return value.get("mean") if isinstance(value, Mapping) else value
