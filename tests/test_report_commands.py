"""`ferid metrics`, `compare` and `quality` as a user meets them: files, tables, and one sentence for every mistake."""

import json
import sys

import pytest
from fake_openai import KEY, FakeOpenAI
from test_conversation_quality import ANSWERS, verdict

from ferid_dataset import cli

OPTIONS = ["surprise", "fear", "disgust"]


@pytest.fixture
def ferid(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, what it printed, what it said on stderr)."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ferid", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def write(folder, pairs, start=0):
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"id": f"mafw/{i:05}", "source": "mafw", "label": truth, "prediction": answer, "options": OPTIONS})
        for i, (truth, answer) in enumerate(pairs, start)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def runs(tmp_path):
    right, wrong = ("fear", "fear"), ("fear", "disgust")
    return write(tmp_path / "before", [right] * 20 + [wrong] * 20), write(
        tmp_path / "after", [right] * 35 + [wrong] * 5
    )


def test_metrics(ferid, runs, tmp_path):
    code, out, _ = ferid("metrics", runs[0] / "predictions.jsonl", "--output", tmp_path / "figures")
    assert code == 0 and "before" in out and "WAR" in out and "0.500" in out and "recall of fear" in out
    assert f"{tmp_path / 'figures'} holds metrics.json" in out.replace("\n", "")
    assert json.loads((tmp_path / "figures/metrics.json").read_text())["war"] == 0.5
    code, out, _ = ferid("metrics", runs[0])
    assert code == 0 and "holds" not in out


def test_metrics_of_folds(ferid, tmp_path):
    for fold in range(1, 6):
        write(tmp_path / "results" / f"fold-{fold}", [("fear", "fear")] * fold + [("fear", None)], start=10 * fold)
    (tmp_path / "results/metrics.json").write_text('{"model": "runs/fold-{fold}", "measured_on": "mafw test"}')
    code, out, _ = ferid("metrics", tmp_path / "results", "--output", tmp_path / "again")
    assert code == 0 and "mafw test" in out and "fold 5" in out
    summary = json.loads((tmp_path / "again/metrics.json").read_text())
    assert summary["war"]["values"] == [fold / (fold + 1) for fold in range(1, 6)]
    assert summary["model"] == "runs/fold-{fold}" and summary["measured_on"] == "mafw test"
    assert json.loads((tmp_path / "again/fold-2/metrics.json").read_text())["war"] == 2 / 3


def test_compare(ferid, runs, tmp_path):
    code, out, _ = ferid("compare", *runs, "--json", tmp_path / "comparison.json")
    assert code == 0
    for words in ("A  before", "B  after", "+0.375", "McNemar, exact", "right alone", "n = 40", "6.1e-05"):
        assert words in out
    assert "…" not in out
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["differences"][0]["mcnemar"] == {"only_a_right": 0, "only_b_right": 15, "p": 2 * 0.5**15}


def test_compare_three_with_rows_in_common(ferid, runs, tmp_path):
    third = write(tmp_path / "third", [("fear", "fear")] * 30)
    code, out, err = ferid("compare", *runs, third)
    assert code == 2 and not out
    assert err.startswith("ferid: before and third do not hold the same rows: 10 only in before (such as mafw/00030)")
    code, out, _ = ferid("compare", *runs, third, "--common")
    assert code == 0 and "Left out, because not all have them alike: 10 rows." in out and "C against A, 30 rows" in out


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["metrics", "absent.jsonl"], "absent.jsonl is not a file"),
        (["compare", "one"], "takes two or more runs"),
        (["quality", "absent"], "absent is not a file"),
    ],
)
def test_mistakes_are_sentences(ferid, runs, order, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one", [("fear", "fear")])
    code, out, err = ferid(*order)
    assert code == 2 and words in err and err.count("\n") == 1 and not out


def test_quality(ferid, tmp_path, monkeypatch):
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, ANSWERS)))
    code, out, _ = ferid("quality", tmp_path)
    assert code == 0 and "label affirmed" in out and "ROUGE-L" in out and "raf_db" in out and "Judged" not in out
    code, _, err = ferid("quality", tmp_path, "--judge", "judge")
    assert code == 2 and "give a folder to --output" in err

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeOpenAI(reply=verdict) as server:
        order = ("quality", tmp_path, "--judge", "judge", "--base-url", server.url, "--output", tmp_path / "quality")
        code, out, _ = ferid(*order)
    assert code == 0 and "Judged 3 by judge, prompt 1, from 1 to 10; not judged: no reference 1." in out
    assert "label agreement" in out and "…" not in out
    figures = json.loads((tmp_path / "quality/quality.json").read_text())
    assert figures["judge"]["model"] == "judge" and figures["clue_agreement"]["mean"] == 5
    assert (tmp_path / "quality/judge.sqlite").is_file()
