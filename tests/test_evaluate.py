"""`ferid evaluate` and what it stands on: a model's answers to real rows, written, measured, resumed after a stop."""

import json
import math
import os
import shutil

import pytest
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
        assert list(row) == ["id", "source", "label", "prediction", "text", "options", "probabilities"]
        assert row["source"] == "folder" and row["label"] == row["id"].split("/")[2]
        assert row["options"] == list(row["probabilities"]) == OPTIONS
        assert math.isclose(sum(row["probabilities"].values()), 1, abs_tol=1e-5)
        assert row["prediction"] in [None, *OPTIONS]


def test_the_files_hold_what_is_returned(results, tiny_checkpoint, ferid):
    metrics, output = results
    assert sorted(os.listdir(output)) == ["confusion_matrix.png", "metrics.json", "predictions.jsonl"]
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert metrics["n"] == 7 and metrics["recall"].keys() == set(OPTIONS)
    assert metrics["model"] == str(tiny_checkpoint) and metrics["data"] == str(ferid) and metrics["split"] == "test"
    assert metrics["measured_on"] == "ferid test (drawn faces, no photographs)"
    Image.open(output / "confusion_matrix.png").verify()


def test_answers_are_read_and_invalid_ones_count_as_wrong(tiny_checkpoint, ferid, tmp_path, monkeypatch):
    model, processor = load_checkpoint(tiny_checkpoint)
    answers = iter(["Anger.", "disgust", "fear", "fear", "no idea", "happiness or sadness", ""])  # ids are sorted
    monkeypatch.setattr(processor, "batch_decode", lambda rows, **_: [next(answers) for _ in rows], raising=False)
    monkeypatch.setattr(run, "load_checkpoint", lambda _: (model, processor))
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
