"""WAR, UAR, intervals and the confusion matrix against hand-made sums, scikit-learn and their own laws."""

import io
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.groups import SMALLEST_GROUP
from ferid_dataset.evaluate.metrics import (
    bootstrap_intervals,
    compute_metrics,
    expected_calibration_error,
    read_predictions,
    summarise_folds,
    write_metrics,
    write_reports,
)
from ferid_dataset.evaluate.recompute import recompute
from ferid_dataset.evaluate.report_table import print_folds, print_metrics

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
        (GOOD.replace('"id": "folder/test/fear/0000"', '"id": 7'), "line 1: the id 7 is no text"),
        (GOOD.replace('["surprise", "fear", "disgust"]', '"fear"'), "line 1: the options 'fear' are no list of texts"),
        (
            GOOD.replace('["surprise", "fear", "disgust"]', '["fear", 3]'),
            "line 1: the options .* are no list of texts",
        ),
        (GOOD.replace("}", ', "source": 3}'), "line 1: the source 3 is no text"),
        (GOOD.replace("}", ', "attributes": "old"}'), "line 1: the attributes 'old' are no JSON object"),
        (GOOD.replace("}", ', "attributes": {"age": 31}}'), "line 1: the attribute 'age' is 31; each is a text"),
        (GOOD.replace("}", ', "probabilities": [1]}'), "line 1: the probabilities .* are no JSON object"),
        (
            GOOD.replace("}", ', "probabilities": {"joy": 1}}'),
            "line 1: the probability of 'joy' is 1; each is a num",
        ),
        (GOOD.replace("}", ', "probabilities": {"fear": 1.5}}'), "line 1: the probability of 'fear' is 1.5"),
        (GOOD.replace("}", ', "probabilities": {"fear": NaN}}'), "line 1: the probability of 'fear' is nan"),
        (GOOD.replace("}", ', "probabilities": {"fear": true}}'), "line 1: the probability of 'fear' is True"),
        (GOOD + "\n" + "[" * 5000 + "]" * 5000, "line 2: not JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FeridError, match=message):
        read_predictions(path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"id": "\xff\xfe"}\n')
    with pytest.raises(FeridError, match="line 2: not JSON"):
        read_predictions(path)


@given(st.binary(max_size=80) | st.text(max_size=40).map(str.encode), st.integers(0, len(GOOD)))
@settings(deadline=None)
def test_any_damage_is_a_sentence_or_harmless(tmp_path_factory, damage, place):
    path = tmp_path_factory.mktemp("damaged") / "predictions.jsonl"
    path.write_bytes(GOOD[:place].encode() + damage + GOOD[place + len(damage) :].encode())
    try:
        compute_metrics(read_predictions(path))
    except FeridError as error:
        assert str(path) in str(error)


def test_no_predictions(tmp_path):
    with pytest.raises(FeridError, match="no predictions"):
        compute_metrics([])
    with pytest.raises(FeridError, match="not a file"):
        read_predictions(tmp_path / "absent.jsonl")


def test_needs_neither_torch_nor_transformers():
    code = "import sys, ferid_dataset.evaluate.metrics; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- calibration ---


def with_probabilities(cases):
    """`[(probability of "fear", truth), ...]`; "disgust" has the rest."""
    return [
        row | {"probabilities": {"fear": p, "disgust": 1 - p}}
        for row, (p, _) in zip(rows([(truth, "fear") for _, truth in cases]), cases, strict=True)
    ]


def test_calibration_by_hand():
    # 0.95 and 0.97 share the last of 15 bins (from 0.933): one of two is right there, 0.96 is claimed
    # 0.8 is the first of its bin, 0.86 is of it too: none right, 0.83 claimed; 0.5 is a bin of its own, and right
    cases = [(0.95, "fear"), (0.97, "disgust"), (0.80, "disgust"), (0.86, "disgust"), (0.5, "fear")]
    by_hand = (abs(1 - 1.92) + abs(0 - 1.66) + abs(1 - 0.5)) / 5
    assert expected_calibration_error(with_probabilities(cases)) == pytest.approx(by_hand)
    assert compute_metrics(with_probabilities(cases))["ece"] == pytest.approx(by_hand)
    assert expected_calibration_error(with_probabilities([(1.0, "fear"), (0.0, "disgust")])) == 0


def test_calibration_is_of_the_probabilities_not_of_what_was_written():
    cases = with_probabilities([(0.9, "fear")] * 9 + [(0.9, "disgust")])
    assert expected_calibration_error(cases) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error([row | {"prediction": None} for row in cases]) == pytest.approx(0, abs=1e-12)


def test_calibration_needs_all_probabilities():
    cases = with_probabilities([(0.9, "fear")] * 3)
    for missing in (None, {}):
        assert compute_metrics([cases[0] | {"probabilities": missing}, *cases[1:]])["ece"] is None
    assert compute_metrics(rows([("fear", "fear")]))["ece"] is None


def test_a_calibrated_model_has_almost_no_error():
    generator = np.random.default_rng(0)
    tops = generator.uniform(0.5, 1, 100_000)
    right = generator.random(100_000) < tops
    cases = [(p, "fear" if r else "disgust") for p, r in zip(tops.tolist(), right.tolist(), strict=True)]
    assert expected_calibration_error(with_probabilities(cases)) < 0.01


# --- sources and groups ---


def of_people(n, age=None, gender=None, race=None, pair=("fear", "fear"), source="raf_db", start=0):
    attributes = {"age": age, "gender": gender, "race": race}
    made = rows([pair] * n)
    return [
        row | {"id": f"{source}/{start + i}", "source": source, "attributes": attributes} for i, row in enumerate(made)
    ]


def test_sources_alone_and_together():
    mixed = of_people(3, source="raf_db") + of_people(2, source="dfew", pair=("disgust", None))
    metrics = compute_metrics(mixed)
    assert list(metrics["by_source"]) == ["dfew", "raf_db"] and metrics["n"] == 5 and metrics["war"] == 0.6
    for source, part in (("raf_db", mixed[:3]), ("dfew", mixed[3:])):
        alone = compute_metrics(part)
        assert metrics["by_source"][source] == alone["by_source"][source]
        assert all(alone[key] == value for key, value in metrics["by_source"][source].items())
    assert compute_metrics(rows([("fear", "fear")]))["by_source"] == {}  # old files tell no source


def test_groups_with_counts_and_intervals():
    people = (
        of_people(20, "34", "female")
        + of_people(20, "20-39", "female", pair=("disgust", "fear"), start=20)
        + of_people(29, "71", "male", start=40)
        + of_people(1, None, "", start=69)
    )
    groups = compute_metrics(people)["by_group"]
    assert groups.keys() == {"age", "gender"}  # no row knows the race
    assert list(groups["age"]) == ["20-39", "70+", "unknown"] and list(groups["gender"])[-1] == "unknown"
    young = groups["age"]["20-39"]
    assert (young["n"], young["classes"], young["small"], young["war"], young["uar"]) == (40, 2, False, 0.5, 0.5)
    assert young["war_ci95"] == compute_metrics(people[:40])["war_ci95"]
    small = {"n": 29, "classes": 1, "small": True, "war": None, "war_ci95": None, "uar": None, "uar_ci95": None}
    assert groups["age"]["70+"] == small and groups["age"]["unknown"]["n"] == groups["gender"]["unknown"]["n"] == 1
    assert all(sum(group["n"] for group in values.values()) == len(people) for values in groups.values())
    assert SMALLEST_GROUP == compute_metrics(people)["smallest_group"] == 30
    assert compute_metrics(rows([("fear", "fear")]))["by_group"] == {}


@pytest.mark.parametrize(
    ("age", "group"),
    [("0", "0-3"), ("3.9", "0-3"), ("4", "4-19"), ("19", "4-19"), ("20", "20-39"), ("69", "40-69"), ("70", "70+")]
    + [("101", "70+"), ("70+", "70+"), ("adult", "adult"), ("-1", "unknown"), ("nan", "unknown"), ("", "unknown")],
)
def test_ages_in_years_are_put_in_the_groups_of_raf_db(age, group):
    assert list(compute_metrics(of_people(1, age, "male"))["by_group"].get("age", ["unknown"])) == [group]


# --- folds ---


def test_folds_have_mean_and_spread():
    folds = [compute_metrics(of_people(4) + of_people(n, pair=("disgust", "fear"), start=4)) for n in (0, 1, 4)]
    summary = summarise_folds(folds)
    values = [1.0, 0.8, 0.5]
    assert summary["folds"] == 3 and summary["n"] == [4, 5, 8]
    assert summary["war"] == {
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values, ddof=1)),
        "values": values,
    }
    assert summary["uar"]["values"] == [1.0, 0.5, 0.5]
    assert summary["ece"] == {"mean": None, "std": None, "values": [None] * 3}
    assert summary["recall"]["disgust"] == {"mean": 0.0, "std": 0.0, "values": [None, 0.0, 0.0]}
    assert summary["by_source"]["raf_db"]["war"] == summary["war"]
    assert summarise_folds(folds[:1])["war"] == {"mean": 1.0, "std": None, "values": [1.0]}
    json.dumps(summary, allow_nan=False)
    with pytest.raises(FeridError, match="no folds"):
        summarise_folds([])


def test_a_source_that_a_fold_lacks_has_no_mean():
    folds = [compute_metrics(of_people(4)), compute_metrics(of_people(4) + of_people(4, source="dfew"))]
    summary = summarise_folds(folds)["by_source"]
    assert summary["dfew"]["war"] == {"mean": None, "std": None, "values": [None, 1.0]}
    assert summary["dfew"]["n"] == [0, 4] and summary["raf_db"]["war"]["mean"] == 1


# --- files and screen ---


def test_reports_are_written(tmp_path):
    predictions = of_people(3) + of_people(1, pair=("disgust", None), start=3)
    metrics = write_reports(predictions, tmp_path / "new" / "figures", "a title", {"model": "tiny"})
    folder = tmp_path / "new" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("confusion_matrix.csv", "confusion_matrix.png", "metrics.json"),
    ]
    assert (
        json.loads((folder / "metrics.json").read_text())
        == metrics
        == compute_metrics(predictions) | {"model": "tiny"}
    )
    assert (folder / "confusion_matrix.csv").read_text() == (
        "truth \\ prediction,surprise,fear,disgust,invalid\nsurprise,0,0,0,0\nfear,0,3,0,0\ndisgust,0,0,0,1\n"
    )
    (tmp_path / "file").touch()
    with pytest.raises(FeridError, match="file is a file: give the name of a folder"):
        write_reports(predictions, tmp_path / "file", "", {})


def test_figures_are_computed_again_from_predictions_alone(tmp_path):
    predictions = of_people(3)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in predictions))
    metrics = recompute(folder / "predictions.jsonl", tmp_path / "again")
    assert metrics == compute_metrics(predictions) | {"measured_on": "results"}
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == metrics

    facts = {"model": "tiny", "data": "ferid", "split": "test", "source": None, "measured_on": "ferid test"}
    write_metrics(metrics | facts | {"war": 0.0}, folder / "metrics.json")
    assert recompute(folder) == metrics | facts  # what predictions cannot tell is kept, figures are not
    (folder / "metrics.json").write_text("{")
    with pytest.raises(FeridError, match="metrics.json is not the metrics.json of an evaluation"):
        recompute(folder)


def test_figures_on_drawn_faces_are_called_so(tmp_path):
    drawn = [row | {"id": f"folder/test/fear/drawn_{i}"} for i, row in enumerate(of_people(2))]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
    assert recompute(tmp_path)["measured_on"] == f"{tmp_path.name} (drawn faces, no photographs)"


def test_the_table_has_all_figures_and_fits_80_characters():
    people = of_people(40, "34", "female", "African-American") + of_people(40, source="crema_d", age="71", start=40)
    people += of_people(5, "4-19", "male", "Asian", pair=("disgust", None), start=80)
    metrics = compute_metrics(people) | {"measured_on": "ferid test"}
    console = Console(width=80, file=io.StringIO())
    print_metrics(metrics, console)
    print_folds(summarise_folds([metrics] * 5), "five folds", console)
    text = console.file.getvalue()
    for words in ("ferid test", "WAR ", "0.941", "recall of disgust", "crema_d", "African-American", "too few"):
        assert words in text
    for words in ("fewer than 30 rows", "fold 5", "UAR of raf_db", "invalid answers", "five folds"):
        assert words in text
    assert "ECE" not in text and "…" not in text


def test_names_with_brackets_are_shown_as_they_are():
    people = [row | {"source": f"[{i % 2}]"} for i, row in enumerate(of_people(60, "[/b]", "[red]"))]
    console = Console(width=80, file=io.StringIO())
    metrics = compute_metrics(people) | {"measured_on": "[/x]"}
    print_metrics(metrics, console)
    print_folds(summarise_folds([metrics]), "[/x]", console)
    for words in ("[/b]", "[red]", "[1]", "[/x]"):
        assert words in console.file.getvalue()
