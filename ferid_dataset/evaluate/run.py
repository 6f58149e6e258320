"""`ferid evaluate`: a model, the rows of one split, and three files.

    DIR/predictions.jsonl                          a line a row, see `predict.py`
    DIR/predictions-3f1c09a2b5d86e47.unfinished    its lines so far; the name stands for the model and the rows
    DIR/confusion_matrix.png
    DIR/metrics.json                               see `metrics.py`; besides "model", "data", "split", "source",
                                                   "measured_on": "ferid test (drawn faces, no photographs)"

A run that was stopped goes on with the row that it had come to; one that is complete is begun anew.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.fingerprint import Hasher
from datasets.utils import tqdm

from ferid_dataset.collate import rows_for
from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.confusion_picture import save_confusion_picture
from ferid_dataset.evaluate.metrics import compute_metrics, read_predictions, write_metrics
from ferid_dataset.evaluate.predict import predict
from modeling_emo_llama.load_checkpoint import base_checkpoint, load_checkpoint


def evaluate(
    model_path: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    split: str = "test",
    source: str | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """
    Predict the rows of a split, measure, and write all of it to `output`.

    Args:
        model_path (`str` or `Path`):
            Checkpoint or adapter: a folder or a Hub id.
        data (`str` or `Path`):
            A FERID: the folder that `ferid build` wrote, or a Hub id.
        output (`str` or `Path`):
            Folder of the results, made when missing.
        split (`str`, *optional*, defaults to `"test"`):
            The rows to predict.
        source (`str`, *optional*):
            Only the rows of this source; all by default.
        batch_size (`int`, *optional*, defaults to 16):
            Rows that run together.

    Returns:
        `dict`: what `metrics.json` holds.

    Raises:
        [`FeridError`]: `data` is no FERID or has no such split or source, `model_path` is no model, or `output` is a
            file.
    """
    output = Path(output)
    if output.is_file():
        raise FeridError(f"{output} is a file: give the name of a folder")
    rows = load_rows(data, split, source)
    try:
        model, processor = load_checkpoint(model_path)
    except ValueError as error:
        raise FeridError(str(error)) from error
    output.mkdir(parents=True, exist_ok=True)
    journal = output / f"predictions-{_stamp(model_path, rows)}.unfinished"
    done = _ids_in(journal)
    rest = rows.select([index for index, name in enumerate(rows["id"]) if name not in done])
    with journal.open("a", encoding="utf-8") as lines:
        predictions = predict(model, processor, rows_for(processor, rest), batch_size=batch_size)
        for row in tqdm(predictions, "evaluate", initial=len(done), total=len(rows), unit=" pictures"):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
    journal.replace(output / "predictions.jsonl")

    metrics = compute_metrics(read_predictions(output / "predictions.jsonl"))
    metrics |= {"model": str(model_path), "data": str(data), "split": split, "source": source}
    metrics["measured_on"] = _name_of(rows, data, split, source)
    save_confusion_picture(metrics, output / "confusion_matrix.png", f"EMO-LLaMA on {metrics['measured_on']}")
    write_metrics(metrics, output / "metrics.json")
    return metrics


def load_rows(data: str | Path, split: str, source: str | None = None) -> Dataset:
    """The `category` rows of a split, of one source or of all.

    Raises:
        FeridError: `data` is no FERID, or has no such split or source; says which it has.
    """
    try:
        splits = load_dataset(str(data), "category")
    except (ValueError, OSError) as error:  # no such config, or no such folder; `datasets` has many words for both
        reason = str(error).partition("\n")[0].rstrip(".")
        raise FeridError(f"{data} is no FERID: make one with `ferid build {data} --folder ROOT` ({reason})") from error
    if split not in splits:
        raise FeridError(f"{data} has no split {split!r}: choose from {', '.join(splits)}")
    rows = splits[split]
    if source is None:
        return rows
    sources = rows["source"][:]
    if source not in sources:
        raise FeridError(f"{data} has no source {source!r} in {split}: choose from {', '.join(sorted(set(sources)))}")
    return rows.select([index for index, name in enumerate(sources) if name == source])


def _stamp(model_path: str | Path, rows: Dataset) -> str:
    """Changes with the weights and with the rows: predictions of others are never taken for one's own."""
    folders = [Path(model_path), Path(base_checkpoint(model_path))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    weights = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Hasher.hash((str(model_path), weights, rows._fingerprint))


def _ids_in(journal: Path) -> set[str]:
    """What is predicted already. A last line that a killed process left without its end is cut off."""
    if not journal.is_file():
        return set()
    whole = journal.read_bytes().rpartition(b"\n")
    journal.write_bytes(b"".join(whole[:2]))
    return {json.loads(line)["id"] for line in whole[0].splitlines()}


def _name_of(rows: Dataset, data: str | Path, split: str, source: str | None) -> str:
    """What the figures are of, for a reader; figures on drawn faces must never pass for figures on people."""
    names = [Path(data).name, source, split, "(drawn faces, no photographs)" if are_drawn(rows["id"]) else None]
    return " ".join(filter(None, names))
