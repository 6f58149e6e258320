"""`ferid generate` online: strict and hostile servers, limits, caps, resumes, and a sentence for every mistake."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_openai import KEY, FakeOpenAI, good_reply
from made_ferid import annotations_of, make_ferid, write_ferid

from ferid_dataset.build import build_ferid
from ferid_dataset.errors import FeridError
from ferid_dataset.generate import pipeline
from ferid_dataset.generate.choose_samples import choose
from ferid_dataset.generate.client import read_answer
from ferid_dataset.generate.estimate import dry_run
from ferid_dataset.generate.journal import Journal, Reply
from ferid_dataset.generate.pipeline import generate
from ferid_dataset.generate.rate_limits import RateLimit
from ferid_dataset.generate.work import Order, Work, parse_shard
from ferid_dataset.prompts import PROMPT_VERSION
from ferid_dataset.sources.base import SAMPLES

REPLY = Reply("raf_db/00000", "conversation", 1, "raf_db", "train", "happiness", "", "x", "m", "1", 5, 2, 0.5, "2026")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def ferid(tmp_path_factory) -> Path:
    """Thirty stills."""
    return make_ferid(tmp_path_factory.mktemp("stills") / "ferid", 30)


@pytest.fixture
def order(ferid, tmp_path) -> Order:
    return Order(ferid, tmp_path / "annotations", "writer", concurrency=4)


def test_every_still_gets_a_conversation_that_ferid_build_takes(order):
    with FakeOpenAI() as server:
        summary = generate(replace(order, base_url=server.url, price_in=1.0, price_out=2.0))
    assert summary.count == {"accepted": 30} and not summary.rules
    assert summary.totals == (30, 30_000, 3_000, pytest.approx(0.036))
    lines = annotations_of(order.annotations)
    line = lines["raf_db/00001"]
    assert [message["role"] for message in line["messages"]] == ["user", "assistant"]
    assert "sad" in line["messages"][1]["content"]
    assert (line["model"], line["prompt_version"]) == ("writer", PROMPT_VERSION)
    assert (line["input_tokens"], line["output_tokens"], line["cost"]) == (1000, 100, pytest.approx(0.0012))
    assert line["created"].endswith("+00:00")
    assert set(lines) == {f"raf_db/{i:05}" for i in range(30)}
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["strict"] and len(body["messages"][1]["content"]) == 2


def test_ferid_build_reads_what_was_generated(tmp_path):
    from ferid_dataset.drawn_faces import draw_faces

    draw_faces(tmp_path / "pictures", count=35)
    build_ferid(tmp_path / "ferid", folder=tmp_path / "pictures", configs=["category"], num_proc=1)
    with FakeOpenAI() as server:
        summary = generate(Order(tmp_path / "ferid", tmp_path / "annotations", "writer", server.url))
    built = build_ferid(tmp_path / "ferid", folder=tmp_path / "pictures", annotations=tmp_path / "annotations")
    assert built.rows["conversation"] == {"train": summary.count["accepted"]} == {"train": 28}


def test_a_hostile_server(order):
    """What HTTP has against us is tried again by the SDK; what the model has against us is rejected by name."""
    hostile = ["429", "429 header", "500", "cut", "malformed", "slow"]
    rejected = ["wrong schema", "no JSON", "refusal", "length", "empty", "no choices"]
    with FakeOpenAI(hostile=[*hostile, *rejected, "good", "filtered"]) as server:
        summary = generate(replace(order, base_url=server.url))
        assert summary.count == {"accepted": 23, "rejected": 7}
        assert summary.rules == {"malformed": 3, "refusal": 1, "cut": 1, "empty": 1, "content_filter": 1}
        assert server.done["answered"] == 29 and summary.totals.replies == 30
        lines = [json.loads(line) for line in (order.annotations / "rejected.jsonl").read_text().splitlines()]
        texts = {rule: line["text"] for line in lines for rule in line["rules"]}
        assert texts["refusal"] == "I can't help with that." and len(texts["cut"]) == 40
        assert {line["input_tokens"] for line in lines} == {0, 1000}  # paid for, but for the filtered one

        again = generate(replace(order, base_url=server.url))
        assert again.count == {"accepted": 23, "rejected": 7} and server.done["answered"] == 29
        mended = generate(replace(order, base_url=server.url, retry_rejected=True))
        assert mended.count == {"accepted": 30} and not mended.rules
    prompts = [body["messages"][1]["content"][0]["text"] for body in server.bodies]
    assert sum("was rejected: an answer refused" in prompt for prompt in prompts) == 1
    assert annotations_of(order.annotations).keys() == {f"raf_db/{i:05}" for i in range(30)}


def test_rejected_samples_are_asked_again_twice_at_most(order):
    with FakeOpenAI(reply=lambda _: good_reply("disgust")) as server:
        order = replace(order, base_url=server.url, limit=3, retry_rejected=True)
        for answered in (3, 6, 9, 9):
            summary = generate(order)
            assert summary.count["rejected"] == 3 and server.done["answered"] == answered
    assert summary.rules["unsupported"] == 3


def test_clips_are_described_first(tmp_path, monkeypatch):
    monkeypatch.setenv("DESCRIBER_API_KEY", KEY)
    order = Order(make_ferid(tmp_path / "ferid", 2, 4), tmp_path / "annotations", "writer")
    with FakeOpenAI() as server, FakeOpenAI(hostile=["empty"]) as describer:
        order = replace(order, base_url=server.url)
        summary = generate(order)
        assert summary.count == {"accepted": 2, "undescribed": 4}
        assert "clips without a description: 4; give --describer-model" in str(summary)
        (tmp_path / "descriptions.jsonl").write_text(json.dumps({"id": "dfew/00002", "description": "A walk."}))
        order = replace(order, descriptions=tmp_path / "descriptions.jsonl")
        assert generate(order).count["accepted"] == 3 and not describer.done
        order = replace(order, describer_model="describer", describer_base_url=describer.url)
        summary = generate(order)
        assert summary.count == {"accepted": 5, "rejected": 1} and summary.rules == {"empty": 1}
        assert describer.done["answered"] == 3 and server.done["answered"] == 5
        assert generate(replace(order, retry_rejected=True)).count["accepted"] == 6
    asked = {body["messages"][1]["content"][0]["text"]: len(body["messages"][1]["content"]) for body in server.bodies}
    assert sum('"description": "A walk."' in text for text in asked) == 1
    assert sum("raises the eyebrows while speaking" in text for text in asked) == 3
    assert set(asked.values()) == {2}  # the text and the centre frame
    assert {len(body["messages"][1]["content"]) for body in describer.bodies} == {5}  # the text and four frames
    with FakeOpenAI() as server:
        centre = replace(
            order, annotations=tmp_path / "other", descriptions=None, base_url=server.url, sources=["dfew"]
        )
        with Work(centre, write=False) as work:
            sample = next(work.samples())
            assert work.stage(sample) == "description" and len(sample["images"]) == 4


def test_json_mode(order):
    with FakeOpenAI() as server:
        assert generate(replace(order, base_url=server.url, json_mode=True, limit=3)).count["accepted"] == 3
    assert {json.dumps(body["response_format"]) for body in server.bodies} == {'{"type": "json_object"}'}


def test_pictures_are_scaled_down(tmp_path):
    order = Order(make_ferid(tmp_path / "ferid", 1, side=100), tmp_path / "annotations", "writer", picture_side=64)
    with FakeOpenAI() as server:
        generate(replace(order, base_url=server.url))
    import base64
    import io

    from PIL import Image

    url = server.bodies[0]["messages"][1]["content"][1]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (64, 64)


def test_pictures_that_cannot_be_read_are_named_and_looked_at_again(tmp_path, monkeypatch):
    order = Order(make_ferid(tmp_path / "ferid", 6), tmp_path / "annotations", "writer")
    broken = tmp_path / "ferid_pictures" / "3_0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url)
        summary = generate(order)
        assert summary.count == {"accepted": 5, "rejected": 1}
        assert summary.rules == {"unreadable_picture": 1} and str(broken) in str(summary)
        broken.write_bytes(whole)
        assert generate(order).count["accepted"] == 6 and server.done["answered"] == 6
        for file in broken.parent.iterdir():
            file.unlink()
        monkeypatch.setattr(pipeline, "FAILURES_IN_A_ROW", 4)
        with pytest.raises(FeridError, match="4 samples failed in a row .*that cannot be read.*mend that"):
            generate(replace(order, annotations=tmp_path / "other"))


# ---- limits ----


def test_the_cap_on_the_cost_is_never_passed_and_holds_over_resumes(order):
    with FakeOpenAI(latency=0.05) as server:
        order = replace(order, base_url=server.url, price_in=1.0, price_out=2.0, max_cost=0.0145)
        for _ in range(2):
            summary = generate(order)
            assert 8 <= summary.totals.replies <= 12 and summary.totals.cost <= 0.0145
            assert "stopped at the cap of 0.01: raise --max-cost to go on" in str(summary)
            assert summary.totals.replies == server.done["answered"] == len(annotations_of(order.annotations))
        assert generate(replace(order, max_cost=1.0)).count["accepted"] == 30


def test_requests_are_paced(order):
    with FakeOpenAI() as server:
        generate(replace(order, base_url=server.url, requests_per_minute=1200, limit=20))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert len(gaps) == 19 and sum(gaps) >= 19 * 0.05 * 0.9


def test_tokens_are_paced_by_what_replies_took():
    async def run() -> float:
        limit = RateLimit(tokens_per_minute=60_000, tokens_each=10)
        for _ in range(100):
            limit.used(100)
        begun = time.monotonic()
        for _ in range(6):
            await limit.turn()
        return time.monotonic() - begun

    assert 0.4 <= asyncio.run(run()) <= 0.9  # 5 x 87 tokens at 1,000 a second


@pytest.mark.parametrize("headers", [True, False])
def test_a_limited_server_is_obeyed(order, headers):
    """Of 30 requests at 10 a window, few are refused: replies say when to pause, or refusals make us slow."""
    with FakeOpenAI(requests_per_window=10, window=1.0, headers=headers) as server:
        summary = generate(replace(order, base_url=server.url, concurrency=8))
    assert summary.count["accepted"] == 30
    assert server.done["limit"] <= 30


def test_used_up_allowances_are_waited_for():
    async def wait(status: int, headers: dict) -> float:
        limit = RateLimit()
        limit.learn(status, headers)
        begun = time.monotonic()
        await limit.turn()
        return time.monotonic() - begun

    reset = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "200ms"}
    assert 0.15 < asyncio.run(wait(200, reset)) < 0.5
    assert asyncio.run(wait(200, reset | {"x-ratelimit-remaining-tokens": "7"})) < 0.1
    assert 0.25 < asyncio.run(wait(429, {"retry-after": "0.3"})) < 0.6
    assert 0.4 < asyncio.run(wait(429, {})) < 1.0


def test_as_many_requests_as_ordered_are_on_the_way(tmp_path):
    order = Order(make_ferid(tmp_path / "ferid", 130), tmp_path / "annotations", "writer", concurrency=64)
    with FakeOpenAI(latency=0.5, look_at_pictures=False) as server:
        generate(replace(order, base_url=server.url))
    assert 56 <= server.most_on_the_way <= 64


# ---- what is chosen ----


def test_choices_are_balanced_stable_and_grow(tmp_path):
    def sample(source: str, i: int, label: str) -> dict:
        row = {"id": f"{source}/{i:04}", "source": source, "split": "train", "media_type": "image", "label": label}
        return row | {"paths": ["x.png"], "options": ["happiness", "fear"]}

    rows = [sample("raf_db", i, "fear" if i % 10 == 0 else "happiness") for i in range(500)]
    rows += [sample("affectnet", i, "fear" if i % 100 == 0 else "happiness") for i in range(2000)]
    rows += [sample("ferplus", i, "fear") for i in range(50)]
    out = write_ferid(tmp_path / "ferid", rows)

    def chosen(**wishes) -> list[tuple[str, str, str]]:
        columns = choose(out, **wishes).table
        return list(zip(*(columns[name].to_pylist() for name in ("id", "source", "label")), strict=True))

    assert len(chosen()) == 2500 and len(chosen(sources=["ferplus"])) == 50
    few = chosen(limit=80)
    assert len(few) == 80 == len(set(few) & set(chosen(limit=200)))
    assert [sum(row[1] == source for row in few) for source in ("raf_db", "affectnet")] == [40, 40]
    assert [sum(row[1:] == (source, "fear") for row in few) for source in ("raf_db", "affectnet")] == [20, 20]
    assert len(chosen(per_class=30)) == 30 + 30 + 30 + 20
    shards = [chosen(per_class=30, shard=(i, 4)) for i in (1, 2, 3, 4)]
    assert sorted(sum(shards, [])) == sorted(chosen(per_class=30)) and all(shards)


def test_shards_lie_side_by_side_and_a_later_run_knows_them(order):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url)
        counts = [generate(replace(order, shard=(i, 3))).count["accepted"] for i in (1, 2, 3)]
        assert sum(counts) == 30 == server.done["answered"] == len(annotations_of(order.annotations))
        assert sorted(file.name for file in (order.annotations / "raf_db").iterdir()) == [
            f"train-{i}of3.jsonl" for i in (1, 2, 3)
        ]
        assert generate(order).count["accepted"] == 30 == server.done["answered"]


# ---- the journal and its files ----


def test_annotation_files_are_made_from_the_journal(order):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url, limit=10)
        generate(order)
        file = order.annotations / "raf_db" / "train.jsonl"
        before, stamp = file.read_text(), file.stat().st_mtime_ns
        generate(order)
        assert file.stat().st_mtime_ns == stamp  # nothing is written when nothing is new
        file.unlink()
        generate(order)
        assert file.read_text() == before
        file.write_text(before.splitlines()[0] + "\n")
        generate(replace(order, limit=12))
        assert len(file.read_text().splitlines()) == 12 and server.done["answered"] == 12


def test_lines_that_others_wrote_are_kept_and_not_asked_for(order):
    messages = [{"role": "user", "content": "How does she feel?"}, {"role": "assistant", "content": "She is happy."}]
    file = order.annotations / "raf_db" / "train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({"id": "raf_db/00003", "messages": messages, "model": "imported from mafw.json"}) + "\n"
    )
    with FakeOpenAI() as server:
        generate(replace(order, base_url=server.url))
        assert server.done["answered"] == 29
    lines = annotations_of(order.annotations)
    assert len(lines) == 30 and lines["raf_db/00003"]["messages"] == messages
    assert lines["raf_db/00003"]["model"] == "imported from mafw.json"


def test_a_resume_is_cheap(tmp_path):
    samples = SAMPLES.empty_table().to_pylist()
    row = {"source": "raf_db", "split": "train", "media_type": "image", "paths": ["x.png"], "label": "happiness"}
    row |= {"options": ["happiness", "fear"]}
    samples = [row | {"id": f"raf_db/{i:06}"} for i in range(30_000)]
    order = Order(write_ferid(tmp_path / "ferid", samples), tmp_path / "annotations", "writer")
    with Work(order) as work:
        work.journal.add(REPLY._replace(id=f"raf_db/{i:06}", text=good_reply("happiness")) for i in range(29_999))
    begun = time.process_time()
    with Work(order) as work:
        assert list(work.pending) == ["raf_db/029999"] and len(list(work.samples())) == 1
    assert time.process_time() - begun < 1.0  # 300,000: see benchmarks/generation.py


def test_replies_are_written_once_or_not_at_all(tmp_path):
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.add([REPLY, REPLY._replace(attempt=2), REPLY]) == 2
        with pytest.raises(FeridError, match="another ferid generate works on .*journal.sqlite: wait for it"):
            Journal(tmp_path / "journal.sqlite")
        journal._db.execute(f"PRAGMA max_page_count = {journal._db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        with pytest.raises(
            FeridError, match="journal.sqlite cannot grow .*full.*make room.*all replies so far are kept"
        ):
            journal.add(REPLY._replace(id=str(i), text="x" * 3000) for i in range(100))
        assert journal.totals()["conversation"].replies == 2
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.latest("conversation") == {"raf_db/00000": (2, "", "train", "happiness")}


def test_a_full_disk_stops_the_run_with_a_sentence(order, monkeypatch):
    connect = sqlite3.connect

    def small(*arguments, **options):
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 11")
        return database

    with FakeOpenAI(latency=0.02) as server:
        order = replace(order, base_url=server.url)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", small)
            with pytest.raises(FeridError, match="cannot grow"):
                generate(order)
        kept = len(annotations_of(order.annotations))
        assert 0 < kept < 30
        assert generate(order).count["accepted"] == 30
        assert server.done["answered"] <= 30 + order.concurrency


# ---- stopping ----


SCRIPT = """
import sys
from pathlib import Path
from ferid_dataset.generate.pipeline import generate
from ferid_dataset.generate.work import Order
print(generate(Order(Path(sys.argv[1]), Path(sys.argv[2]), "writer", sys.argv[3], concurrency=4)))
"""


def test_ctrl_c_keeps_what_is_on_the_way(order):
    with FakeOpenAI(latency=0.3) as server:
        arguments = [sys.executable, "-c", SCRIPT, str(order.out), str(order.annotations), server.url]
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 30
        while server.done["answered"] < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1]
    assert process.returncode == -signal.SIGINT and "requests are on the way; Ctrl-C again gives them up" in error
    assert len(annotations_of(order.annotations)) == server.done["answered"] < 30


def test_a_second_process_is_told_of_the_first(order):
    arguments = [sys.executable, "-c", SCRIPT, str(order.out), str(order.annotations), "http://127.0.0.1:9/v1"]
    with Work(order):
        second = subprocess.run(arguments, capture_output=True, text=True)
    assert f"another ferid generate works on {order.annotations / 'journal.sqlite'}: wait for it" in second.stderr


def test_an_interrupt_does_not_wait_for_turns(order):
    async def run() -> None:
        limit = RateLimit(requests_per_minute=1)
        await limit.turn()
        task = asyncio.create_task(limit.turn())
        await asyncio.sleep(0.05)
        limit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


# ---- bad input ----


def test_no_key(order, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(FeridError, match="OPENAI_API_KEY is not set: export it; any word"):
        generate(order)
    assert not order.annotations.exists()


def test_a_wrong_key_is_never_repeated(order, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FakeOpenAI() as server, pytest.raises(FeridError) as error:
        generate(replace(order, base_url=server.url))
    assert str(error.value) == f"{server.url} does not take the key (HTTP 401): set OPENAI_API_KEY to a valid one"


def test_the_key_is_in_no_file_and_no_log(order, caplog, capfd):
    caplog.set_level("DEBUG")
    leak = {"reply": lambda _: f"my key is {KEY}", "hostile": ["bad request"]}
    with FakeOpenAI(**leak) as server:
        generate(replace(order, base_url=server.url, limit=5))
    out, err = capfd.readouterr()
    assert f"Bearer {KEY}" in server.authorizations
    assert KEY not in caplog.text.replace(f"my key is {KEY}", "") and KEY not in (out + err)


def test_wrong_addresses_and_unknown_models(order):
    with pytest.raises(FeridError, match="http://127.0.0.1:9/v1 does not answer .*: check --base-url"):
        generate(replace(order, base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(FeridError, match="check --base-url"):
        generate(replace(order, base_url="nonsense"))
    with FakeOpenAI() as server:
        with pytest.raises(FeridError, match="not the right address .*--base-url, which mostly ends in /v1"):
            generate(replace(order, base_url=f"{server.url}/chat"))
        with pytest.raises(FeridError, match="does not know the model 'gpt-0'.*check --model"):
            generate(replace(order, base_url=server.url, model="gpt-0"))
        with pytest.raises(FeridError, match="has no credit left"):
            server.hostile = ["quota"] * 4
            generate(replace(order, base_url=server.url))
    assert not annotations_of(order.annotations)


def test_a_server_that_does_not_know_structured_outputs(order):
    with FakeOpenAI(chance={"bad request": 1.0}) as server:
        with pytest.raises(FeridError, match="25 samples failed in a row .*not supported.*--json-mode"):
            generate(replace(order, base_url=server.url))
    with Work(order, write=False) as work:
        assert work.count == {"pending": 30}  # none is held against the samples


def test_annotations_of_another_ferid(order, tmp_path):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url, limit=5)
        generate(order)
        other = write_ferid(tmp_path / "other", [_moved(i) for i in range(30)])
        with pytest.raises(FeridError, match="generated for another FERID: raf_db/000.* is .* there and surprise of"):
            generate(replace(order, out=other, limit=None))
        strange = write_ferid(tmp_path / "strange", [_moved(i, "affectnet") for i in range(3)])
        with pytest.raises(FeridError, match="strange has none of its samples.*another folder to --annotations"):
            generate(replace(order, out=strange, limit=None))
        file = tmp_path / "foreign" / "raf_db" / "train.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text('{"id": "raf_db/nobody", "messages": []}\n')
        with pytest.raises(FeridError, match="train.jsonl is of another FERID, none of its ids"):
            generate(replace(order, annotations=tmp_path / "foreign"))
        file.write_text("{")
        with pytest.raises(FeridError, match='train.jsonl:1 is no line of {"id", "messages"}'):
            generate(replace(order, annotations=tmp_path / "foreign"))
    assert server.done["answered"] == 5


def _moved(i: int, source: str = "raf_db") -> dict:
    row = {"id": f"{source}/{i:05}", "source": source, "split": "train", "media_type": "image", "label": "surprise"}
    return row | {"paths": ["x.png"], "options": ["surprise", "fear"]}


def test_wrong_orders(order, tmp_path):
    wrong = [
        ({"max_cost": 1.0}, "a cap on the cost needs prices"),
        ({"splits": ["val"]}, "has no split 'val': choose from train"),
        ({"sources": ["dfew"]}, "has no source 'dfew': choose from raf_db"),
        ({"out": tmp_path}, "holds no FERID"),
        ({"annotations": order.out / "README.md"}, "README.md is a file"),
        ({"descriptions": order.out / "README.md"}, "README.md:1 is no line of"),
    ]
    for change, words in wrong:
        with pytest.raises(FeridError, match=words):
            generate(replace(order, **change))
    for shard in "9/8", "0/8", "1", "a/b", "-1/8":
        with pytest.raises(FeridError, match=f"there is no shard {shard}: the first of eight is 1/8"):
            parse_shard(shard)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "journal.sqlite").write_text("this is no database, " * 100)
    with pytest.raises(FeridError, match="journal.sqlite is no journal that can be used"):
        generate(replace(order, annotations=broken))
    assert (broken / "journal.sqlite").read_text().startswith("this is no database")


# ---- estimates ----


def test_a_dry_run_counts_and_shows_and_writes_nothing(order):
    order = replace(order, price_in=1.0, price_out=2.0, requests_per_minute=1)
    text = dry_run(order)
    assert "30 requests for a conversation" in text and "time: about 0.5 hours" in text and "cost: about 0." in text
    shown = [json.loads(part.partition("\n")[2]) for part in text.split("\n\n")[1:]]
    assert len(shown) == 3 and shown[0]["model"] == "writer"
    assert shown[0]["messages"][1]["content"][1]["image_url"]["url"].endswith("characters)")
    assert not order.annotations.exists()


def test_an_estimate_uses_the_tokens_of_replies(order):
    with FakeOpenAI() as server:
        generate(replace(order, base_url=server.url, limit=20))
    text = dry_run(replace(order, price_in=1.0, price_out=10.0))
    assert "10 requests for a conversation: about 0.01 million tokens in, 0.00 out" in text
    assert "cost: about 0.02 at 1.0 in and 10.0 out" in text and "as replies so far took" in text


@pytest.mark.parametrize(
    "completion",
    [None, [], "x", 3, {}, {"choices": None}, {"choices": [None]}, {"choices": [{"message": None}]}]
    + [{"choices": [{"message": {"content": ["x"]}}], "usage": {"prompt_tokens": "many"}}],
)
def test_whatever_servers_call_a_completion(completion):
    assert read_answer(completion).rule in ("malformed", "empty")


@pytest.mark.slow
def test_memory_is_flat(tmp_path):
    """Over 300 and over 900 samples the process takes as much; benchmarks/generation.py has 50,000."""
    code = SCRIPT.replace("concurrency=4", "concurrency=64") + (
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    with FakeOpenAI(look_at_pictures=False) as server:
        for count in (300, 900):
            out = make_ferid(tmp_path / f"ferid_{count}", count)
            arguments = [sys.executable, "-c", code, str(out), str(tmp_path / f"annotations_{count}"), server.url]
            done = subprocess.run(arguments, capture_output=True, text=True, check=True)
            peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 15, peaks  # megabytes


def test_annotation_files_that_cannot_be_written(order):
    with FakeOpenAI() as server:
        order = replace(order, base_url=server.url, limit=3)
        (order.annotations / "raf_db" / "train.unfinished").mkdir(parents=True)  # in the way, even of root
        with pytest.raises(FeridError, match="annotations cannot be written .*all replies are in the journal"):
            generate(order)
        (order.annotations / "raf_db" / "train.unfinished").rmdir()
        assert generate(order).count == {"accepted": 3} and server.done["answered"] == 3
    assert len(annotations_of(order.annotations)) == 3
