"""`ferid generate` through the Batch API: limits of files, shuffled and repeated lines, batches that end badly."""

import json
from dataclasses import replace

import pytest
from fake_openai import KEY, FakeOpenAI
from made_ferid import annotations_of, make_ferid

from ferid_dataset.errors import FeridError
from ferid_dataset.generate import batch
from ferid_dataset.generate.batch import collect, submit
from ferid_dataset.generate.journal import Batch, Journal
from ferid_dataset.generate.pipeline import generate
from ferid_dataset.generate.work import Order, Work


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(batch, "BATCH_REQUESTS", 8)


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    """Twenty stills."""
    return make_ferid(tmp_path_factory.mktemp("stills") / "ferid", 20)


@pytest.fixture
def order(ferid, tmp_path):
    return Order(ferid, tmp_path / "annotations", "writer")


def test_replies_are_joined_by_id_whatever_their_order(order):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url)
        summary = submit(order)
        assert summary.count == {"waiting": 20} and "batches of conversations submitted: 3" in str(summary)
        assert [len(each.lines) for each in server.batches.values()] == [8, 8, 4]
        assert not list(order.annotations.glob("batch-*"))
        assert submit(order).count == {"waiting": 20} and len(server.batches) == 3  # nobody is asked twice
        assert generate(order).count == {"waiting": 20} and not server.done
        early = collect(order)
        assert early.count == {"waiting": 20} and "batches in_progress: 3" in str(early)
        summary = collect(order)
        assert summary.count == {"accepted": 20} and "batches completed: 3" in str(summary)
        assert summary.totals.replies == server.done["answered"] == 20
        assert collect(order).count == {"accepted": 20}
    lines = annotations_of(order.annotations)
    assert len(lines) == 20
    assert all(word in lines["raf_db/00002"]["messages"][1]["content"] for word in ("angry", "eyebrows"))


def test_what_expired_or_failed_is_asked_again(order):
    with FakeOpenAI(
        batch_polls=0, batch_ends=["expired", "failed", "cancelled"], chance={"500": 0.2}, seed=3
    ) as server:
        order = replace(order, base_url=server.url)
        submit(order)
        summary = collect(order)
        answered = server.done["answered"]
        assert summary.count == {"accepted": answered, "pending": 20 - answered} and 0 < answered < 8
        assert "batches expired: 1" in str(summary) and "which --batch asks for again" in str(summary)
        for _ in range(9):
            submit(order)
            summary = collect(order)
        assert summary.count == {"accepted": 20}
        assert server.done["answered"] == 20 == sum(server.answers.values())


def test_bad_replies_are_rejected_by_name(order):
    chance = {"refusal": 0.2, "wrong schema": 0.2, "no choices": 0.2, "empty": 0.1}
    with FakeOpenAI(batch_polls=0, chance=chance) as server:
        order = replace(order, base_url=server.url)
        submit(order)
        summary = collect(order)
        assert summary.count["accepted"] + summary.count["rejected"] == 20
        assert set(summary.rules) == {"refusal", "malformed", "empty"}
        server.chance = {}
        submit(replace(order, retry_rejected=True))
        assert collect(order).count == {"accepted": 20}
    with Work(order, write=False) as work:
        attempts = {attempt.attempt for attempt in work.attempts["conversation"].values()}
    assert attempts == {1, 2}


def test_files_stay_within_the_bytes_of_the_api(order, monkeypatch):
    monkeypatch.setattr(batch, "BATCH_BYTES", 20_000)
    with FakeOpenAI() as server:
        submit(replace(order, base_url=server.url))
        assert len(server.batches) > 3 and all(len(file) <= 20_000 for file in server.files.values())
        assert sum(len(each.lines) for each in server.batches.values()) == 20
        monkeypatch.setattr(batch, "BATCH_BYTES", 1000)
        with pytest.raises(FeridError, match="the request for raf_db/00000 is larger than a batch may be"):
            submit(replace(order, base_url=server.url, annotations=order.annotations / "other"))


def test_clips_take_two_rounds(tmp_path):
    order = Order(
        make_ferid(tmp_path / "ferid", 2, 3), tmp_path / "annotations", "writer", describer_model="describer"
    )
    with FakeOpenAI(batch_polls=0) as server:
        order = replace(order, base_url=server.url)
        assert submit(order).count == {"waiting": 5}
        assert [len(each.lines) for each in server.batches.values()] == [3, 2]
        assert collect(order).count == {"accepted": 2, "pending": 3}
        submit(order)
        assert collect(order).count == {"accepted": 5}


def test_a_batch_whose_submission_was_not_answered_is_found(order, monkeypatch):
    """The process dies between the submission and the journal, and once before it."""
    with FakeOpenAI(batch_polls=0) as server:
        order = replace(order, base_url=server.url)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "number_batch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                submit(order)
        assert len(server.batches) == 1
        submit(order)
        assert len(server.batches) == 3  # the first one was found
        assert collect(order).count == {"accepted": 20} and server.done["answered"] == 20

        other = replace(order, annotations=order.annotations / "other")
        with Work(other) as work:
            lost = Batch("never submitted", "conversation", None, server.url)
            work.journal.open_batch(lost, [("raf_db/00000", 1)])
        assert submit(other).count == {"waiting": 20} and len(server.batches) == 6


def test_the_cap_holds_for_batches(order):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url, price_in=1.0, price_out=1.0, max_cost=0.01)
        summary = submit(order)
        assert 0 < summary.count["waiting"] < 20 and "raise --max-cost" in str(summary)
        assert submit(order).count == summary.count


def test_pictures_that_cannot_be_read(tmp_path):
    order = Order(make_ferid(tmp_path / "ferid", 3), tmp_path / "annotations", "writer")
    (tmp_path / "ferid_pictures" / "1_0.png").unlink()
    with FakeOpenAI(batch_polls=0) as server:
        order = replace(order, base_url=server.url)
        submit(order)
        summary = collect(order)
    assert summary.count == {"accepted": 2, "pending": 1} and summary.rules == {"unreadable_picture": 1}


def test_bad_input(order, monkeypatch):
    with pytest.raises(FeridError, match="http://127.0.0.1:9/v1 does not answer"):
        monkeypatch.setattr(batch, "MAX_RETRIES", 0)
        submit(replace(order, base_url="http://127.0.0.1:9/v1"))
    assert not list(order.annotations.glob("batch-*"))
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url)
        submit(order)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        summary = collect(replace(order, base_url=None))
        assert f"batches at {server.url}, another address than the given one: 3" in str(summary)
        server.batches.clear()
        with pytest.raises(FeridError, match="No batch found"):
            collect(order)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(FeridError, match="OPENAI_API_KEY is not set"):
            collect(order)


def test_lines_of_results_that_are_none(order):
    with FakeOpenAI(batch_polls=0) as server:
        order = replace(order, base_url=server.url, limit=4)
        submit(order)
        server._work_on(server.batches["batch-0"])
        output = server.batches["batch-0"].output
        lines = server.files[output].decode().splitlines()[:3]
        odd = ["", "{", "[]", "3", '{"custom_id": 3}', json.dumps({"custom_id": "raf_db/00000", "response": None})]
        server.files[output] = "\n".join([*odd, *lines]).encode()
        summary = collect(order)
    assert summary.count["accepted"] in (2, 3) and summary.count["pending"] in (1, 2)
