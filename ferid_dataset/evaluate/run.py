"""`ferid evaluate`: a model, the rows of one split, and what `metrics.py` makes of its answers.

    DIR/predictions.jsonl                            a line a row, see `predict.py`
    DIR/predictions-3f1c09a2b5d86e47-0.unfinished    its lines so far, see `shares.py`
    DIR/replies-3f1c09a2b5d86e47.sqlite              of an endpoint: its journal, which stays, since it was paid for
    DIR/metrics.json, confusion_matrix.{csv,png}     see `metrics.py`; besides "model", "data", "split", "source" and
                                                     "method", "measured_on": "raf_db-ferid raf_db test"

A run that was stopped goes on with the row that it had come to; one that is complete is begun anew. The rows of the
config `conversation` are answered freely, in DIR/answers.jsonl, and have no metrics here. With `fold="all"` the five
folds of a cross-validation lie in DIR/fold-1 to DIR/fold-5, and DIR/metrics.json has their mean and spread.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from datasets.fingerprint import Hasher

from ferid_dataset.collate import rows_for
from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.endpoint import Server, ask_endpoint
from ferid_dataset.evaluate.load_model import load_model
from ferid_dataset.evaluate.metrics import read_predictions, summarise_folds, write_metrics, write_reports
from ferid_dataset.evaluate.predict import METHODS, category_line, conversation_line, predict, predict_conversations
from ferid_dataset.evaluate.shares import processes, write_lines, write_shares
from modeling_emo_llama.load_checkpoint import base_checkpoint

FOLDS = range(1, 6)
LONGEST = {"category": 16, "conversation": 256}  # tokens of an answer


@dataclass(frozen=True)
class Asking:
    """How the rows are asked.

    Args:
        method: "generate", as in the paper's protocol: the model writes, and what it wrote is read; an answer that is
            none of the options is wrong. "score": the option of the highest exact probability, several times as fast.
        batch_size: rows that run together.
        max_new_tokens: longest answer; 16 for the config category, 256 for conversation.
        device, dtype: a GPU and bfloat16 if there is one, else the CPU and as the model was saved.
        trust_remote_code: whether code beside the weights of other models may run.
        server: asks it instead of a model on this machine.
    """

    method: str = "generate"
    batch_size: int = 16
    max_new_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    server: Server | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise FeridError(f"there is no method {self.method!r}: choose from {', '.join(METHODS)}")
        if self.server and self.method == "score":
            raise FeridError(
                "a server cannot be scored, since it does not tell how likely each option is: use --method generate"
            )


def evaluate(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    split: str = "test",
    source: str | None = None,
    config: str = "category",
    fold: str | int | None = None,
    **asking,
) -> dict[str, Any] | None:
    """
    Predict the rows of a split, measure, and write all of it to `output`.

    Args:
        model (`str` or `Path`):
            Checkpoint or adapter, a folder or a Hub id; with a `server`, what it calls the model.
        data (`str` or `Path`):
            A FERID: the folder that `ferid build` wrote, or a Hub id.
        output (`str` or `Path`):
            Folder of the results, made when missing.
        split (`str`, *optional*, defaults to `"test"`):
            The rows to predict.
        source (`str`, *optional*):
            Only the rows of this source; all by default.
        config (`str`, *optional*, defaults to `"category"`):
            "category", or "conversation" for free answers.
        fold (`str` or `int`, *optional*):
            Replaces `{fold}` in `data` and `model`: 1 to 5, or "all" for one after the other.
        **asking:
            Fields of [`Asking`].

    Returns:
        `dict`: what `metrics.json` holds, of free answers only what was asked; `None` in all processes but the first.

    Raises:
        [`FeridError`]: `data` is no FERID or has no such split or source, `model` is no model, or `output` is a file;
            rows were left undone, because a server did not answer.
    """
    output, how = Path(output), Asking(**asking)
    _check(output, how)
    places = {number: _filled(model, data, output, number, fold) for number in _folds(fold, data)}
    rows = {number: load_rows(place[1], split, source, config) for number, place in places.items()}
    results, loaded = [], {}
    for number, (name, place, folder) in places.items():
        if not how.server and name not in loaded:
            loaded = {}  # the model before goes, then the next one comes
            loaded[name] = load_model(name, _device(how), how.dtype, how.trust_remote_code)
        file = folder / ("predictions.jsonl" if config == "category" else "answers.jsonl")
        _write_answers(name, rows[number], config, file, how, loaded.get(name))
        facts = {"model": name, "data": place, "split": split, "source": source, "method": how.method}
        facts["measured_on"] = _name_of(rows[number], place, split, source)
        if config == "category" and processes().is_main_process:
            title = _title(name, loaded.get(name), facts["measured_on"])
            facts = write_reports(read_predictions(file), folder, title, facts)
        results.append(facts)
    if not processes().is_main_process:
        return None
    if fold != "all" or config != "category":
        return results[0]
    facts |= {"model": str(model), "data": str(data), "measured_on": _name_of(rows[1], data, split, source)}
    kept = ("model", "data", "split", "source", "method", "measured_on")
    summary = summarise_folds(results) | {name: facts[name] for name in kept}
    write_metrics(summary, output / "metrics.json")
    return summary


def _check(output: Path, how: Asking) -> None:
    if output.is_file():
        raise FeridError(f"{output} is a file: give the name of a folder")
    if how.server and processes().num_processes > 1:
        raise FeridError("a server is asked by one process: leave out accelerate launch, and raise --concurrency")


def load_rows(data: str | Path, split: str, source: str | None = None, config: str = "category") -> Dataset:
    """The rows of a split, of one source or of all.

    Raises:
        FeridError: `data` is no FERID, or has no such config, split or source; says which it has.
    """
    try:
        splits = load_dataset(str(data), config)
    except (ValueError, OSError) as error:  # no such config, or no such folder; `datasets` has many words for both
        reason = str(error).partition("\n")[0].rstrip(".")
        remedy = f"ferid build {data} --folder ROOT"
        if config != "category":
            missing = f"{data} has no config {config!r}: make it with `{remedy} --annotations DIR` ({reason})"
            raise FeridError(missing) from error
        raise FeridError(f"{data} is no FERID: make one with `{remedy}` ({reason})") from error
    if split not in splits:
        raise FeridError(f"{data} has no split {split!r}: choose from {', '.join(splits)}")
    rows = splits[split]
    if source is None:
        return rows
    sources = rows["source"][:]
    if source not in sources:
        raise FeridError(f"{data} has no source {source!r} in {split}: choose from {', '.join(sorted(set(sources)))}")
    return rows.select([index for index, name in enumerate(sources) if name == source])


def _folds(fold: str | int | None, data: str | Path) -> list[int | None]:
    if fold is None:
        return [None]
    if str(fold) not in ("all", *map(str, FOLDS)):
        raise FeridError(f"there is no fold {fold!r}: give 1 to 5, or all")
    if "{fold}" not in str(data):
        raise FeridError(f"{data} names no fold: write {{fold}} where its number stands, such as ferid-{{fold}}")
    return list(FOLDS) if fold == "all" else [int(fold)]


def _filled(model, data, output: Path, number: int | None, fold) -> tuple[str, str, Path]:
    """Model, data and output of one fold."""
    if number is None:
        return str(model), str(data), output
    model, data = (str(name).replace("{fold}", str(number)) for name in (model, data))
    return model, data, output / f"fold-{number}" if fold == "all" else output


def _write_answers(model: str, rows: Dataset, config: str, file: Path, how: Asking, loaded) -> None:
    """The lines of all rows, by a server or by the model that was loaded."""
    if how.server:
        file.parent.mkdir(parents=True, exist_ok=True)
        journal = file.with_name(f"replies-{_stamp(model, rows, how)}.sqlite")
        asked = ask_endpoint(rows, how.server, journal)
        line = _server_line if config == "category" else lambda row, text, refused: conversation_line(row, text)
        write_lines((line(*one) for one in asked), file)
        return
    network, processor = loaded
    settings = {"batch_size": how.batch_size, "max_new_tokens": how.max_new_tokens or LONGEST[config]}
    ask = predict_conversations
    if config == "category":
        ask, settings = predict, settings | {"method": how.method}
    stamp = _stamp(model, rows, how, getattr(network.config, "_commit_hash", None))
    try:
        write_shares(
            rows_for(processor, rows),
            file,
            stamp,
            lambda share: ask(network, processor, share, **settings),
            "pictures",
        )
    except torch.OutOfMemoryError as error:
        raise FeridError(
            f"{network.device} has no room for batches of {how.batch_size}: give a smaller --batch-size; "
            "what was predicted is kept"
        ) from error


def _server_line(row: dict[str, Any], text: str, refused: bool) -> dict[str, Any]:
    line = category_line(row, text, "generate")
    return line | {"prediction": None} if refused else line  # "I will not say whether she is sad" is no answer


def _title(model: str, loaded, measured_on: str) -> str:
    ours = loaded and loaded[0].config.model_type == "emo_llama"
    return f"{'EMO-LLaMA' if ours else Path(model).name} on {measured_on}"


def _device(how: Asking) -> str | torch.device | None:
    """Each process has a GPU of its own."""
    return how.device or (processes().device if processes().num_processes > 1 else None)


def _stamp(model: str, rows: Dataset, how: Asking, revision: str | None = None) -> str:
    """Changes with the weights, the rows and the way of asking: others' predictions are never taken for one's own."""
    if how.server:
        server = how.server
        return Hasher.hash((model, server.base_url, server.picture_side, server.temperature, rows._fingerprint))
    folders = [Path(model), Path(base_checkpoint(model))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    weights = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    asking = (how.method, how.max_new_tokens, how.dtype)
    return Hasher.hash((model, revision, weights, asking, rows._fingerprint))


def _name_of(rows: Dataset, data: str | Path, split: str, source: str | None) -> str:
    """What the figures are of, for a reader; figures on drawn faces must never pass for figures on people."""
    names = [Path(data).name, source, split, "(drawn faces, no photographs)" if are_drawn(rows["id"]) else None]
    return " ".join(filter(None, names))
