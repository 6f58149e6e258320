"""WAR, UAR, intervals and the confusion matrix against hand-made sums, scikit-learn and their own laws."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.metrics import bootstrap_intervals, compute_metrics, read_predictions, write_metrics

OPTIONS = ["surprise", "fear", "disgust"]


def rows(pairs, options=OPTIONS):
    """`[(truth, prediction), ...]` as rows of a predictions file."""
    return [
        {"id": f"folder/test/{truth}/{i:04d}", "label": truth, "prediction": prediction, "options": options}
        for i, (truth, prediction) in enumerate(pairs)
    ]


answers = st.lists(st.tuples(st.sampled_from(OPTIONS), st.sampled_from([*OPTIONS, None])), min_size=1, max_size=40)


def test_a_case_by_hand():
    metrics = compute_metrics(
        rows(
            [("surprise", "surprise")] * 3
            + [("surprise", "fear")]
            + [("fear", "fear"), ("fear", None), ("fear", "disgust"), ("fear", "surprise")]
        )
    )
    assert metrics["n"] == 8
    assert metrics["war"] == 4 / 8
    assert metrics["uar"] == pytest.approx((3 / 4 + 1 / 4) / 2)  # disgust has no row: it is no third class
    assert metrics["invalid_rate"] == 1 / 8
    assert metrics["recall"] == {"surprise": {"recall": 0.75, "n": 4}, "fear": {"recall": 0.25, "n": 4}}
    # surprise: precision 3/4, recall 3/4; fear: precision 1/2, recall 1/4
    assert metrics["macro_f1"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert metrics["labels"] == OPTIONS
    assert metrics["confusion_matrix"] == [[3, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert all(isinstance(n, int) for row in metrics["confusion_matrix"] for n in row)
    json.dumps(metrics, allow_nan=False)


def test_only_invalid_answers():
    metrics = compute_metrics(rows([("fear", None), ("disgust", None)]))
    assert (metrics["war"], metrics["uar"], metrics["macro_f1"], metrics["invalid_rate"]) == (0, 0, 0, 1)
    assert metrics["war_ci95"] == metrics["uar_ci95"] == [0, 0]


def test_sources_with_other_options_are_mixed():
    mixed = rows([("fear", "fear")], ["surprise", "fear"]) + rows([("contempt", "fear")], ["fear", "contempt"])
    metrics = compute_metrics(mixed)
    assert metrics["labels"] == ["surprise", "fear", "contempt"]
    assert metrics["confusion_matrix"] == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


@given(answers)
@settings(deadline=None, max_examples=60)
def test_laws(pairs):
    metrics = compute_metrics(rows(pairs))
    assert 0 <= metrics["uar"] <= 1 and 0 <= metrics["war"] <= 1 and 0 <= metrics["macro_f1"] <= 1
    for low, high in (metrics["war_ci95"], metrics["uar_ci95"]):
        assert 0 <= low <= high <= 1
    assert np.sum(metrics["confusion_matrix"]) == metrics["n"] == sum(c["n"] for c in metrics["recall"].values())
    shuffled = rows(pairs)
    random.Random(0).shuffle(shuffled)
    assert compute_metrics(shuffled) == metrics


@given(answers, st.data())
@settings(deadline=None, max_examples=60)
def test_an_invalid_answer_is_as_wrong_as_a_wrong_one(pairs, data):
    i = data.draw(st.integers(0, len(pairs) - 1))
    truth = pairs[i][0]
    wrong = next(option for option in OPTIONS if option != truth)
    as_wrong = compute_metrics(rows([*pairs[:i], (truth, wrong), *pairs[i + 1 :]]))
    as_invalid = compute_metrics(rows([*pairs[:i], (truth, None), *pairs[i + 1 :]]))
    for key in ("war", "uar", "recall", "war_ci95", "uar_ci95"):
        assert as_invalid[key] == as_wrong[key]
    assert as_invalid["invalid_rate"] > as_wrong["invalid_rate"]


def test_agrees_with_scikit_learn():
    generator = np.random.default_rng(0)
    truth, predicted = generator.choice(OPTIONS, 300, p=[0.7, 0.2, 0.1]), generator.choice(OPTIONS, 300)
    metrics = compute_metrics(rows(zip(truth.tolist(), predicted.tolist(), strict=True)))
    assert metrics["war"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["uar"] == pytest.approx(balanced_accuracy_score(truth, predicted))


@pytest.mark.parametrize("n", [20, 200])
def test_intervals_contain_the_figure_and_shrink(n):
    pairs = [("surprise", "surprise"), ("surprise", "fear"), ("fear", "fear"), ("disgust", None)]
    small, large = compute_metrics(rows(pairs * n)), compute_metrics(rows(pairs * n * 10))
    for key in ("war", "uar"):
        for metrics in (small, large):
            low, high = metrics[f"{key}_ci95"]
            assert low < metrics[key] < high
        ratio = np.ptp(small[f"{key}_ci95"]) / np.ptp(large[f"{key}_ci95"])
        assert ratio == pytest.approx(10**0.5, rel=0.15)  # width falls with the root of n


def test_intervals_equal_those_of_resampled_rows():
    """The multinomial draw is the plain bootstrap: here against one that draws the rows themselves."""
    generator = np.random.default_rng(1)
    truth = generator.choice(3, 150, p=[0.6, 0.3, 0.1])
    predicted = np.where(generator.random(150) < 0.6, truth, generator.choice(3, 150))
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth, predicted), 1)
    wars, uars = [], []
    for drawn in generator.integers(0, 150, (2000, 150)):
        right = truth[drawn] == predicted[drawn]
        wars.append(right.mean())
        uars.append(np.mean([right[truth[drawn] == c].mean() for c in np.unique(truth[drawn])]))
    for interval, figures in zip(bootstrap_intervals(confusion), (wars, uars), strict=True):
        np.testing.assert_allclose(interval, np.percentile(figures, [2.5, 97.5]), atol=0.02)


def test_the_seed_decides():
    confusion = np.array([[30, 11], [7, 9]])
    assert bootstrap_intervals(confusion, seed=1) == bootstrap_intervals(confusion, seed=1)
    assert bootstrap_intervals(confusion, seed=1) != bootstrap_intervals(confusion, seed=2)


def test_a_file_and_back(tmp_path):
    path = tmp_path / "predictions.jsonl"
    written = rows([("fear", "fear"), ("disgust", None)])
    path.write_text("".join(json.dumps(row) + "\n" for row in written) + "\n", encoding="utf-8")
    assert read_predictions(path) == written
    metrics = compute_metrics(written)
    write_metrics(metrics, tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics


GOOD = json.dumps(rows([("fear", "fear")])[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no predictions"),
        (GOOD + "\n{broken\n", "line 2: not JSON"),
        (GOOD + "\n[1]\n", "line 2: not a JSON object"),
        (GOOD + "\n\n" + GOOD + "\n", "line 3: the id 'folder/test/fear/0000' occurs twice"),
        ('{"id": "a", "label": "fear"}\n', "line 1: prediction, options missing"),
        (GOOD.replace('"label": "fear"', '"label": "joy"'), "the label 'joy' is not one of"),
        (GOOD.replace('"prediction": "fear"', '"prediction": "joy"'), "the prediction 'joy' .* write null"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FeridError, match=message):
        read_predictions(path)


def test_no_predictions(tmp_path):
    with pytest.raises(FeridError, match="no predictions"):
        compute_metrics([])
    with pytest.raises(FeridError, match="not a file"):
        read_predictions(tmp_path / "absent.jsonl")


def test_needs_neither_torch_nor_transformers():
    code = "import sys, ferid_dataset.evaluate.metrics; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
