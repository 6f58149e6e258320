"""`quickstart.py`: what it runs, what it skips, what it says. The commands are stand-ins that write the same files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import quickstart

ROOT = Path(quickstart.__file__).parent

# Notes the call, fails where `fail` says, waits where `wait` says, and writes what the real command would write.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path

home, name, words = Path(__file__).parent, Path(__file__).name, sys.argv[1:]
with open(home / "calls.jsonl", "a") as calls:
    calls.write(json.dumps({{"command": [name, *words], "threads": os.environ["OMP_NUM_THREADS"]}}) + "\\n")
step = words[0]
if (home / "fail").exists() and (home / "fail").read_text() == step:
    sys.exit("ferid: no faces anywhere") if step == "evaluate" else sys.exit(3)
if (home / "wait").exists() and (home / "wait").read_text() == step:
    time.sleep(60)


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def option(name):
    return Path(words[words.index(name) + 1])


if step == "draw":
    write(Path(words[1]) / "README.txt")
elif step == "create":
    write(Path(words[1]) / "config.json")
elif step == "build":
    write(Path(words[1]) / "README.md")
elif step == "launch":
    write(option("--output_dir") / "adapter_model.safetensors")
elif step == "evaluate":
    run = option("--output")
    metrics = {{"n": 120, "war": 0.9, "uar": 0.91, "war_ci95": [0.84, 0.95], "uar_ci95": [0.85, 0.96]}}
    write(run / "metrics.json", json.dumps(metrics | {{"invalid_rate": 0.0}}))
    write(run / "predictions.jsonl", json.dumps({{"options": ["surprise", "fear"]}}) + "\\n")
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for the three commands, where `quickstart.call` looks first: beside its Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ferid", "emo-llama", "accelerate"):
        (folder / name).write_text(STAND_IN.format(python=sys.executable))
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / "my pictures" / split).mkdir(parents=True)
    return tmp_path / "my pictures"


def steps_called(commands: Path) -> list[str]:
    """The second word of each call since the last look: `["draw", "create", ...]`."""
    calls = commands / "calls.jsonl"
    lines = calls.read_text().splitlines() if calls.exists() else []
    calls.unlink(missing_ok=True)
    return [json.loads(line)["command"][1] for line in lines]


def test_walks_the_whole_road_and_sums_it_up(commands, tmp_path, capfd):
    run = tmp_path / "run"
    assert quickstart.main(["--output", str(run)]) == 0
    calls = [json.loads(line) for line in (commands / "calls.jsonl").read_text().splitlines()]
    assert [call["command"][:2] for call in calls] == [
        ["ferid", "draw"],
        ["emo-llama", "create"],
        ["ferid", "build"],
        ["accelerate", "launch"],
        ["ferid", "evaluate"],
        ["emo-llama", "ask"],
    ]
    assert calls[2]["command"][2:] == [f"{run}/ferid", "--folder", f"{run}/drawn_faces", "--faces", "dlib", "--verify"]
    assert calls[5]["command"][2:] == [
        f"{run}/asked.png",
        "What is the facial expression of the person in the image? Choose one from the following options: "
        "{surprise, fear}.",
        *("--model", f"{run}/adapter", "--options", "surprise,fear"),
    ]
    assert {call["threads"] for call in calls} == {str(os.cpu_count())}
    out = capfd.readouterr().out
    assert f"[1/6] Draw 600 faces, the drawn sample\n$ ferid draw {run}/drawn_faces\n" in out
    assert "WAR 0.900 [0.84, 0.95]   UAR 0.910 [0.85, 0.96]" in out
    assert "120 test faces of the drawn sample, which say nothing about photographs" in out


def test_own_pictures_are_used_and_nothing_is_drawn(commands, pictures, tmp_path, capfd):
    run = tmp_path / "run"
    assert quickstart.main(["--output", str(run), "--data", str(pictures)]) == 0
    assert steps_called(commands) == ["create", "build", "launch", "evaluate", "ask"]
    out = capfd.readouterr().out
    assert f"--folder '{pictures}'" in out  # a printed command can be typed, whatever its paths hold
    assert "120 test pictures;" in out and "drawn" not in out


def test_finished_steps_are_skipped_and_what_hangs_on_a_lost_result_is_made_again(commands, tmp_path, capfd):
    run = tmp_path / "run"
    arguments = ["--output", str(run)]
    assert quickstart.main(arguments) == 0
    steps_called(commands)
    capfd.readouterr()

    assert quickstart.main(arguments) == 0
    assert steps_called(commands) == ["ask"]
    assert f"[3/6] Build FERID rows from the pictures: already in {run}/ferid, skipped" in capfd.readouterr().out

    (run / "ferid" / "README.md").unlink()
    (run / "adapter" / "checkpoint-9").mkdir()  # training would go on from here, with rows that are gone
    assert quickstart.main(arguments) == 0
    assert steps_called(commands) == ["build", "launch", "evaluate", "ask"]
    assert not (run / "adapter" / "checkpoint-9").exists()

    assert quickstart.main([*arguments, "--fresh"]) == 0
    assert steps_called(commands) == ["draw", "create", "build", "launch", "evaluate", "ask"]


def test_a_failing_step_stops_with_its_code_and_the_next_run_goes_on_there(commands, tmp_path, capfd):
    run = tmp_path / "run"
    (commands / "fail").write_text("launch")
    assert quickstart.main(["--output", str(run)]) == 3
    assert "quickstart: `accelerate launch` failed; run again to go on from there" in capfd.readouterr().err
    (run / "adapter" / "checkpoint-9").mkdir(parents=True)
    steps_called(commands)

    (commands / "fail").unlink()
    assert quickstart.main(["--output", str(run)]) == 0
    assert steps_called(commands) == ["launch", "evaluate", "ask"]
    assert (run / "adapter" / "checkpoint-9").exists()  # the training that was stopped goes on from it


def test_a_result_that_a_stopped_step_left_behind_is_not_taken_for_finished(commands, tmp_path):
    run = tmp_path / "run"
    (commands / "fail").write_text("create")
    assert quickstart.main(["--output", str(run)]) == 3
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "config.json").write_text("{}")
    (commands / "fail").unlink()
    steps_called(commands)
    assert quickstart.main(["--output", str(run)]) == 0
    assert steps_called(commands)[0] == "create"


def test_other_pictures_than_last_time_need_a_fresh_start(commands, pictures, tmp_path, capfd):
    run = tmp_path / "run"
    assert quickstart.main(["--output", str(run)]) == 0
    steps_called(commands)
    assert quickstart.main(["--output", str(run), "--data", str(pictures)]) == 2
    assert steps_called(commands) == []
    err = capfd.readouterr().err
    assert f"was begun with the drawn sample, not with {pictures}; start over with FRESH=1" in err
    assert quickstart.main(["--output", str(run), "--data", str(pictures), "--fresh"]) == 0


def test_a_folder_without_both_splits_is_refused_before_anything_runs(commands, pictures, tmp_path, capfd):
    (pictures / "test").rmdir()
    assert quickstart.main(["--output", str(tmp_path / "run"), "--data", str(pictures)]) == 2
    assert f"{pictures / 'test'} is no folder; DATA needs" in capfd.readouterr().err
    assert steps_called(commands) == [] and not (tmp_path / "run").exists()


def test_fresh_never_removes_the_pictures_or_a_folder_of_another_kind(commands, tmp_path, capfd):
    run = tmp_path / "run"
    assert quickstart.main(["--output", str(run)]) == 0
    for split in ("train", "test"):
        (run / "drawn_faces" / split).mkdir()
    assert quickstart.main(["--output", str(run), "--data", str(run / "drawn_faces"), "--fresh"]) == 2
    assert "move the pictures elsewhere" in capfd.readouterr().err
    assert (run / "drawn_faces" / "train").is_dir()

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    assert quickstart.main(["--output", str(tmp_path / "thesis"), "--fresh"]) == 0
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"


def test_ctrl_c_says_that_the_next_run_goes_on(commands, tmp_path):
    (commands / "wait").write_text("build")
    process = subprocess.Popen(
        [commands / "python", ROOT / "quickstart.py", "--output", tmp_path / "run"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    calls = commands / "calls.jsonl"
    deadline = time.monotonic() + 20
    while not (calls.exists() and '"build"' in calls.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip().endswith("quickstart: stopped; run again to go on from there")
