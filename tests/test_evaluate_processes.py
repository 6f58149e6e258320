"""An evaluation that is killed, and one that several processes share: every row is predicted, and written, once."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from datasets.utils import tqdm
from made_ferid import make_ferid

from ferid_dataset.evaluate import run
from ferid_dataset.evaluate.metrics import read_predictions

STILLS, CLIPS = 40, 8


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    return make_ferid(tmp_path_factory.mktemp("shared") / "ferid_shared", STILLS, CLIPS)


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint, ferid, tmp_path_factory):
    """The predictions of one process that nothing befalls."""
    output = tmp_path_factory.mktemp("undisturbed")
    run.evaluate(tiny_checkpoint, ferid, output, split="train", method="score", batch_size=1)
    return read_predictions(output / "predictions.jsonl")


def parts_of(output: Path) -> dict[str, list[str]]:
    """The whole lines of each unfinished file."""
    files = output.glob("predictions-*.unfinished")
    return {file.name: file.read_text().rpartition("\n")[0].splitlines() for file in files}


def wait_for_lines(output: Path, number: int, process, parts: int = 1) -> dict[str, list[str]]:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process() is None:
        if len(found := parts_of(output)) == parts and min(map(len, found.values())) >= number:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come so far")


def check_same(output: Path, undisturbed: list[dict]) -> None:
    assert not parts_of(output)
    rows = read_predictions(output / "predictions.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in undisturbed]
    for row, other in zip(rows, undisturbed, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=0.02)  # in bfloat16
    assert json.loads((output / "metrics.json").read_text())["n"] == STILLS + CLIPS


def life(model, ferid, output) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    tqdm.set_lock(threading.RLock())  # its own is for several processes, and would be left over by a kill
    run.evaluate(model, ferid, output, split="train", method="score", batch_size=1)


def test_a_killed_run_goes_on(tiny_checkpoint, ferid, undisturbed, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ferid_dataset.evaluate.run", "test_evaluate_processes"])
    process = context.Process(target=life, args=(tiny_checkpoint, ferid, tmp_path))
    process.start()
    before = wait_for_lines(tmp_path, 5, lambda: process.exitcode)
    process.kill()
    process.join()
    ((name, _),) = before.items()
    kept = parts_of(tmp_path)[name]
    assert 5 <= len(kept) < STILLS + CLIPS
    with (tmp_path / name).open("a") as lines:
        lines.write('{"id": "raf_db/0')
    run.evaluate(tiny_checkpoint, ferid, tmp_path, split="train", method="score", batch_size=1)
    check_same(tmp_path, undisturbed)
    assert set(kept) <= set((tmp_path / "predictions.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_share_the_rows(tiny_checkpoint, ferid, undisturbed, tmp_path, killed):
    order = ["evaluate", "--model", tiny_checkpoint, "--data", ferid, "--split", "train", "--output", tmp_path]
    order += ["--method", "score", "--batch-size", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "ferid_dataset.cli", *order]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    root = Path(run.__file__).parents[2]
    process = subprocess.Popen(launch, env=environment, cwd=root, stdout=subprocess.PIPE)
    if killed:
        wait_for_lines(tmp_path, 3, process.poll, parts=2)
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:  # in sessions of their own
            each.kill()
        process.communicate()
        assert not (tmp_path / "predictions.jsonl").exists() and len(parts_of(tmp_path)) == 2
        run.evaluate(tiny_checkpoint, ferid, tmp_path, split="train", method="score", batch_size=1)  # now by one
    else:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.decode().count("WAR") >= 1
        assert out.decode().count("predictions.jsonl") == 1  # the second one is silent
    check_same(tmp_path, undisturbed)
