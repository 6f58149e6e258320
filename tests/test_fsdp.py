"""FSDP2 over gloo in two processes on a CPU: the losses of one process, and a checkpoint like any other (slow)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from training_runs import ROOT, environment, losses, make_training_ferid, without_dropout

FULL = str(ROOT / "configs/sft/full.yaml")


def words_of(checkpoint, ferid, output, **changes) -> list[str]:
    settings = {
        "model_name_or_path": checkpoint,
        "dataset_name": ferid,
        "output_dir": output,
        "use_cpu": "true",
        "bf16": "false",
        "pack_tokens": 0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "save_steps": 2,
        "save_total_limit": 9,
        "validate_steps": 4,
        "logging_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "dataloader_num_workers": 0,
    }
    return ["--config", FULL] + [str(w) for name, value in (settings | changes).items() for w in (f"--{name}", value)]


def run(words: list[str], processes: int = 1) -> None:
    if processes == 1:
        command = [sys.executable, str(ROOT / "train_sft.py")]
    else:
        script = str(ROOT / "tests/fsdp_on_cpu.py")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            script,
        ]
    process = subprocess.run([*command, *words], env=environment(), capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


def state_of(folder) -> dict:
    return json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())


@pytest.mark.slow
def test_two_processes_that_share_the_weights_train_as_one(tiny_checkpoint, tmp_path):
    ferid = make_training_ferid(tmp_path / "ferid")
    checkpoint = without_dropout(tiny_checkpoint, tmp_path / "checkpoint")
    run(words_of(checkpoint, ferid, tmp_path / "one", per_device_train_batch_size=4))
    run(words_of(checkpoint, ferid, tmp_path / "two"), processes=2)
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert len(losses(one)) == 4 and losses(two) == pytest.approx(losses(one), rel=1e-5)
    grads = [[line["grad_norm"] for line in state["log_history"] if "loss" in line] for state in (one, two)]
    assert grads[1] == pytest.approx(grads[0], rel=1e-4)
    eval_lines = [[line for line in state["log_history"] if "eval_war" in line] for state in (one, two)]
    assert eval_lines[0] == eval_lines[1] != []

    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "two")), "the model's code as well"
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():  # lm_head too, whose gradients TRL alone would not share
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3, msg=name)

    run(words_of(checkpoint, ferid, tmp_path / "two", max_steps=6, save_steps=6), processes=2)
    run(words_of(checkpoint, ferid, tmp_path / "one", max_steps=6, save_steps=6, per_device_train_batch_size=4))
    resumed = [json.loads((tmp_path / n / "checkpoint-6/trainer_state.json").read_text()) for n in ("one", "two")]
    assert losses(resumed[1]) == pytest.approx(losses(resumed[0]), rel=1e-4) and len(losses(resumed[0])) == 6


@pytest.mark.slow
def test_two_processes_in_bfloat16(tiny_checkpoint, tmp_path):
    ferid = make_training_ferid(tmp_path / "ferid")
    checkpoint = without_dropout(tiny_checkpoint, tmp_path / "checkpoint")
    changes = {"bf16": "true", "activation_checkpointing": "true", "validate_steps": 0, "pack_tokens": 300}
    run(words_of(checkpoint, ferid, tmp_path / "one", **changes, per_device_train_batch_size=2))
    run(words_of(checkpoint, ferid, tmp_path / "two", **changes, per_device_train_batch_size=1), processes=2)
    one, two = state_of(tmp_path / "one"), state_of(tmp_path / "two")
    assert losses(two) == pytest.approx(losses(one), rel=5e-3)
    tokens = [[line["num_tokens"] for line in state["log_history"] if "loss" in line] for state in (one, two)]
    assert tokens[0] == tokens[1]
