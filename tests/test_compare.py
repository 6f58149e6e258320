"""`ferid compare`: differences against sums by hand and scipy; its intervals and p values keep their word."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.compare import compare, paired_bootstrap, paired_counts, read_runs
from ferid_dataset.evaluate.metrics import compute_metrics

OPTIONS = ["surprise", "fear", "disgust"]


def run(pairs, start=0):
    """`[(truth, prediction), ...]` as rows of a predictions file."""
    return [
        {"id": f"folder/test/{i:04d}", "label": truth, "prediction": prediction, "options": OPTIONS}
        for i, (truth, prediction) in enumerate(pairs, start)
    ]


def test_a_case_by_hand():
    truth = ["fear"] * 6 + ["disgust"] * 4
    a = run(zip(truth, ["fear"] * 3 + ["disgust"] * 3 + ["disgust"] * 2 + [None] * 2, strict=True))
    b = run(zip(truth, ["fear"] * 5 + [None] + ["fear"] + ["disgust"] * 3, strict=True))
    result = compare({"a": a, "b": b})
    assert (result["n"], result["left_out"]) == (10, 0)
    first, second = result["runs"]
    assert (first["war"], second["war"]) == (0.5, 0.8)
    assert first["uar"] == pytest.approx((3 / 6 + 2 / 4) / 2) and second["uar"] == pytest.approx((5 / 6 + 3 / 4) / 2)
    (difference,) = result["differences"]
    assert difference["war"]["difference"] == pytest.approx(0.3)
    assert difference["uar"]["difference"] == pytest.approx((2 / 6 + 1 / 4) / 2)
    # only b is right: fear twice, disgust twice; only a: disgust once
    assert difference["mcnemar"] == {"only_a_right": 1, "only_b_right": 4, "p": pytest.approx(2 * (1 + 5) / 2**5)}
    fear = {"a": 0.5, "b": pytest.approx(5 / 6), "difference": pytest.approx(1 / 3), "n": 6}
    assert difference["recall"]["fear"] == fear and list(difference["recall"]) == ["disgust", "fear"]
    json.dumps(result, allow_nan=False)


def test_the_runs_own_figures_are_those_of_their_metrics():
    generator = np.random.default_rng(0)
    a, b = (run(zip(generator.choice(OPTIONS, 90), generator.choice(OPTIONS, 90), strict=True)) for _ in "ab")
    b = [row | {"label": other["label"]} for row, other in zip(b, a, strict=True)]
    for row, rows in zip(compare({"a": a, "b": b})["runs"], (a, b), strict=True):
        metrics = compute_metrics(rows)
        assert all(row[key] == metrics[key] for key in row if key != "name")


@given(st.lists(st.tuples(*[st.sampled_from(OPTIONS)] * 3), min_size=1, max_size=30))
@settings(deadline=None, max_examples=40)
def test_laws(triples):
    a, b = run((t, a) for t, a, _ in triples), run((t, b) for t, _, b in triples)
    (one,), (other,) = compare({"a": a, "b": b})["differences"], compare({"b": b, "a": a})["differences"]
    for key in ("war", "uar"):
        low, high = one[key]["ci95"]
        assert -1 <= low <= high <= 1 and 0 < one[key]["p"] <= 1
        assert one[key]["difference"] == pytest.approx(-other[key]["difference"])
    assert one["mcnemar"]["p"] == pytest.approx(other["mcnemar"]["p"])
    (same,) = compare({"a": a, "again": a})["differences"]
    assert same["war"] == same["uar"] == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert same["mcnemar"] == {"only_a_right": 0, "only_b_right": 0, "p": 1.0}


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (5, 5), (0, 12), (10, 25), (61, 101)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_rows(only_a, only_b):
    pairs = [("right", "wrong")] * only_a + [("wrong", "right")] * only_b + [("right", "right")] * 50
    a, b = (run(("fear", "fear" if pair[i] == "right" else None) for pair in pairs) for i in (0, 1))
    p = compare({"a": a, "b": b})["differences"][0]["mcnemar"]["p"]
    n, less = only_a + only_b, min(only_a, only_b)
    by_hand = min(1.0, 2 * binom.cdf(less, n, 0.5))  # the distribution is symmetric
    assert p == pytest.approx(by_hand) == pytest.approx(binomtest(less, n).pvalue)


def simulated(generator, rows, gain):
    """Counts of two runs on rows of three classes that share what is hard; `gain` is by how much `b` is better."""
    truth = generator.choice(3, rows, p=[0.6, 0.3, 0.1])
    ease = generator.random(rows)
    a = ease + 0.3 * generator.random(rows) > 0.6
    b = ease + 0.3 * generator.random(rows) + gain * (truth + 1) > 0.6
    return paired_counts(truth, a, b, 3)


@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_the_interval_covers_and_p_keeps_its_level(gain):
    """Of 300 simulated comparisons, about 95 % of the intervals hold the true difference."""
    generator = np.random.default_rng(3)
    large = simulated(generator, 2_000_000, gain)
    gained, sizes = large[2] - large[1], large.sum(axis=0)
    truth = gained.sum() / sizes.sum(), (gained / sizes).mean()
    covered, significant = np.zeros(2), np.zeros(2)
    for seed in range(300):
        for i, row in enumerate(paired_bootstrap(simulated(generator, 400, gain), seed, resamples=1000)):
            low, high = row["ci95"]
            covered[i] += low <= truth[i] <= high
            significant[i] += row["p"] < 0.05
    assert np.all((covered / 300 > 0.91) & (covered / 300 < 0.98)), covered / 300
    if gain == 0:
        assert np.all(significant / 300 < 0.08), significant / 300
    else:
        assert np.all(significant / 300 > 0.5), significant / 300


def test_pairing_pays():
    """Runs that share what is hard: the interval of their difference is narrower than unpaired ones would make it."""
    counts = simulated(np.random.default_rng(0), 2000, 0.02)
    war, _ = paired_bootstrap(counts)
    shares = [(counts[0] + counts[i]).sum() / counts.sum() for i in (1, 2)]
    unpaired = 2 * 1.96 * sum(share * (1 - share) / counts.sum() for share in shares) ** 0.5
    assert np.ptp(war["ci95"]) < 0.7 * unpaired


def test_the_bootstrap_is_that_of_resampled_rows():
    generator = np.random.default_rng(1)
    truth = generator.choice(3, 150, p=[0.6, 0.3, 0.1])
    a, b = generator.random((2, 150)) < [[0.5], [0.65]]
    wars, uars = [], []
    for drawn in generator.integers(0, 150, (3000, 150)):
        wars.append(b[drawn].mean() - a[drawn].mean())
        classes = np.unique(truth[drawn])
        uars.append(np.mean([(b[drawn] * 1.0 - a[drawn])[truth[drawn] == c].mean() for c in classes]))
    for row, values in zip(paired_bootstrap(paired_counts(truth, a, b, 3)), (wars, uars), strict=True):
        np.testing.assert_allclose(row["ci95"], np.percentile(values, [2.5, 97.5]), atol=0.02)


def test_more_than_two_are_compared_with_the_first():
    a, b, c = (run([("fear", answer)] * 10) for answer in ("fear", "disgust", None))
    result = compare({"a": a, "b": b, "c": c})
    assert [(row["a"], row["b"]) for row in result["differences"]] == [("a", "b"), ("a", "c")]
    assert result["runs"][2]["invalid_rate"] == 1
    with pytest.raises(FeridError, match="two or more runs"):
        compare({"a": a})


def test_other_rows_are_counted_or_left_out():
    a = run([("fear", "fear"), ("fear", None), ("disgust", "disgust"), ("fear", "fear")])
    b = run([("fear", "fear"), ("surprise", None), ("disgust", "fear"), ("fear", "fear"), ("fear", "fear")])[1:]
    words = (
        "a and b do not hold the same rows: 1 only in a .such as folder/test/0000., 1 only in b .such as "
        "folder/test/0004., 1 with another label .such as folder/test/0001.; give --common to compare the 2 rows"
    )
    with pytest.raises(FeridError, match=words):
        compare({"a": a, "b": b})
    result = compare({"a": a, "b": b}, common=True)
    assert (result["n"], result["left_out"]) == (2, 3)
    assert result["differences"][0]["recall"].keys() == {"disgust", "fear"}
    with pytest.raises(FeridError, match="have no row in common"):
        compare({"a": a, "b": run([("fear", "fear")], start=50)}, common=True)
    shuffled = [a[i] for i in (2, 0, 3, 1)]
    assert compare({"a": a, "b": shuffled})["differences"][0]["war"]["difference"] == 0


def write(folder, rows):
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_runs_are_read_from_files_folders_and_folds(tmp_path):
    rows = run([("fear", "fear"), ("disgust", None)])
    one = write(tmp_path / "one", rows)
    for fold in (1, 2):
        write(tmp_path / "folds" / f"fold-{fold}", run([("fear", "fear")], start=10 * fold))
    runs = read_runs([one, tmp_path / "folds"])
    assert list(runs) == ["one", "folds"] and runs["one"] == rows
    assert [row["id"] for row in runs["folds"]] == ["folder/test/0010", "folder/test/0020"]
    write(tmp_path / "other" / "one", rows)
    files = [one / "predictions.jsonl", tmp_path / "other" / "one" / "predictions.jsonl"]
    assert list(read_runs(files)) == [str(file) for file in files]
    with pytest.raises(FeridError, match="given twice"):
        read_runs([one, one / "predictions.jsonl"])
    with pytest.raises(FeridError, match="absent is not a file"):
        read_runs([one, tmp_path / "absent"])
    write(tmp_path / "folds" / "fold-3", run([("fear", "fear")], start=10))
    with pytest.raises(FeridError, match="its folds share rows"):
        read_runs([one, tmp_path / "folds"])
