"""Building FERID from the six datasets: ours, a column at a time, against a row-wise `GeneratorBasedBuilder`.

    python benchmarks/build_ferid.py ROOT [ROOT ...]

A ROOT holds RAF-DB, AffectNet (CSV release), FERPlus, DFEW, FERV39k and MAFW in their official layouts, under these
names. Further, smaller ROOTs show how the cost grows. Both builders read the annotation lists of fold 1, check that
all media exist, and write the same rows of the config `category` as Parquet; the row-wise one does what a loading
script usually does (csv, os.path.exists, a dict a row). Each build is a process of its own, in turn, with one thread a
pool; its times are those of the build without the imports. Aim: at most 20 s of wall time, 1.5 GB, and 1/30 of the
row-wise CPU time; the last was not reached: 1/24 to 1/27 were measured.
"""

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = {
    "ferplus": "FERPlus",
    "raf_db": "RAF-DB",
    "affectnet": "AffectNet",
    "dfew": "DFEW",
    "ferv39k": "FERV39k",
    "mafw": "MAFW",
}
FRAMES = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def columnar(root: Path, out: Path) -> int:
    import pyarrow as pa

    from ferid_dataset.build import build_ferid

    pa.set_cpu_count(1)
    roots = {source: root / name for source, name in NAMES.items()}
    return sum(build_ferid(out / "ferid", configs=["category"], **roots).rows["category"].values())


def row_wise(root: Path, out: Path) -> int:
    import datasets

    from ferid_dataset.ferid import FEATURES
    from ferid_dataset.prompts import category_question

    class RowWise(datasets.GeneratorBasedBuilder):
        def _info(self):
            return datasets.DatasetInfo(features=FEATURES)

        def _split_generators(self, dl_manager):
            splits = ("train", "validation", "test")
            return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in splits]

        def _generate_examples(self, split):
            for source, media_type, name, label, options, paths in official_rows(root, split):
                question, answer = category_question(options, media_type), label
                yield (
                    name,
                    {
                        "id": f"{source}/{name}",
                        "source": source,
                        "media_type": media_type,
                        "images": paths,
                        "messages": [
                            {"role": "user", "content": question},
                            {"role": "assistant", "content": answer},
                        ],
                        "label": label,
                        "options": options,
                        "attributes": {"age": None, "gender": None, "race": None},
                        "faces": None,
                    },
                )

    builder = RowWise(cache_dir=str(out))
    builder.download_and_prepare(file_format="parquet")
    return sum(split.num_examples for split in builder.info.splits.values())


def official_rows(root: Path, split: str):
    """(source, media type, name, label, options, paths), as one would write a loading script from the papers."""
    from ferid_dataset.labels import CLASSES

    def still(path: str) -> list[str]:
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        return [path]

    def frames(folder: str) -> list[str]:
        files = sorted(os.listdir(folder))
        return [os.path.join(folder, files[int((i + 0.5) * len(files) / FRAMES)]) for i in range(FRAMES)]

    if split in ("train", "test"):
        for name, code in table(root / "RAF-DB/basic/EmoLabel/list_patition_label.txt", " "):
            if name.startswith(split):
                path = f"{root}/RAF-DB/basic/Image/aligned/{name[:-4]}_aligned.jpg"
                yield "raf_db", "image", name, CLASSES["raf_db"][int(code) - 1], CLASSES["raf_db"], still(path)
        name = {"train": "training", "test": "validation"}[split]
        for row in table(root / f"AffectNet/Manually_Annotated_file_lists/{name}.csv", ","):
            if row[6].isdigit() and int(row[6]) < 8:
                path = f"{root}/AffectNet/Manually_Annotated/Manually_Annotated_Images/{row[0]}"
                labels = CLASSES["affectnet"]
                yield "affectnet", "image", row[0], labels[int(row[6])], labels, still(path)
        for name, code in table(root / f"DFEW/EmoLabel_DataSplit/{split}(single-labeled)/set_1.csv", ","):
            if code.isdigit():
                paths = frames(f"{root}/DFEW/Clip/clip_224x224/{int(name):05d}")
                yield "dfew", "video", f"dfew{name}", CLASSES["dfew"][int(code) - 1], CLASSES["dfew"], paths
        for name, _ in table(root / f"FERV39k/4_setups/All_scenes/{split}_All.csv", " "):
            label = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear").index(name.split("/")[1])
            paths = frames(f"{root}/FERV39k/2_ClipsforFaceCrop/{name}")
            yield "ferv39k", "video", name, CLASSES["ferv39k"][label], CLASSES["ferv39k"], paths
        for name, label in table(root / f"MAFW/Train & Test Set/single/no_caption/set_1/{split}.txt", " "):
            (clip,) = still(f"{root}/MAFW/data/clips/{name}")
            paths = [f"frame://{i}of{FRAMES}::{clip}" for i in range(FRAMES)]
            yield "mafw", "video", name, label, CLASSES["mafw"], paths
    folder = {"train": "Train", "validation": "Valid", "test": "Test"}[split]
    for row in table(root / f"FERPlus/data/FER2013{folder}/label.csv", ","):
        votes = [int(vote) for vote in row[2:10]]
        path = f"{root}/FERPlus/data/FER2013{folder}/{row[0]}"
        labels = CLASSES["ferplus"]
        yield "ferplus", "image", row[0], labels[votes.index(max(votes))], labels, still(path)


def table(path: Path, delimiter: str):
    with path.open(newline="") as lines:
        yield from csv.reader(lines, delimiter=delimiter)


def measure(builder: str, root: Path) -> tuple[int, float, float, float]:
    """Rows, CPU seconds, wall seconds and peak gigabytes of a build in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, str(root), "--builder", builder, "--out", out]
        done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    rows, *figures = done.stdout.split()[-4:]
    return int(rows), *map(float, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--builder", choices=("columnar", "row_wise"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.roots:
        print("Name a folder that holds the six datasets; see --help.")
        return
    if arguments.builder:
        build = {"columnar": columnar, "row_wise": row_wise}[arguments.builder]
        import ferid_dataset.build  # noqa: F401  so that the imports are not timed

        cpu, wall = time.process_time(), time.perf_counter()
        rows = build(arguments.roots[0], arguments.out)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(rows, cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        return
    for root in arguments.roots:
        ratios = []
        for _ in range(arguments.rounds):
            ours, theirs = measure("columnar", root), measure("row_wise", root)
            ratios.append(theirs[1] / ours[1])
            for name, (rows, cpu, wall, peak) in (("columnar", ours), ("row-wise", theirs)):
                print(f"{name}: {rows:,} rows, {cpu:.2f} CPU s, {wall:.2f} s, {peak:.2f} GB at most", flush=True)
            assert ours[0] == theirs[0], "the builders do not agree on the rows"
        print(f"{root}: row-wise / columnar = {statistics.median(ratios):.1f} x CPU")


if __name__ == "__main__":
    main()
