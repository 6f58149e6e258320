"""The whole road in one command: `make quickstart`, or `python quickstart.py [--data FOLDER] [--fresh]`.

Composes a checkpoint from weights that arrive as packages, builds FERID rows from a folder of labelled pictures (600
drawn faces when none is given), fine-tunes, evaluates, and asks the trained model about a picture it has not seen.
Each step is a command that can be typed by hand, and is printed. What is finished is kept in `steps.json` and skipped
the next time; a run that was stopped goes on with the step that it was in:

    {"data": "the drawn sample", "seconds": {"draw": 9.1, "create": 21.4, "build": 14.0}}
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from skimage.data import astronaut

from ferid_dataset.drawn_faces import draw_face
from ferid_dataset.errors import FeridError
from ferid_dataset.prompts import category_question


class Step(NamedTuple):
    name: str
    title: str
    command: list
    result: Path  # exists when the step is finished


def plan(run: Path, data: Path | None) -> list[Step]:
    """The steps up to the evaluation, in order; without `data` the first one draws the pictures."""
    pictures = data or run / "drawn_faces"
    checkpoint, ferid, adapter = run / "checkpoint", run / "ferid", run / "adapter"
    create = ["emo-llama", "create", checkpoint, "--preset", "quickstart"]
    build = ["ferid", "build", ferid, "--folder", pictures, "--faces", "dlib", "--verify"]
    train = ["accelerate", "launch", "train_sft.py", "--config", "configs/sft/quickstart.yaml"]
    train += ["--model_name_or_path", checkpoint, "--dataset_name", ferid, "--output_dir", adapter]
    evaluate = ["ferid", "evaluate", "--model", adapter, "--data", ferid, "--output", run]
    steps = [
        Step("create", "Compose a checkpoint from pretrained weights", create, checkpoint / "config.json"),
        Step("build", "Build FERID rows from the pictures", build, ferid / "README.md"),
        Step("train", "Fine-tune with LoRA", train, adapter / "adapter_model.safetensors"),
        Step("evaluate", "Evaluate on the test split", evaluate, run / "metrics.json"),
    ]
    draw = Step("draw", "Draw 600 faces, the drawn sample", ["ferid", "draw", pictures], pictures / "README.txt")
    return steps if data else [draw, *steps]


def walk(run: Path, data: Path | None) -> None:
    """Walks the whole road, without the steps that are finished."""
    journal = run / "steps.json"
    source = str(data or "the drawn sample")
    state = json.loads(journal.read_text()) if journal.is_file() else {"data": source, "seconds": {}}
    if state["data"] != source:
        raise FeridError(f"{run} was begun with {state['data']}, not with {source}; start over with FRESH=1 (--fresh)")
    run.mkdir(parents=True, exist_ok=True)
    steps = plan(run, data)
    for number, (name, title, command, result) in enumerate(steps):
        label = f"[{number + 1}/{len(steps) + 1}] {title}"
        if name in state["seconds"] and result.exists():
            print(f"{label}: already in {result.parent}, skipped", flush=True)
            continue
        for later in steps[number:]:  # what was made from older results is made again
            state["seconds"].pop(later.name, None)
            if later.name != name and later.result.parent != run:
                shutil.rmtree(later.result.parent, ignore_errors=True)
        journal.write_text(json.dumps(state))
        state["seconds"][name] = call(label, command)
        journal.write_text(json.dumps(state))
    seconds = call(*ask(run, f"[{len(steps) + 1}/{len(steps) + 1}]", drawn=data is None))
    print(summary(run, data is None, (sum(state["seconds"].values()) + seconds) / 60))


def call(label: str, command: list) -> float:
    """Runs a command with the environment that is fastest on a CPU; returns its seconds.

    Without the MALLOC lines glibc hands every large tensor back to the system and asks for it again, page by page.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # the commands of this Python
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(os.cpu_count()),
        # Threads wait for each other spinning, but briefly: beside one busy process a training step took 5.6 s instead
        # of 8.7 s with libgomp's default, on an idle machine 2.7 s instead of 2.5 s.
        "GOMP_SPINCOUNT": "2000",
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }
    words = [str(word) for word in command]
    print(f"\n{label}\n$ {shlex.join(words)}", flush=True)
    start = time.perf_counter()
    subprocess.run(words, env=environment, check=True)
    return round(time.perf_counter() - start, 1)


def ask(run: Path, number: str, drawn: bool) -> tuple[str, list]:
    """The last step: a picture of neither split, newly drawn or NASA's portrait of Eileen Collins (public domain)."""
    if drawn:
        picture, what = draw_face("happiness", np.random.default_rng((1, 0))), "a newly drawn face (happiness)"
    else:
        picture = Image.fromarray(astronaut()).crop((139, 33, 319, 213))  # her face fills it, as in datasets of faces
        what = "a photograph of the astronaut Eileen Collins"
    picture.save(run / "asked.png")
    with open(run / "predictions.jsonl", encoding="utf-8") as predictions:
        options = json.loads(predictions.readline())["options"]
    command = ["emo-llama", "ask", run / "asked.png", category_question(options)]
    command += ["--model", run / "adapter", "--options", ",".join(options)]
    return f"{number} Ask the trained model about {what}", command


def summary(run: Path, drawn: bool, minutes: float) -> str:
    """The closing lines: what was measured, on what, and where it lies."""
    metrics = json.loads((run / "metrics.json").read_text())
    war, uar = (f"{k.upper()} {metrics[k]:.3f} {metrics[k + '_ci95']}" for k in ("war", "uar"))
    what = "faces of the drawn sample, which say nothing about photographs" if drawn else "pictures"
    return (
        f"\n{war}   {uar}   (95 % bootstrap intervals), invalid answers {metrics['invalid_rate']:.1%}\n"
        f"measured on {metrics['n']} test {what}; the steps took {minutes:.1f} minutes\n"
        f"metrics.json, predictions.jsonl and the pictures are in {run}, the trained model is {run / 'adapter'}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 2 for a mistake that the user can mend, 130 for Ctrl-C, or that of a step that failed."""
    parser = argparse.ArgumentParser(description="Build, train, evaluate and ask a small EMO-LLaMA.")
    parser.add_argument("--data", type=Path, help="labelled pictures: FOLDER/{train,test}/<emotion>/*.jpg")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="(default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    args = parser.parse_args(arguments)
    run, data = args.output, args.data and args.data.expanduser().resolve()
    try:
        for split in ("train", "test") if data else ():
            if not (data / split).is_dir():
                raise FeridError(f"{data / split} is no folder; DATA needs train/<emotion>/ and test/<emotion>/")
        if data and data.is_relative_to(run.resolve()):
            raise FeridError(f"{data} lies in {run}, which is for results; move the pictures elsewhere")
        if args.fresh and (run / "steps.json").is_file():
            shutil.rmtree(run)
        walk(run, data)
    except FeridError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"quickstart: `{shlex.join(error.cmd[:2])}` failed; run again to go on from there", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        print("\nquickstart: stopped; run again to go on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
