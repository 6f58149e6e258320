"""The files that `ferid build --annotations` reads, derived from the journal and written whole or not at all.

    annotations/raf_db/train.jsonl          {"id", "messages", "model", "prompt_version", "input_tokens",
                                             "output_tokens", "cost", "created"}, a line an accepted conversation
    annotations/raf_db/train-2of8.jsonl     of the second shard of eight, whose journal is journal-2of8.sqlite
    annotations/rejected.jsonl              every rejected reply, whole: {"id", "rules", "text", ...}

Lines that the journal does not know, such as imported ones, are taken into it, so that nothing is overwritten and no
sample is asked for that has its conversation already.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.journal import Journal, Reply
from ferid_dataset.generate.schema import Conversation, Turn, parse_reply, to_messages


def shard_suffix(shard: tuple[int, int] | None) -> str:
    return f"-{shard[0]}of{shard[1]}" if shard else ""


def read_annotations(folder: Path, journal: Journal, suffix: str, samples: pa.Table) -> set[str]:
    """Takes lines that the journal does not know into it, and returns the ids that other files have.

    Args:
        folder: of the annotations.
        journal: of this shard.
        suffix: of this shard.
        samples: id, split and label of the samples of the FERID that is generated for.

    Raises:
        FeridError: a file is of another FERID, or is not JSON lines of `id` and `messages`.
    """
    label_of = dict(zip(samples["id"].to_pylist(), samples["label"].to_pylist(), strict=True))
    splits = set(samples["split"].to_pylist())
    elsewhere: set[str] = set()
    written = journal.files()
    for file in sorted(folder.glob("*/*.jsonl")):
        source, split = file.parent.name, file.stem.removesuffix(suffix)
        ours = file.name == f"{split}{suffix}.jsonl" and "-" not in split
        if ours and split not in splits:
            continue
        if ours and written.get(str(file.relative_to(folder)), ())[:2] == _stamp(file):
            continue
        lines = list(_lines(file))
        if lines and ours and not any(line["id"] in label_of for line in lines):
            raise FeridError(
                f"{file} is of another FERID, none of its ids is in this one: give another folder to --annotations"
            )
        if not ours:
            elsewhere.update(line["id"] for line in lines)
            continue
        known = journal.latest("conversation")
        new = [line for line in lines if line["id"] not in known or known[line["id"]].rules]
        attempts = [known[line["id"]].attempt + 1 if line["id"] in known else 1 for line in new]
        journal.add(
            _reply(line, attempt, source, split, label_of.get(line["id"], ""))
            for line, attempt in zip(new, attempts, strict=True)
        )
    return elsewhere


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                row["id"], row["messages"] = str(row["id"]), list(row["messages"])
            except (ValueError, KeyError, TypeError) as error:
                raise FeridError(f'{file}:{number} is no line of {{"id", "messages"}}: mend or remove it') from error
            yield row


def _reply(line: dict[str, Any], attempt: int, source: str, split: str, label: str) -> Reply:
    texts = [message["content"] for message in line["messages"]]
    turns = [Turn(question=texts[i], answer=texts[i + 1]) for i in range(0, len(texts) - 1, 2)]
    return Reply(
        id=line["id"],
        stage="conversation",
        attempt=attempt,
        source=source,
        split=split,
        label=label,
        rules="",
        text=Conversation(turns=turns).model_dump_json(),
        model=line.get("model") or "",
        prompt_version=str(line.get("prompt_version") or ""),
        input_tokens=line.get("input_tokens") or 0,
        output_tokens=line.get("output_tokens") or 0,
        cost=line.get("cost") or 0.0,
        created=line.get("created") or "",
    )


def write_annotations(folder: Path, journal: Journal, suffix: str = "") -> None:
    """Brings the files up to date; one that was changed by others since it was written is written anew.

    Raises:
        FeridError: they cannot be written; the journal has everything.
    """
    number, written, stamps = journal.number(), journal.files(), {}

    def write(name: str, rows: Callable[[int], Iterable[dict[str, Any]]]) -> None:
        file = folder / name
        size, changed, last = written.get(name, (0, 0, 0))
        ours = file.exists() and _stamp(file) == (size, changed)
        if not ours or last < number:
            _write(rows(last if ours else 0), file, append=ours)
        stamps[name] = (*_stamp(file), number)

    try:
        for of in journal.splits():
            name = f"{'/'.join(of)}{suffix}.jsonl"
            write(name, lambda after, of=of: map(_annotation, journal.accepted(*of, after)))
        write(f"rejected{suffix}.jsonl", lambda after: map(_rejected, journal.rejected(after)))
    except OSError as error:
        raise FeridError(
            f"{folder} cannot be written ({error}): make room or mend its rights, and run the same command again; "
            "all replies are in the journal"
        ) from error
    if stamps != written:
        journal.note_files(stamps)


def _annotation(reply: Reply) -> dict[str, Any]:
    line = {"id": reply.id, "messages": to_messages(parse_reply(reply.text))}
    return line | {
        name: getattr(reply, name)
        for name in ("model", "prompt_version", "input_tokens", "output_tokens", "cost", "created")
    }


def _rejected(reply: Reply) -> dict[str, Any]:
    return reply._asdict() | {"rules": reply.rules.split(",")}


def _write(rows: Iterable[dict[str, Any]], file: Path, append: bool) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    if append:
        shutil.copyfile(file, unfinished)
    with unfinished.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    unfinished.replace(file)


def _stamp(file: Path) -> tuple[int, int]:
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns
