"""Which rows an epoch sees: exact shares of configs and classes, by the seed, and rows that are not touched."""

from collections import Counter
from io import StringIO

import numpy as np
import pytest
from datasets import Dataset
from rich.console import Console

from ferid_dataset.errors import FeridError
from ferid_dataset.train.mixture import labels_of, mix_rows, parse_mix, print_histogram, shares

COUNTS = {"happiness": 61, "sadness": 16, "fear": 1}  # ratio 61, as that of FERID's longest tail


def rows_of(config: str, counts: dict[str, int] = COUNTS) -> Dataset:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return Dataset.from_dict({"id": [f"{config}/{i}" for i in range(len(labels))], "label": labels})


def classes(rows: Dataset) -> dict[str, int]:
    return dict(Counter(rows["label"]))


def test_nothing_to_do_leaves_the_dataset_alone():
    rows = rows_of("category")
    assert mix_rows({"category": rows}, {"category": 1.0}) is rows


def test_weights_are_shares_of_an_epoch():
    rows = {"category": rows_of("category"), "conversation": rows_of("conversation", {"sadness": 22})}
    mixed = mix_rows(rows, parse_mix("category=0.7, conversation=0.3"), seed=1)
    assert len(mixed) == 100
    configs = Counter(name.partition("/")[0] for name in mixed["id"])
    assert configs == {"category": 70, "conversation": 30}
    assert max(Counter(mixed["id"]).values()) == 2, "22 conversations fill 30 places: each once, 8 of them twice"
    assert len({name for name in mixed["id"] if name.startswith("conv")}) == 22


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, {"happiness": 61, "sadness": 16, "fear": 1}),
        (0.5, {"happiness": 48, "sadness": 24, "fear": 6}),  # square roots 7.8, 4, 1 of 78
        (1.0, {"happiness": 26, "sadness": 26, "fear": 26}),
    ],
)
def test_classes_by_their_frequency_to_the_power(balance, expected):
    mixed = mix_rows({"category": rows_of("category"), "x": rows_of("x")}, {"category": 1.0}, balance=balance)
    assert classes(mixed) == expected
    seen = Counter(mixed["id"])
    for label in COUNTS:  # within a class, no row is seen two times more often than another
        times = [
            seen[name]
            for name, of in zip(rows_of("category")["id"], rows_of("category")["label"], strict=True)
            if of == label
        ]
        assert max(times) - min(times) <= 1


def test_the_seed_decides_who_and_never_how_many():
    rows = {"category": rows_of("category")}
    ids = [mix_rows(rows, {"category": 1.0}, balance=1.0, seed=seed)["id"][:] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == len(ids[2]) == 78


def test_rows_that_are_a_selection_already():
    rows = rows_of("category").select(range(70, 50, -1))
    assert labels_of(rows).tolist() == rows["label"][:]
    mixed = mix_rows({"category": rows}, {"category": 1.0}, balance=1.0)
    assert classes(mixed) == {"happiness": 10, "sadness": 10} and set(mixed["id"]) <= set(rows["id"])


def test_shares_are_whole_and_sum_up():
    random = np.random.default_rng(0)
    for _ in range(100):
        weights, length = random.random(random.integers(1, 9)) + 1e-3, int(random.integers(1, 1000))
        got = shares(weights, length)
        assert got.sum() == length and abs(got - weights / weights.sum() * length).max() < 1


def test_histogram_before_and_after():
    rows, text = rows_of("category"), StringIO()
    mixed = mix_rows({"category": rows}, {"category": 1.0}, balance=1.0)
    print_histogram([rows], mixed, Console(file=text, width=90))
    lines = text.getvalue().splitlines()
    assert [line.split() for line in lines if "fear" in line] == [
        ["│", "fear", "│", "1", "│", "1.3%", "│", "26", "│", "33.3%", "│"]
    ]
    assert "61.0 before, 1.0 after" in text.getvalue()


@pytest.mark.parametrize(
    "words", ["category=0", "category=nan", "category=inf", "category=x", "", "x=1", "category,category"]
)
def test_an_impossible_mix_is_a_sentence(words):
    with pytest.raises(FeridError, match="--data_mix"):
        parse_mix(words)


@pytest.mark.parametrize("balance", [-0.1, 1.5])
def test_an_impossible_balance_is_a_sentence(balance):
    with pytest.raises(FeridError, match="--balance .* is out of range"):
        mix_rows({"category": rows_of("category")}, {"category": 1.0}, balance=balance)
