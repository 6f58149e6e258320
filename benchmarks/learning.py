"""Does it learn, and do face priors pay? EMO-LLaMA with its parts switched off, beside the best linear probe.

    python benchmarks/learning.py FOLDER [--output runs/learning] [--seeds 0 1 2] [--variants full no-faces]
    python benchmarks/learning.py FOLDER --cross-validate 0     # choose by this: the test split is not looked at

FOLDER holds {train,test}/<emotion>/*.jpg. Each variant is trained and evaluated by the commands of the README, once a
seed (of the new weights, of LoRA, and of the order); the opponent is `linear_probe.py`, on the same frozen features
and the same split. Written to the output:

    learning.json    {"best_probe": "at the face", "probes": {"vit": {"uar_cv": 0.57, "over_seeds": {...}, ...}, ...},
                      "variants": {"full": {"uar": [0.62, 0.60, 0.61], "less_best_probe": {"mean": 0.03, ...}, ...}}}

`--cross-validate K` holds out a fifth of the training persons instead of the test split; settings are chosen by that
alone. A run that was stopped goes on with the step that it was in; what is finished is kept.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset, Image, List, load_dataset
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import StratifiedGroupKFold
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # quickstart.py
from linear_probe import persons, probe_predictions

from ferid_dataset.evaluate.metrics import compute_metrics, read_predictions
from quickstart import call

RESAMPLES = 2000
VARIANTS = {
    "full": [],
    "no-faces": ["--use_faces", "false"],
    "no-attributes": ["--use_attributes", "false"],
}


def inner_split(folder: Path, output: Path, fold: int) -> Path:
    """A folder of links in which a fifth of the training persons is the test split; the real one is not in it."""
    inner, whole = output / "pictures", output / "train-ferid"
    if inner.is_dir():
        return inner
    only_train = output / "only-train"
    link(sorted((folder / "train").glob("*/*")), only_train / "train")
    call(
        "Find the persons of the training split", ["ferid", "build", whole, "--folder", only_train, "--faces", "dlib"]
    )
    rows = load_dataset(str(whole), "category", split="train").cast_column("images", List(Image(decode=False)))
    faces = [found[0][0] if found and found[0] else None for found in rows["faces"]]
    groups = persons(
        found=np.array([face is not None for face in faces]),
        embeddings=np.array([face["embedding"] if face else np.zeros(128) for face in faces]),
    )
    files, labels = np.array([images[0]["path"] for images in rows["images"]]), rows["label"]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(files, labels, groups)
    for split, indices in zip(("train", "test"), list(folds)[fold], strict=True):
        link([Path(file) for file in files[indices]], inner / split)
    return inner


def link(files: list[Path], root: Path) -> None:
    for file in files:
        place = root / file.parent.name / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(file.resolve())


def run_once(run: Path, ferid: Path, seed: int, switches: list[str]) -> list[dict]:
    """Trains and evaluates one variant with one seed; returns its predictions of the test split."""
    checkpoint, adapter = run.parent / f"checkpoint-{seed}", run / "adapter"
    if not (checkpoint / "config.json").is_file():
        create = ["emo-llama", "create", checkpoint, "--preset", "quickstart", "--seed", seed]
        call("Compose a checkpoint", create)
    train = ["accelerate", "launch", "train_sft.py", "--config", "configs/sft/quickstart.yaml", "--seed", seed]
    train += ["--model_name_or_path", checkpoint, "--dataset_name", ferid, "--output_dir", adapter, *switches]
    evaluate = ["ferid", "evaluate", "--model", adapter, "--data", ferid, "--output", run]
    if not (run / "metrics.json").is_file():
        start = time.perf_counter()
        call(f"Train {run.name}", train)
        call(f"Evaluate {run.name}", evaluate)
        (run / "minutes.json").write_text(json.dumps((time.perf_counter() - start) / 60))
    return read_predictions(run / "predictions.jsonl")


def best_probe(output: Path, ferid: Path, checkpoint: Path) -> tuple[str, dict]:
    """The name of the probe that cross-validation found best, and all of them; computed once."""
    kept = output / "probes.json"
    if not kept.is_file():
        model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
        processor = AutoProcessor.from_pretrained(checkpoint)
        kept.write_text(json.dumps(probe_predictions(model, processor, load_dataset(str(ferid), "category"))))
    probes = json.loads(kept.read_text())
    return max(probes, key=lambda name: probes[name]["uar_cv"]), probes


def uar_of(runs: list[list[dict]], against: list[list[dict]] | None = None) -> dict:
    """The mean UAR over runs of the same rows, less that of others, with a 95 % bootstrap interval over the rows.

    The interval is of the pictures alone: the spread over seeds is told beside it.
    """
    truth = {row["id"]: row["label"] for row in runs[0]}
    labels = np.array(sorted(set(truth.values())))
    number = np.searchsorted(labels, list(truth.values()))

    def right(runs: list[list[dict]]) -> np.ndarray:  # (rows,), the share of the runs that are right
        answers = [{row["id"]: row["prediction"] for row in run} for run in runs]
        return np.mean([[run[name] == label for name, label in truth.items()] for run in answers], axis=0)

    gain = right(runs) - (right(against) if against else 0)
    draws = np.random.default_rng(0).integers(0, len(gain), (RESAMPLES, len(gain)))
    uars = []
    for rows in (np.arange(len(gain)), *draws):
        sizes = np.bincount(number[rows], minlength=len(labels))
        sums = np.bincount(number[rows], gain[rows], minlength=len(labels))
        uars.append((sums[sizes > 0] / sizes[sizes > 0]).mean())
    return {"mean": float(uars[0]), "ci95": np.percentile(uars[1:], [2.5, 97.5]).tolist()}


def measure(runs: dict[str, list[list[dict]]], best: str, probes: dict) -> dict:
    """What `learning.json` holds."""
    opponent, variants = [probes[best]["predictions"]], {}
    for name, seeds in runs.items():
        figures = [compute_metrics(predictions) for predictions in seeds]
        variants[name] = {key: [figure[key] for figure in figures] for key in ("uar", "war")} | {
            "over_seeds": uar_of(seeds),
            "less_best_probe": uar_of(seeds, opponent),
            "less_full": uar_of(seeds, runs["full"]) if "full" in runs and name != "full" else None,
        }
    opponents = {
        name: {"strength": probe["strength"], "uar_cv": probe["uar_cv"], "over_seeds": uar_of([probe["predictions"]])}
        for name, probe in probes.items()
    }
    return {"best_probe": best, "probes": opponents, "variants": variants}


def show(results: dict) -> None:
    table = Table("", "UAR", "95 % interval", "seeds", "less the best probe", "less full")
    for name, probe in results["probes"].items():
        mark = " (best in cross-validation)" if name == results["best_probe"] else ""
        table.add_row(f"linear probe, {name}{mark}", *words(probe["over_seeds"]))
    for name, variant in results["variants"].items():
        seeds = " ".join(f"{uar:.3f}" for uar in variant["uar"])
        gains = [variant[key] and " ".join(words(variant[key], "+.3f")) for key in ("less_best_probe", "less_full")]
        table.add_row(f"EMO-LLaMA, {name}", *words(variant["over_seeds"]), seeds, *gains)
    Console(width=160).print(table)


def words(figure: dict, form: str = ".3f") -> tuple[str, str]:
    low, high = figure["ci95"]
    return f"{figure['mean']:{form}}", f"[{low:{form}}, {high:{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/learning"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cross-validate", type=int, choices=range(5), metavar="FOLD")
    args = parser.parse_args()
    folder, output = args.folder.resolve(), args.output.resolve()
    os.chdir(Path(__file__).resolve().parents[1])  # the commands are run in the checkout
    for split in ("train", "test"):
        if not (folder / split).is_dir():
            parser.error(f"{folder / split} is no folder: FOLDER needs train/<emotion>/ and test/<emotion>/")
    if args.cross_validate is not None:
        output /= f"fold-{args.cross_validate}"
        folder = inner_split(folder, output, args.cross_validate)

    ferid = output / "ferid"
    if not (ferid / "README.md").is_file():
        call("Build FERID rows", ["ferid", "build", ferid, "--folder", folder, "--faces", "dlib", "--verify"])
    rows = load_dataset(str(ferid), "category", split="train")
    variants = [name for name in args.variants if name != "no-attributes" or knows_attributes(rows)]
    if len(variants) < len(args.variants):
        print("No age, gender or race is known of these pictures, so nothing is said of them: no-attributes is full.")
    runs = {
        name: [run_once(output / f"{name}-{seed}", ferid, seed, VARIANTS[name]) for seed in args.seeds]
        for name in variants
    }
    results = measure(runs, *best_probe(output, ferid, output / f"checkpoint-{args.seeds[0]}"))
    results["minutes"] = {
        run.parent.name: json.loads(run.read_text()) for run in sorted(output.glob("*/minutes.json"))
    }
    (output / "learning.json").write_text(json.dumps(results, indent=2))
    show(results)


def knows_attributes(rows: Dataset) -> bool:
    """Whether anything is said of a person: by the dataset, or by the face backend (dlib says nothing)."""
    said = any(value for attributes in rows["attributes"] for value in (attributes or {}).values())
    faces = (face for found in rows["faces"] for face in (found or [[]])[0][:1])
    return said or any(face.get("age") is not None or face.get("gender") for face in faces)


if __name__ == "__main__":
    main()
