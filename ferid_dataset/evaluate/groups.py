"""Predictions by age, gender and race of the person, where a source or a face analyser tells them.

    rows_by_group(predictions, "age")    -> {"20-39": array([0, 3, ...]), "40-69": array([1]), "unknown": array([2])}

Ages in years are put in RAF-DB's groups, so that sources compare; all else is taken as it is annotated.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

ATTRIBUTES = ("age", "gender", "race")
UNKNOWN = "unknown"
SMALLEST_GROUP = 30  # rows; an interval of fewer says little, and a bootstrap's is too narrow besides
AGE_GROUPS = {"0-3": 4, "4-19": 20, "20-39": 40, "40-69": 70, "70+": 200}  # RAF-DB's, each with the first age past it


def rows_by_group(predictions: Iterable[dict[str, Any]], attribute: str) -> dict[str, np.ndarray]:
    """
    Args:
        predictions (`Iterable[dict]`):
            Rows of `predictions.jsonl`; `attributes` may be missing or null.
        attribute (`str`):
            "age", "gender" or "race".

    Returns:
        `dict[str, np.ndarray]`: the indices of the rows of each value, values in order and "unknown" last; empty when
            no row knows the attribute.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(predictions):
        value = (row.get("attributes") or {}).get(attribute)
        groups.setdefault(age_group(value) if attribute == "age" else value or UNKNOWN, []).append(index)
    if groups.keys() <= {UNKNOWN}:
        return {}
    return {value: np.array(groups[value]) for value in sorted(groups, key=_order)}


@lru_cache(maxsize=1000)
def age_group(age: str | None) -> str:
    """ "34" is "20-39", a group such as "20-39" stays as it is."""
    if not age:
        return UNKNOWN
    try:
        years = float(age)
    except ValueError:
        return age
    return next((group for group, past in AGE_GROUPS.items() if 0 <= years < past), UNKNOWN)


def _order(value: str) -> tuple[bool, int, str]:
    place = list(AGE_GROUPS).index(value) if value in AGE_GROUPS else len(AGE_GROUPS)
    return value == UNKNOWN, place, value
