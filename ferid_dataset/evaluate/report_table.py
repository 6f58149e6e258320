"""The figures on the screen: what `ferid evaluate`, `metrics`, `compare` and `quality` print.

print_metrics(metrics)                    of `compute_metrics`: WAR, UAR, recalls; by source and by group of people
print_folds(summary)                      of `summarise_folds`: mean, spread and the value of each fold
print_comparison(comparison)              of `compare`: two runs side by side, and whether they differ
print_quality(quality)                    of `measure_quality`: label support, ROUGE-L, the judge's scores

               rate  95 % interval        n
    WAR       0.727    0.726–0.729  400,000
"""

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

BY_RATE = {"war": "WAR", "uar": "UAR", "macro_f1": "macro-F1", "invalid_rate": "invalid answers", "ece": "ECE"}
SCALES = ("rouge_l", "label_agreement", "clue_agreement")


def print_metrics(metrics: dict[str, Any], console: Console | None = None) -> None:
    """
    Print the figures of one evaluation; by source where there are several, by group of people where some are known.

    Args:
        metrics (`dict`):
            What [`compute_metrics`] or [`write_reports`] returned; its `measured_on`, if any, becomes the title.
        console (`Console`, *optional*):
            Where to; the terminal by default.
    """
    console = console or Console()
    table = _table("", "rate", "95 % interval", "n", title=metrics.get("measured_on"))
    n = f"{metrics['n']:,}"
    for key, name in BY_RATE.items():
        if metrics.get(key) is not None:
            table.add_row(name, f"{metrics[key]:.3f}", _interval(metrics.get(f"{key}_ci95")), n)
    table.add_section()
    for label, row in metrics["recall"].items():
        table.add_row(f"recall of {escape(label)}", f"{row['recall']:.3f}", "", f"{row['n']:,}")
    console.print(table)
    if metrics.get("ece") is not None:
        console.print("ECE: expected calibration error of the top probability, in 15 bins.", style="dim")
    if len(metrics["by_source"]) > 1:
        table = _table("source", "n", "WAR", "95 % interval", "UAR", "95 % interval")
        for source, row in metrics["by_source"].items():
            table.add_row(escape(source), f"{row['n']:,}", *_war_and_uar(row))
        console.print(table)
    if metrics["by_group"]:
        _print_groups(metrics, console)


def _print_groups(metrics: dict[str, Any], console: Console) -> None:
    table = _table("person", "n", "WAR", "95 % interval", "UAR", "95 % interval", "classes")
    for attribute, groups in metrics["by_group"].items():
        table.add_row(attribute, style="bold")
        for value, row in groups.items():
            rates = ("-", "too few", "-", "too few") if row["small"] else _war_and_uar(row)
            style = "dim" if row["small"] else None
            table.add_row(f"  {escape(value)}", f"{row['n']:,}", *rates, f"{row['classes']}", style=style)
        table.add_section()
    console.print(table)
    if any(row["small"] for groups in metrics["by_group"].values() for row in groups.values()):
        console.print(f"too few: fewer than {metrics['smallest_group']} rows.", style="dim")


def print_folds(summary: dict[str, Any], title: str | None = None, console: Console | None = None) -> None:
    """
    Print mean, spread and values of the folds of a cross-validation.

    Args:
        summary (`dict`):
            What [`summarise_folds`] returned.
        title (`str`, *optional*):
            Title of the table.
        console (`Console`, *optional*):
            Where to; the terminal by default.
    """
    folds = range(1, summary["folds"] + 1)
    table = _table("", "mean", "std", *(f"fold {number}" for number in folds), title=title)
    rows = {name: summary[key] for key, name in BY_RATE.items()}
    _add_folds(table, rows)
    if len(summary["by_source"]) > 1:
        for source, figures in summary["by_source"].items():
            _add_folds(table, {f"WAR of {source}": figures["war"], f"UAR of {source}": figures["uar"]})
    _add_folds(table, {f"recall of {label}": row for label, row in summary["recall"].items()})
    (console or Console()).print(table)


def _add_folds(table: Table, rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        if any(value is not None for value in row["values"]):
            table.add_row(escape(name), *map(_rate, (row["mean"], row["std"], *row["values"])))
    table.add_section()


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """
    Print two or more runs side by side, and how each differs from the first one.

    Args:
        comparison (`dict`):
            What [`compare`] returned.
        console (`Console`, *optional*):
            Where to; the terminal by default.
    """
    console = console or Console()
    first, *others = comparison["runs"]
    letters = {run["name"]: chr(ord("A") + i) if i < 26 else str(i + 1) for i, run in enumerate(comparison["runs"])}
    for run in comparison["runs"]:
        invalid = f"invalid answers {run['invalid_rate']:.3f}"
        console.print(f"{letters[run['name']]}  {run['name']}  ({invalid})", highlight=False, markup=False)
    for run, difference in zip(others, comparison["differences"], strict=True):
        a, b = letters[first["name"]], letters[run["name"]]
        table = _table(
            "", a, b, f"{b} - {a}", "95 % interval", "p", title=f"{b} against {a}, {comparison['n']:,} rows"
        )
        for key in ("war", "uar"):
            row = difference[key]
            values = f"{first[key]:.3f}", f"{run[key]:.3f}", f"{row['difference']:+.3f}"
            low, high = row["ci95"]
            table.add_row(BY_RATE[key], *values, f"{low:+.3f} to {high:+.3f}", _p(row["p"]))
            intervals = (_interval(run[f"{key}_ci95"]) for run in (first, run))
            table.add_row("", *intervals, style="dim")
        test = difference["mcnemar"]
        only = f"{test['only_a_right']:,}", f"{test['only_b_right']:,}"
        table.add_row("right alone", *only, "", "McNemar, exact", _p(test["p"]), end_section=True)
        table.add_row("recall", style="bold")
        for label, row in difference["recall"].items():
            values = f"{row['a']:.3f}", f"{row['b']:.3f}", f"{row['difference']:+.3f}"
            table.add_row(f"  {escape(label)}", *values, f"n = {row['n']:,}")
        console.print(table)
    if left_out := comparison["left_out"]:
        console.print(f"Left out, because not all have them alike: {left_out:,} rows.", highlight=False)
    if len(others) > 1:
        console.print("The p of several comparisons are not corrected for their number.", style="dim")


def print_quality(quality: dict[str, Any], console: Console | None = None) -> None:
    """
    Print how good free answers are, by source where there are several.

    Args:
        quality (`dict`):
            The figures that [`measure_quality`] returned, with the facts of the judge as `judge` if one was asked.
        console (`Console`, *optional*):
            Where to; the terminal by default.
    """
    console = console or Console()
    table = _table("", "value", "95 % interval", "n", "reference")
    references = quality["reference_support"] or {}
    for support, row in quality["label_support"].items():
        reference = _rate(references.get(support, {}).get("rate"))
        name = f"label {support.replace('_', ' ')}"
        table.add_row(name, f"{row['rate']:.3f}", _interval(row["ci95"]), f"{row['n']:,}", reference)
    table.add_section()
    for key, name in (("rouge_l", "ROUGE-L"), ("label_agreement", "label agreement"), ("clue_agreement", "clues")):
        if row := quality[key]:
            table.add_row(name, f"{row['mean']:.3f}", _interval(row["ci95"]), f"{row['n']:,}")
    console.print(table)
    if len(quality["by_source"]) > 1:
        table = _table("source", "n", "affirmed", "contradicted", "not named", "ROUGE-L", "label", "clues")
        for source, row in quality["by_source"].items():
            rates = [_rate(each["rate"]) for each in row["label_support"].values()]
            means = [_rate(row[key]["mean"] if row[key] else None) for key in SCALES]
            table.add_row(escape(source), f"{row['n']:,}", *rates, *means)
        console.print(table)
    if judge := quality.get("judge"):
        words = f"Judged {judge['judged']:,} by {judge['model']}, prompt {judge['prompt_version']}, from 1 to 10"
        missing = ", ".join(f"{reason} {count:,}" for reason, count in judge["not_judged"].items())
        console.print(words + (f"; not judged: {missing}." if missing else "."), highlight=False, markup=False)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _table(first: str, *columns: str, title: str | None = None) -> Table:
    """Plain enough to fit a terminal of 80 characters; all but the first column are numbers."""
    table = Table(title=title and escape(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _war_and_uar(row: dict[str, Any]) -> tuple[str, ...]:
    return _rate(row["war"]), _interval(row["war_ci95"]), _rate(row["uar"]), _interval(row["uar_ci95"])


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.3f}–{bounds[1]:.3f}" if bounds else ""
