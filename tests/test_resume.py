"""`kill -9` in the middle of a training: the same command goes on, with the losses of the run that was not killed."""

import json
import time

import pytest
from training_runs import losses, make_training_ferid, recipe, started

STEPS = 24  # of 6 an epoch


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    return make_training_ferid(tmp_path_factory.mktemp("data") / "ferid")


def words_of(checkpoint, ferid, output) -> list[str]:
    changes = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 4, "save_total_limit": 2}
    return recipe(checkpoint, ferid, output, align_epochs=2, **changes)


def finish(words, output) -> dict:
    with started(words) as process:
        assert process.wait(timeout=300) == 0
    return json.loads((output / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())


def kill_when(words, happened) -> None:
    with started(words) as process:
        while not happened():
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.kill()


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_never(tiny_checkpoint, ferid, tmp_path):
    """Bitwise, with dropout, after align and over the ends of epochs; once before anything was saved."""
    whole = finish(words_of(tiny_checkpoint, ferid, tmp_path / "whole"), tmp_path / "whole")
    words = words_of(tiny_checkpoint, ferid, tmp_path / "killed")
    kill_when(words, (tmp_path / "killed").is_dir)  # align has begun, or is about to
    saved = tmp_path / "killed" / "checkpoint-8" / "trainer_state.json"
    kill_when(words, saved.is_file)
    resumed = finish(words, tmp_path / "killed")
    assert len(losses(whole)) == STEPS and losses(resumed) == losses(whole)
    assert [line["num_tokens"] for line in resumed["log_history"] if "loss" in line] == [
        line["num_tokens"] for line in whole["log_history"] if "loss" in line
    ]
