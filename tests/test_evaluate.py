"""`ferid evaluate` and what it stands on: a model's answers to real rows, written, measured, resumed after a stop."""

import json
import math
import os
import shutil

import pytest
from made_ferid import make_ferid
from PIL import Image

from ferid_dataset.build import build_ferid
from ferid_dataset.drawn_faces import draw_faces
from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate import run
from ferid_dataset.evaluate.metrics import read_predictions
from ferid_dataset.evaluate.predict import predict
from ferid_dataset.labels import LABELS
from modeling_emo_llama.load_checkpoint import load_checkpoint

pytest.importorskip("dlib")  # rows without face priors: the processor looks for the faces
OPTIONS = list(LABELS[:7])


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    """28 drawn faces for training, 7 for testing, one of each expression."""
    root = tmp_path_factory.mktemp("evaluate")
    draw_faces(root / "pictures", count=35)
    build_ferid(root / "ferid", folder=root / "pictures", num_proc=1)
    return root / "ferid"


@pytest.fixture(scope="module")
def results(tiny_checkpoint, ferid, tmp_path_factory):
    """What an evaluation returns, and the folder that it wrote."""
    output = tmp_path_factory.mktemp("results") / "new"
    return run.evaluate(tiny_checkpoint, ferid, output), output


def test_every_row_has_one_valid_prediction(results, ferid):
    predictions = read_predictions(results[1] / "predictions.jsonl")
    assert [row["id"] for row in predictions] == run.load_rows(ferid, "test")["id"][:]
    for row in predictions:
        assert list(row)[:7] == ["id", "source", "label", "prediction", "text", "options", "probabilities"]
        assert row["attributes"] == {"age": None, "gender": None, "race": None} and row["method"] == "generate"
        assert row["source"] == "folder" and row["label"] == row["id"].split("/")[2]
        assert row["options"] == list(row["probabilities"]) == OPTIONS
        assert math.isclose(sum(row["probabilities"].values()), 1, abs_tol=1e-5)
        assert row["prediction"] in [None, *OPTIONS]


def test_the_files_hold_what_is_returned(results, tiny_checkpoint, ferid):
    metrics, output = results
    assert sorted(os.listdir(output)) == [
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "metrics.json",
        "predictions.jsonl",
    ]
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert metrics["n"] == 7 and metrics["recall"].keys() == set(OPTIONS)
    assert metrics["model"] == str(tiny_checkpoint) and metrics["data"] == str(ferid) and metrics["split"] == "test"
    assert metrics["measured_on"] == "ferid test (drawn faces, no photographs)"
    Image.open(output / "confusion_matrix.png").verify()


def test_answers_are_read_and_invalid_ones_count_as_wrong(tiny_checkpoint, ferid, tmp_path, monkeypatch):
    model, processor = load_checkpoint(tiny_checkpoint)
    answers = iter(["Anger.", "disgust", "fear", "fear", "no idea", "happiness or sadness", ""])  # ids are sorted
    monkeypatch.setattr(processor, "batch_decode", lambda rows, **_: [next(answers) for _ in rows], raising=False)
    monkeypatch.setattr(run, "load_model", lambda *_: (model, processor))
    metrics = run.evaluate(tiny_checkpoint, ferid, tmp_path, batch_size=3)

    rows = {row["label"]: row for row in read_predictions(tmp_path / "predictions.jsonl")}
    assert [rows[label]["prediction"] for label in sorted(rows)] == [
        "anger",
        "disgust",
        "fear",
        "fear",
        None,
        None,
        None,
    ]
    assert rows["neutral"]["text"] == "no idea"
    assert metrics["war"] == pytest.approx(3 / 7) and metrics["invalid_rate"] == pytest.approx(3 / 7)
    assert metrics["recall"]["sadness"] == {"recall": 0.0, "n": 1}


def test_rows_that_offer_different_options(tiny_checkpoint, ferid):
    rows = [run.load_rows(ferid, "test")[index] for index in range(3)]
    rows[1]["options"] = OPTIONS[:2]
    predictions = list(predict(*load_checkpoint(tiny_checkpoint), rows, max_new_tokens=2))
    assert [list(row["probabilities"]) for row in predictions] == [OPTIONS, OPTIONS[:2], OPTIONS]
    assert [row["id"] for row in predictions] == [row["id"] for row in rows]


def test_score_takes_the_likeliest_option(tiny_checkpoint, ferid, tmp_path):
    metrics = run.evaluate(tiny_checkpoint, ferid, tmp_path, method="score")
    assert metrics["method"] == "score" and metrics["invalid_rate"] == 0
    written = {
        row["id"]: row
        for row in predict(*load_checkpoint(tiny_checkpoint), run.load_rows(ferid, "test"), method="generate")
    }
    for row in read_predictions(tmp_path / "predictions.jsonl"):
        assert row["prediction"] == row["text"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["probabilities"] == pytest.approx(written[row["id"]]["probabilities"], abs=0.02)  # in bfloat16
    with pytest.raises(FeridError, match="no method 'guess': choose from score, generate"):
        run.evaluate(tiny_checkpoint, ferid, tmp_path, method="guess")


def test_a_clip_and_options_in_other_words(tiny_checkpoint, ferid):
    """Clips are asked with all their frames; "joy" was offered, "happiness" is counted."""
    clip = run.load_rows(ferid, "test")[0]
    clip |= {
        "media_type": "video",
        "images": clip["images"] * 3,
        "faces": clip["faces"] and clip["faces"] * 3,
        "options": ["joy", "fear"],
    }
    (prediction,) = predict(*load_checkpoint(tiny_checkpoint), [clip], max_new_tokens=2)
    assert prediction["options"] == list(prediction["probabilities"]) == ["happiness", "fear"]


def test_only_one_source(tiny_checkpoint, ferid):
    assert len(run.load_rows(ferid, "train", "folder")) == 28
    with pytest.raises(FeridError, match="no source 'raf_db' in test: choose from folder"):
        run.evaluate(tiny_checkpoint, ferid, "unused", source="raf_db")


def test_five_folds_and_their_mean(tiny_checkpoint, tmp_path):
    for fold in run.FOLDS:
        make_ferid(tmp_path / f"ferid_of_fold-{fold}", 0, 2 + fold, side=16)
        (tmp_path / f"model-{fold}").symlink_to(tiny_checkpoint)
    place = {"model": tmp_path / "model-{fold}", "data": tmp_path / "ferid_of_fold-{fold}", "output": tmp_path / "out"}
    summary = run.evaluate(**place, split="train", fold="all", method="score")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == summary
    assert summary["folds"] == 5 and summary["n"] == [3, 4, 5, 6, 7]
    for fold in run.FOLDS:
        metrics = json.loads((tmp_path / f"out/fold-{fold}/metrics.json").read_text())
        assert metrics["war"] == summary["war"]["values"][fold - 1]
        assert (
            metrics["model"].endswith(f"model-{fold}")
            and len(read_predictions(tmp_path / f"out/fold-{fold}")) == 2 + fold
        )
    one = run.evaluate(**place | {"output": tmp_path / "one"}, split="train", fold=2, method="score")
    assert one["n"] == 4 and (tmp_path / "one/predictions.jsonl").exists()

    with pytest.raises(FeridError, match="no fold '6': give 1 to 5, or all"):
        run.evaluate(**place, fold="6")
    with pytest.raises(FeridError, match="names no fold: write {fold}"):
        run.evaluate(tiny_checkpoint, tmp_path / "ferid_of_fold-1", tmp_path / "out", fold="all")
    shutil.rmtree(tmp_path / "ferid_of_fold-5")
    with pytest.raises(FeridError, match="ferid_of_fold-5 is no FERID"):  # before the first one is evaluated
        run.evaluate(**place | {"output": tmp_path / "none"}, split="train", fold="all")
    assert not (tmp_path / "none").exists()


def test_free_answers(tiny_checkpoint, tmp_path):
    build_with_conversations(tmp_path)
    facts = run.evaluate(
        tiny_checkpoint,
        tmp_path / "ferid_talk",
        tmp_path / "out",
        split="train",
        config="conversation",
        max_new_tokens=5,
    )
    assert facts["measured_on"].startswith("ferid_talk train")
    lines = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert len(lines) == 28 and {line["question"] for line in lines} == {"How does the person look?"}
    assert lines[0]["reference"].startswith("The person") and isinstance(lines[0]["text"], str)
    with pytest.raises(FeridError, match="has no config 'conversation': make it with .* --annotations"):
        run.load_rows(make_ferid(tmp_path / "ferid_mute", 3), "train", config="conversation")


def build_with_conversations(folder):
    draw_faces(folder / "pictures", count=35)
    turns = [
        ("user", "How does the person look?"),
        ("assistant", "The person looks {}."),
        ("user", "Why?"),
        ("assistant", "It is not clear."),
    ]
    (folder / "annotations/folder").mkdir(parents=True)
    with (folder / "annotations/folder/train.jsonl").open("w") as lines:
        for file in sorted((folder / "pictures/train").glob("*/*.png")):
            messages = [{"role": role, "content": text.format(file.parent.name)} for role, text in turns]
            lines.write(
                json.dumps({"id": f"folder/train/{file.parent.name}/{file.stem}", "messages": messages}) + "\n"
            )
    build_ferid(folder / "ferid_talk", folder=folder / "pictures", annotations=folder / "annotations", num_proc=1)


@pytest.fixture
def asked(monkeypatch):
    """The ids that are predicted from here on; after `limit` of them comes Ctrl-C."""

    class Asked(list):
        limit = None

    asked = Asked()

    def counted(model, processor, rows, **kwargs):
        for row in predict(model, processor, rows, **kwargs):
            if len(asked) == asked.limit:
                raise KeyboardInterrupt
            asked.append(row["id"])
            yield row

    monkeypatch.setattr(run, "predict", counted)
    return asked


def test_a_stopped_run_goes_on_where_it_was(tiny_checkpoint, ferid, tmp_path, asked, results):
    asked.limit = 3
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(tiny_checkpoint, ferid, tmp_path)
    (journal,) = os.listdir(tmp_path)
    assert journal.startswith("predictions-") and journal.endswith(".unfinished")
    with open(tmp_path / journal, "a") as lines:
        lines.write('{"id": "folder/te')  # what a killed process leaves

    asked.limit = None
    metrics = run.evaluate(tiny_checkpoint, ferid, tmp_path)
    assert len(asked) == len(set(asked)) == 7
    assert metrics["n"] == 7 and not (tmp_path / journal).exists()
    assert [row["id"] for row in read_predictions(tmp_path / "predictions.jsonl")] == asked

    run.evaluate(tiny_checkpoint, ferid, tmp_path)  # nothing is left of a run that is complete
    assert len(asked) == 14


def test_predictions_of_other_weights_are_not_resumed(tiny_checkpoint, ferid, tmp_path, asked):
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    asked.limit = 3
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(model, ferid, tmp_path / "results")
    os.utime(model / "model.safetensors", (0, 0))  # trained again
    asked.clear()
    asked.limit = None
    run.evaluate(model, ferid, tmp_path / "results")
    assert len(asked) == 7
