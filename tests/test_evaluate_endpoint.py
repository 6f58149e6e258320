"""`ferid evaluate --base-url`: a model behind a server, hostile or not; nothing lost, nothing paid twice, no failure
taken for an answer."""

import json
import multiprocessing
import os
import random
import threading

import pytest
from datasets.utils import tqdm
from fake_openai import KEY, FakeOpenAI
from made_ferid import make_ferid

from ferid_dataset import cli
from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate import run
from ferid_dataset.evaluate.endpoint import Server
from ferid_dataset.evaluate.metrics import read_predictions

STILLS, CLIPS = 20, 5


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    return make_ferid(tmp_path_factory.mktemp("asked") / "ferid_asked", STILLS, CLIPS)


def words_of(body: dict) -> str:
    (user,) = body["messages"]
    return user["content"][-1]["text"]


def says_sad(body: dict) -> str:
    return "The person looks sad." if "image" in words_of(body) else "Joy!"


def asked(ferid, output, server, **settings):
    asking = Server("writer", server.url, **{"concurrency": 4, **settings})
    return run.evaluate("writer", ferid, output, split="train", server=asking)


def test_stills_and_clips_in_the_same_words(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad) as server:
        metrics = asked(ferid, tmp_path, server, temperature=0.0)
    assert metrics["n"] == STILLS + CLIPS and metrics["invalid_rate"] == 0 and metrics["ece"] is None
    rows = read_predictions(tmp_path / "predictions.jsonl")
    assert [row["id"] for row in rows] == run.load_rows(ferid, "train")["id"][:]
    assert {row["prediction"] for row in rows if row["source"] == "raf_db"} == {"sadness"}
    assert {row["prediction"] for row in rows if row["source"] == "dfew"} == {"happiness"}  # "joy" was offered
    assert rows[0]["text"] == "The person looks sad." and rows[0]["probabilities"] is None
    assert rows[0]["method"] == "generate"

    questions = {words_of(body) for body in server.bodies}
    assert questions == {message[0]["content"] for message in run.load_rows(ferid, "train")["messages"]}
    assert sorted(len(body["messages"][0]["content"]) - 1 for body in server.bodies) == [1] * STILLS + [4] * CLIPS
    assert {body["temperature"] for body in server.bodies} == {0.0}
    assert sorted(os.listdir(tmp_path))[:4] == [
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "metrics.json",
        "predictions.jsonl",
    ]


def test_what_is_paid_for_is_not_asked_again(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad) as server:
        first = asked(ferid, tmp_path, server)
        os.remove(tmp_path / "predictions.jsonl")
        assert asked(ferid, tmp_path, server) == first
        assert server.done["answered"] == STILLS + CLIPS
        asked(ferid, tmp_path, server, picture_side=32)  # other pictures, so other answers
        assert server.done["answered"] == 2 * (STILLS + CLIPS)


def test_a_hostile_server_is_asked_again(ferid, tmp_path):
    hostile = ["429", "429 header", "500", "cut", "malformed", "no choices", "empty", "slow", "no choices"]
    with FakeOpenAI(reply=says_sad, hostile=hostile) as server:
        metrics = asked(ferid, tmp_path, server)
    assert metrics["n"] == STILLS + CLIPS and metrics["invalid_rate"] == 0
    assert server.done["answered"] == STILLS + CLIPS + 3  # two replies without choices, and an empty one


def test_failures_are_never_answers(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad, hostile=["good", *["bad request"] * 2, *["empty"] * 3]) as server:
        words = "rows have no answer .*the same command asks for them again"
        with pytest.raises(FeridError, match=words) as failure:
            asked(ferid, tmp_path, server, concurrency=1)
        assert "3 of 25" in str(failure.value) and "2: bad_request" in str(failure.value)
        assert not (tmp_path / "predictions.jsonl").exists() and not (tmp_path / "metrics.json").exists()
        assert asked(ferid, tmp_path, server)["invalid_rate"] == 0
        assert len(server.answers) == STILLS + CLIPS


def test_refusals_are_answers_that_name_nothing(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad, hostile=["refusal", "filtered"]) as server:
        metrics = asked(ferid, tmp_path, server, concurrency=1)
    rows = read_predictions(tmp_path / "predictions.jsonl")
    refused = [row["text"] for row in rows if row["prediction"] is None]
    assert refused == ["I can't help with that.", "The prompt was filtered"]
    assert metrics["invalid_rate"] == pytest.approx(2 / 25)


@pytest.mark.parametrize(
    ("settings", "hostile", "words"),
    [
        ({"model": "gpt-9"}, [], "does not know the model 'gpt-9'"),
        ({}, ["quota"], "no credit left"),
        ({}, ["bad request"] * 100, "25 rows failed one after the other|rows have no answer"),
        ({"base_url": "http://127.0.0.1:9/v1"}, [], "127.0.0.1:9"),
    ],
)
def test_servers_that_cannot_be_used(ferid, tmp_path, settings, hostile, words):
    with FakeOpenAI(hostile=hostile) as server:
        with pytest.raises(FeridError, match=words) as failure:
            asking = Server(**{"model": "writer", "base_url": server.url, "concurrency": 1, **settings})
            run.evaluate("writer", ferid, tmp_path, split="train", server=asking)
    assert KEY not in str(failure.value)
    assert not (tmp_path / "predictions.jsonl").exists()


def test_free_answers(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad) as server:
        output = tmp_path / "answers"
        rows = run.load_rows(ferid, "train")
        where = Server("writer", server.url)
        how = run.Asking(server=where)
        run._write_answers("writer", rows, "conversation", output / "answers.jsonl", how, None)
    lines = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 25 and lines[0]["text"] == "The person looks sad."
    assert lines[0]["reference"] == "happiness" and lines[0]["question"].startswith("What is the facial expression")


def test_rates_are_kept(ferid, tmp_path):
    with FakeOpenAI(reply=says_sad, requests_per_window=10, window=1.0) as server:
        asked(ferid, tmp_path, server, requests_per_minute=600)
    assert server.done["limit"] <= 2 and server.times[-1] - server.times[0] > 2


def life(ferid, output, url) -> None:
    os.environ["OPENAI_API_KEY"] = KEY
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tqdm.set_lock(threading.RLock())  # its own is for several processes, and would be left over by a kill
    run.evaluate("writer", ferid, output, split="train", server=Server("writer", url, concurrency=4))


@pytest.mark.parametrize(
    ("rows", "lives"), [(40, 3), pytest.param(200, 25, marks=pytest.mark.slow)], ids=["3 lives", "25 lives"]
)
def test_killed_at_random_moments(tmp_path, rows, lives):
    ferid = make_ferid(tmp_path / f"ferid_killed_{rows}", rows)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ferid_dataset.evaluate.run", "test_evaluate_endpoint"])
    moments, kills = random.Random(0), 0
    chance = {"429": 0.02, "500": 0.02, "no choices": 0.02}
    with FakeOpenAI(reply=says_sad, latency=0.2, chance=chance) as server:
        for _ in range(lives):
            process = context.Process(target=life, args=(ferid, tmp_path / "out", server.url))
            process.start()
            process.join(moments.uniform(0.3, 1.0))
            kills += process.exitcode is None
            process.kill()
            process.join()
        last = context.Process(target=life, args=(ferid, tmp_path / "out", server.url))
        last.start()
        last.join(60)
        assert last.exitcode == 0 and kills
        assert len(server.answers) == rows
        assert sum(server.answers.values()) - rows <= kills * 4 + server.done["no choices"]  # on the way at a kill
    lines = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert len(lines) == rows and {row["prediction"] for row in lines} == {"sadness"}


def test_the_command(ferid, tmp_path, monkeypatch, capsys):
    def ferid_evaluate(*words):
        command = ["ferid", "evaluate", "--data", ferid, "--split", "train", *words]
        monkeypatch.setattr("sys.argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ending:
            cli.main()
        return ending.value.code, *capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "100")
    with FakeOpenAI(reply=says_sad) as server:
        where = ["--model", "writer", "--base-url", server.url, "--output", tmp_path / "new"]
        code, _, error = ferid_evaluate(*where, "--method", "score")
        assert code == 2 and not (tmp_path / "new").exists()
        assert error.startswith("ferid: a server cannot be scored") and error.count("\n") == 1
        code, out, _ = ferid_evaluate(*where, "--source", "raf_db")
        assert not code and "WAR" in out and "predictions.jsonl" in out
    with FakeOpenAI(hostile=["bad request"] * 9) as server:
        where = ["--model", "writer", "--base-url", server.url, "--output", tmp_path / "new"]
        code, _, error = ferid_evaluate(*where, "--source", "dfew")
        assert code == 2 and "5 of 5 rows have no answer" in error
