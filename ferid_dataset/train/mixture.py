"""Which rows an epoch sees: a mix of the two configs by weights, and rare classes more often.

    mix_rows({"category": rows, "conversation": rows}, parse_mix("category=0.7,conversation=0.3"), balance=0.5, seed=0)

An epoch is as long as all rows of the mixed configs together. A config gets its weight's share of it, and a class of n
rows a share of its config that is proportional to n^(1 - balance), which is what sampling each row by n^-balance gives
on average: 0 leaves the classes as they are, 1 makes them equal, 0.5 is between. The shares are met exactly instead of
on average. Of a class with more rows than its share a random part is taken; of one with fewer, all rows equally often,
and the last round by lot.

    label      rows before   rows after
    happiness       91,203       40,122
    contempt         1,486        5,118
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from rich.console import Console
from rich.table import Table

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS
from ferid_dataset.stats import in_order

CONFIGS = ("category", "conversation")


def parse_mix(words: str) -> dict[str, float]:
    """`"category=0.7,conversation=0.3"` -> `{"category": 0.7, "conversation": 0.3}`; weights need not sum to 1.

    Raises:
        FeridError: a name is no config of FERID or comes twice, or a weight is no positive number.
    """
    weights = {}
    for part in words.split(","):
        name, equals, weight = part.partition("=")
        name = name.strip()
        if name not in CONFIGS or name in weights:
            again = "comes twice" if name in weights else "is no config of FERID"
            raise FeridError(f"--data_mix {words}: {name!r} {again}; write it as category=0.7,conversation=0.3")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            weights[name] = float("nan")
        if not 0 < weights[name] < float("inf"):
            raise FeridError(f"--data_mix {words}: the weight {weight!r} of {name} is no number above 0")
    return weights


def mix_rows(
    rows: Mapping[str, Dataset], weights: Mapping[str, float], *, balance: float = 0.0, seed: int = 0
) -> Dataset:
    """
    The rows of an epoch.

    Args:
        rows (`Mapping[str, Dataset]`):
            FERID rows of the same split by config.
        weights (`Mapping[str, float]`):
            Of each config, as [`parse_mix`] returns them.
        balance (`float`, *optional*, defaults to 0):
            The exponent a of sampling by class frequency^-a, between 0 and 1.
        seed (`int`, *optional*, defaults to 0):
            Seed of what is drawn by lot.

    Returns:
        `Dataset`: the rows as they were and in their order, each taken as often as its share says; the very same
        dataset where there is one config and nothing to balance.

    Raises:
        [`FeridError`]: `balance` is not between 0 and 1.
    """
    if not 0 <= balance <= 1:
        raise FeridError(f"--balance {balance:g} is out of range: 0 leaves the classes as they are, 1 makes all equal")
    if len(weights) == 1 and not balance:
        return rows[next(iter(weights))]
    random = np.random.default_rng(seed)
    length = sum(len(rows[name]) for name in weights)
    of_configs = dict(zip(weights, shares(np.array(list(weights.values())), length), strict=True))
    indices, start = [], 0
    for name in weights:
        indices += [start + taken for taken in _draw(labels_of(rows[name]), of_configs[name], balance, random)]
        start += len(rows[name])
    mixed = concatenate_datasets([rows[name] for name in weights])
    return mixed.select(np.sort(np.concatenate(indices)))


def labels_of(rows: Dataset) -> np.ndarray:
    """The column `label` of rows that may be a selection, without any other column being read."""
    labels = rows.data.column("label")
    return (labels if rows._indices is None else pc.take(labels, rows._indices.column(0))).to_numpy()


def shares(weights: np.ndarray, length: int) -> np.ndarray:
    """Whole numbers that sum to `length`, as near to the proportions of `weights` as can be (largest remainders)."""
    exact = weights / weights.sum() * length
    whole = np.floor(exact).astype(int)
    rest = np.argsort(whole - exact, kind="stable")[: length - whole.sum()]
    whole[rest] += 1
    return whole


def _draw(labels: np.ndarray, length: int, balance: float, random: np.random.Generator) -> list[np.ndarray]:
    """Indices into `labels`, one array a class: `length` in all."""
    classes, counts = np.unique(labels, return_counts=True)
    drawn = []
    for label, share in zip(classes, shares(counts.astype(float) ** (1 - balance), length), strict=True):
        members = np.flatnonzero(labels == label)
        rounds, rest = divmod(share, len(members))
        drawn.append(np.concatenate([np.repeat(members, rounds), random.choice(members, rest, replace=False)]))
    return drawn


def print_histogram(before: Sequence[Dataset], after: Dataset, console: Console | None = None) -> None:
    """A table of the classes, before and after sampling; `before` is all rows, of each config."""
    counts = [sum((Counter(labels_of(r).tolist()) for r in rows), Counter()) for rows in (before, [after])]
    table = Table("label", title="Rows of an epoch by class")
    for column in ("rows before", "share", "rows after", "share"):
        table.add_column(column, justify="right")
    for label in in_order(counts[0], LABELS):
        cells = [(f"{count[label]:,}", f"{count[label] / count.total():.1%}") for count in counts]
        table.add_row(label, *cells[0], *cells[1])
    ratios = [max(count.values()) / min(count.values()) for count in counts]
    table.caption = f"largest class over smallest: {ratios[0]:.1f} before, {ratios[1]:.1f} after"
    (console or Console()).print(table)
