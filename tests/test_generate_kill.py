"""A generation that is killed at any moment: nothing that was paid for is lost, and only what was on the way is asked
again."""

import multiprocessing
import os
import random
import sqlite3
import threading
import time
from collections import Counter

import pytest
from datasets.utils import tqdm
from fake_openai import KEY, FakeOpenAI
from made_ferid import annotations_of, make_ferid

from ferid_dataset.generate.pipeline import generate
from ferid_dataset.generate.work import Order

CONCURRENCY = 8
CHANCE = {"429": 0.01, "500": 0.01, "cut": 0.01, "wrong schema": 0.03, "refusal": 0.03}


def work(order: Order) -> None:
    os.environ["OPENAI_API_KEY"] = KEY
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tqdm.set_lock(threading.RLock())  # its own is for several processes, and would be left over by a kill
    generate(order)


def run_and_kill(order: Order, kills: int, longest: float) -> int:
    """Starts the generation again and again, kills each at a random moment, and lets the last one end."""
    # Forks of one process that has imported everything: a life of a few tenths of a second is enough.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ferid_dataset.generate.pipeline", "datasets", "test_generate_kill"])
    moments, killed = random.Random(0), 0
    while killed < kills:
        life = context.Process(target=work, args=(order,))
        life.start()
        life.join(moments.uniform(0, longest))
        if life.exitcode is not None:
            break
        life.kill()
        life.join()
        killed += 1
    last = context.Process(target=work, args=(order,))
    last.start()
    last.join(100)
    last.kill()
    assert last.exitcode == 0
    return killed


def check_whole(order: Order, server: FakeOpenAI, samples: int, killed: int) -> None:
    with sqlite3.connect(order.annotations / "journal.sqlite") as journal:
        rows = journal.execute("SELECT id, attempt, rules FROM replies").fetchall()
    assert len(rows) == samples and {attempt for _, attempt, _ in rows} == {1}
    assert len({id_ for id_, _, _ in rows}) == samples  # each has one reply, accepted or rejected by name
    accepted = {id_ for id_, _, rules in rows if not rules}
    assert annotations_of(order.annotations).keys() == accepted
    assert Counter(rules for _, _, rules in rows).keys() <= {"", "malformed", "refusal"}
    answered, repeats = server.done["answered"], server.done["answered"] - samples
    assert len(server.answers) == samples and repeats == sum(count - 1 for count in server.answers.values())
    assert 0 <= repeats <= killed * CONCURRENCY
    print(f"{killed} kills: {answered} answered = {samples} in the journal + {repeats} on the way at a kill")


@pytest.mark.parametrize(
    ("samples", "kills", "longest"),
    [(150, 10, 0.6), pytest.param(2000, 200, 0.6, marks=pytest.mark.slow)],
    ids=["10 kills", "200 kills"],
)
def test_killed_at_random_moments(tmp_path, samples, kills, longest):
    ferid = make_ferid(tmp_path / "ferid", samples)
    begun = time.monotonic()
    with FakeOpenAI(latency=0.15, chance=CHANCE) as server:
        order = Order(ferid, tmp_path / "annotations", "writer", server.url, concurrency=CONCURRENCY)
        killed = run_and_kill(order, kills, longest)
        check_whole(order, server, samples, killed)
    assert killed == kills
    assert time.monotonic() - begun < 240
