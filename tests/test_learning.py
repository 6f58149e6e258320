"""The whole road learns: `quickstart.py` on real photos, or on the drawn sample without them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run_quickstart(output: Path, *arguments: str) -> tuple[dict, str]:
    command = [sys.executable, "quickstart.py", "--output", str(output), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((output / "metrics.json").read_text()), done.stdout


def assert_whole(output: Path, metrics: dict, words: str) -> None:
    predictions = [json.loads(line) for line in (output / "predictions.jsonl").open(encoding="utf-8")]
    assert len(predictions) == metrics["n"]
    assert {row["label"] for row in predictions} == set(metrics["recall"])
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-3 for row in predictions)
    for result in ("checkpoint/config.json", "ferid/README.md", "adapter/adapter_config.json", "confusion_matrix.png"):
        assert (output / result).stat().st_size > 0
    assert f"UAR {metrics['uar']:.3f}" in words
    assert metrics["uar_ci95"][0] < metrics["uar"] < metrics["uar_ci95"][1]


@pytest.mark.slow
@pytest.mark.shared
def test_it_learns_real_photos(shared_faces, tmp_path):
    metrics, words = run_quickstart(tmp_path / "run", "--data", str(shared_faces))
    assert_whole(tmp_path / "run", metrics, words)
    assert metrics["n"] == 319
    assert metrics["uar"] >= 0.50  # chance is 0.167
    _, words = run_quickstart(tmp_path / "run", "--data", str(shared_faces))
    assert words.count("skipped") == 4  # all but the question


@pytest.mark.slow
@pytest.mark.skipif((ROOT.parent / "shared" / "faces").is_dir(), reason="the real photos are the harder proof")
def test_it_learns_the_drawn_sample(tmp_path):
    metrics, words = run_quickstart(tmp_path / "run")
    assert_whole(tmp_path / "run", metrics, words)
    assert "drawn sample" in words
    assert metrics["uar"] >= 0.90
