"""Lines of an evaluation as they are made: by one process or several, of which any may be killed at any moment.

    DIR/predictions-3f1c09a2b5d86e47-0.unfinished    lines so far of process 0
    DIR/predictions-3f1c09a2b5d86e47-1.unfinished    of process 1
    DIR/predictions.jsonl                            all of them, in the order of the rows, when none is missing

The name stands for the model, the rows and how they were asked. A later run goes on with what is missing, also with
another number of processes, which share it anew; the folder must be one that all of them see.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from datasets.utils import tqdm

Lines = Iterator[dict[str, Any]]


def processes() -> PartialState:
    """This process among those that `accelerate launch` started; alone without it."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(on_cpu, timeout=timedelta(days=7))  # a share may take longer than others by many minutes


def write_shares(rows: Dataset, file: Path, stamp: str, predict: Callable[[Dataset], Lines], unit: str) -> None:
    """
    Has each row predicted once, by this process or another, and writes the lines in the order of the rows.

    Args:
        rows (`Dataset`): the same in all processes, with the columns id, options and media_type.
        file (`Path`): where the lines go in the end.
        stamp (`str`): changes with all that the lines depend on.
        predict (`Callable`): from rows to their lines.
        unit (`str`): what a row is, for the progress bar.
    """
    state = processes()
    pattern = f"{file.stem}-{stamp}-*.unfinished"
    if state.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        for part in file.parent.glob(pattern):
            _mend(part)
    state.wait_for_everyone()
    done = _lines_by_id(file.parent.glob(pattern))
    state.wait_for_everyone()  # until all have looked, nobody writes
    rest = [index for index, name in enumerate(rows["id"]) if name not in done]
    rest = _alike_together(rows, rest)[state.process_index :: state.num_processes]

    own = file.with_name(f"{file.stem}-{stamp}-{state.process_index}.unfinished")
    before = len(done) // state.num_processes
    title = "evaluate" if state.num_processes == 1 else f"evaluate (1 of {state.num_processes} processes)"
    with own.open("a", encoding="utf-8") as lines:
        bar = {"initial": before, "total": before + len(rest), "unit": f" {unit}"}
        for row in tqdm(predict(rows.select(rest)), title, **bar, disable=not state.is_main_process):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        parts = list(file.parent.glob(pattern))
        write_lines(map(_lines_by_id(parts).__getitem__, rows["id"]), file)
        for part in parts:
            part.unlink()
    state.wait_for_everyone()


def write_lines(lines: Iterable[str | dict[str, Any]], file: Path) -> None:
    """Writes all lines or, where it is stopped, none."""
    unfinished = file.with_name(f"{file.name}.new")
    with unfinished.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n")
    unfinished.replace(file)


def _mend(part: Path) -> None:
    """Cuts off a last line that a killed process left without its end."""
    whole = part.read_bytes().rpartition(b"\n")
    if whole[2]:
        part.write_bytes(b"".join(whole[:2]))


def _lines_by_id(parts: Iterable[Path]) -> dict[str, str]:
    lines = [line for part in parts for line in part.read_text(encoding="utf-8").split("\n") if line]
    return {json.loads(line)["id"]: line for line in lines}


def _alike_together(rows: Dataset, indices: list[int]) -> list[int]:
    """The indices in such an order that rows which can run in one batch follow each other: by options and medium."""
    keys = list(zip(rows["options"], rows["media_type"], strict=True))
    return sorted(indices, key=lambda index: (keys[index][0], keys[index][1]))
