"""`ferid import`: conversations in LLaVA's form become annotations, such as the released part of FERID, that of MAFW.

A record, of a JSON list or a line of JSON lines:

    {"id": "00025", "video": "MAFW/clips/00025.mp4",
     "conversations": [{"from": "human", "value": "<video>\\nWhat is the emotion of the person in the video?"},
                       {"from": "gpt", "value": "The person in the video is expressing sadness. ..."}]}

becomes a line of `annotations/mafw/train.jsonl`, the split being that of the sample in the built FERID:

    {"id": "mafw/00025", "messages": [{"role": "user", "content": "What is the emotion of the person in the video?"},
     {"role": "assistant", "content": "The person in the video is expressing sadness. ..."}], "model": "...", ...}

Every record is imported, or was there already, or stands whole and with its reason in
`annotations/<FILE>.left_out.jsonl`. Nothing is judged by its text: people have looked at it before it was released.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from ferid_dataset.errors import FeridError
from ferid_dataset.ferid import conversation_messages
from ferid_dataset.generate.rules import violations
from ferid_dataset.generate.schema import Conversation, Turn, to_messages
from ferid_dataset.sources.media_files import PICTURES
from ferid_dataset.stats import ferid_files, read_rows, sample_config

CLIPS = (".mp4", ".avi", ".flv", ".mov", ".mkv", ".webm")
COLUMNS = ["id", "source", "label", "media_type", "options", "attributes"]
CLIP_DIGITS = 5  # the ids of DFEW and MAFW are padded; DFEW's files are not

_MARKER = re.compile(r"\s*<(?:image|video)>\s*")


class LeftOut(NamedTuple):
    """A record that is not imported."""

    place: str  # "mafw.json[17]", counted from 0, or "mafw.jsonl:17", counted from 1
    reason: str  # the kind of problem, then what is special to this one behind a colon
    record: Any  # whole; the line's text where it is no JSON


class Imported(NamedTuple):
    """What an import did."""

    records: int
    added: dict[str, int]  # {"mafw/train.jsonl": 7333}
    present: int  # records whose conversation was there already
    left_out: list[LeftOut]
    report: Path  # where they are written, if there are any
    broken: dict[str, list[str]]  # rule -> ids of conversations that break it, all of them imported all the same

    def __str__(self) -> str:
        lines = [f"{file}: {count:,} conversations added" for file, count in self.added.items()]
        if self.present:
            lines.append(f"{self.present:,} were there already")
        if self.left_out:
            lines.append(f"{len(self.left_out):,} of {self.records:,} records are left out, see {self.report}")
        return "\n".join(lines)


class _Unusable(Exception):
    """Why a record is left out."""


def import_conversations(
    file: str | os.PathLike,
    out: str | os.PathLike,
    annotations: str | os.PathLike,
    *,
    source: str | None = None,
    check: bool = False,
) -> Imported:
    """Adds the conversations of a file to the annotations of a built FERID; a second run adds nothing.

    Args:
        file: JSON or JSON lines of LLaVA's records.
        out: the folder that `ferid build` wrote; its samples are those that conversations can be of.
        annotations: the folder of `<source>/<split>.jsonl`, which is made where it is missing.
        source: of which all records are, such as "mafw"; for file names that several sources have.
        check: runs the rules of generated conversations on these, and reports which are broken.

    Raises:
        FeridError: the file cannot be read or holds no records; `out` is no FERID or lacks the source; the annotations
            are broken; not a single record is of a sample of `out`.
    """
    file, annotations = Path(file), Path(annotations)
    records = read_records(file)
    samples = _Samples(out, source)
    if annotations.exists() and not annotations.is_dir():
        raise FeridError(f"{annotations} is a file: give the folder of the annotations")
    matched, left_out = [], []
    for place, record in records:
        try:
            matched.append((place, record, samples.find(record), _conversation(record)))
        except _Unusable as problem:
            left_out.append(LeftOut(place, str(problem), record))
    before = _annotated(annotations, [id_ for _, _, id_, _ in matched])
    new: dict[str, list[dict[str, str]]] = {}
    broken: dict[str, list[str]] = {}
    for place, record, id_, conversation in matched:
        messages = to_messages(conversation)
        known = before.get(id_) or new.get(id_)
        if known and known != messages:
            left_out.append(LeftOut(place, f"the sample has another conversation already: {id_}", record))
            continue
        if check:
            for rule in violations(samples.row(id_), conversation):
                broken.setdefault(rule, []).append(id_)
        if not known:
            new[id_] = messages
    report = annotations / f"{file.name}.left_out.jsonl"
    annotations.mkdir(parents=True, exist_ok=True)
    _replace(report, [row._asdict() for row in left_out])
    if not matched:
        first = left_out[0]
        raise FeridError(
            f"none of the {len(records):,} records of {file} is imported, such as {first.place}: {first.reason}; "
            f"see {report}"
        )
    added = _add(new, samples, annotations, f"imported from {file.name}")
    present = len(records) - len(new) - len(left_out)
    return Imported(len(records), added, present, left_out, report, broken)


def read_records(file: Path) -> list[tuple[str, Any]]:
    """The records of a file and the place of each; of JSON lines, one that is no JSON is its text.

    Raises:
        FeridError: there is no such file, or no JSON in it, or no records.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise FeridError(f"there is no file {file}: give a file of conversations, JSON or JSON lines") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FeridError(f"{file} cannot be read as UTF-8 text: {error}") from error
    whole = _parse(text)
    if isinstance(whole, list):
        records = [(f"{file.name}[{index}]", record) for index, record in enumerate(whole)]
    elif isinstance(whole, dict):
        records = [(file.name, whole)]
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [(f"{file.name}:{number}", _parse(line)) for number, line in lines]
    if not any(isinstance(record, dict) and "conversations" in record for _, record in records):
        raise FeridError(
            f'{file} holds no conversations: it must be a JSON list, or JSON lines, of {{"id", "image" or "video", '
            '"conversations"}'
        )
    return records


def _parse(text: str) -> Any:
    """What JSON means, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _conversation(record: dict[str, Any]) -> Conversation:
    """The turns, without the markers that say where the picture goes."""
    texts = []
    entries = record["conversations"]
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        speaker = ("human", "gpt")[index % 2]
        if not isinstance(entry, dict) or entry.get("from") != speaker or not isinstance(entry.get("value"), str):
            raise _Unusable(f"turns are not text of human and gpt in turn: see number {index + 1}")
        texts.append(_MARKER.sub(" ", entry["value"]).strip())
    if not texts or len(texts) % 2:
        raise _Unusable("no conversation of questions with answers")
    if not all(texts):
        raise _Unusable(f"a turn without text: see number {texts.index('') + 1}")
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise _Unusable("half a character: text that UTF-8 cannot write")
    if "Choose one from the following options" in texts[0]:
        raise _Unusable("a category question: ferid build writes these itself")
    return Conversation(turns=[Turn(question=q, answer=a) for q, a in zip(texts[::2], texts[1::2], strict=True)])


class _Samples:
    """The samples of a built FERID, found by id or by the name of their media."""

    def __init__(self, out: str | os.PathLike, source: str | None):
        files = ferid_files(out)
        tables = []
        for split, file in files[sample_config(files)].items():
            table = read_rows(file, COLUMNS)
            tables.append(table.append_column("split", pa.repeat(split, len(table))))
        self._table = pa.concat_tables(tables).combine_chunks()
        self._places = {id_: place for place, id_ in enumerate(self._table["id"].to_pylist())}
        self._ids_of_name: dict[str, list[str]] = defaultdict(list)
        sources = set()
        for id_ in self._places:
            name_of_source, _, name = id_.partition("/")
            sources.add(name_of_source)
            if source in (None, name_of_source):
                self._ids_of_name[name].append(id_)
        self._sources = {_letters(name): name for name in sources}
        if source and source not in sources:
            raise FeridError(f"{out} has no source {source!r}: choose from {', '.join(sorted(sources))}")

    def row(self, id_: str) -> dict[str, Any]:
        return self._table.slice(self._places[id_], 1).to_pylist()[0]

    def find(self, record: Any) -> str:
        """The id of the sample that a record is of.

        Raises:
            _Unusable: none or several.
        """
        if not isinstance(record, dict) or "conversations" not in record:
            raise _Unusable("no record of conversations")
        id_ = str(record.get("id", ""))
        media = [path for key in ("video", "image") for path in _as_list(record.get(key))]
        names = [str(path) for path in media] or [id_]
        found = {sample for name in names for sample in self._by_path(name)}
        if id_ in self._places and (not found or id_ in found):
            return id_
        if len(found) == 1 and id_ not in self._places:
            return found.pop()
        name = ", ".join(dict.fromkeys([id_, *names]))[:200]
        if not found:
            raise _Unusable(f"no such sample: {name}")
        if id_ in self._places:
            raise _Unusable(f"id and media are of different samples: {name}")
        raise _Unusable(f"several samples have this name, --source can say which: {name}")

    def _by_path(self, path: str) -> list[str]:
        """The samples whose name is the end of a path. A source's name in the path decides between several."""
        path = PurePosixPath(path.replace("\\", "/"))
        suffix = path.suffix.lower()
        whole = path.with_suffix("") if suffix in (*PICTURES, *CLIPS) else path
        found = [] if suffix in CLIPS else self._ending(whole, "image")
        if not found:  # a picture in a folder may be a frame of a clip
            found = self._ending(path.parent if suffix in PICTURES else whole, "video")
        named = {self._sources[part] for part in map(_letters, path.parts) if part in self._sources}
        return [id_ for id_ in found if id_.partition("/")[0] in named] or found

    def _ending(self, path: PurePosixPath, media_type: str) -> list[str]:
        """The samples of the longest end of a path, as it stands or as the ids are spelt."""
        for start in range(len(path.parts)):
            name = "/".join(path.parts[start:])
            for spelling in dict.fromkeys((name, name.removesuffix("_aligned"), name.zfill(CLIP_DIGITS))):
                ids = [id_ for id_ in self._ids_of_name.get(spelling, ()) if self._kind(id_) == media_type]
                if ids:
                    return ids
        return []

    def _kind(self, id_: str) -> str:
        return self._table["media_type"][self._places[id_]].as_py()


def _letters(name: str) -> str:
    """ "RAF-DB", "raf_db" and "RAFDB" are one source."""
    return re.sub(r"[\W_]", "", name.lower())


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _annotated(annotations: Path, ids: list[str]) -> dict[str, list[dict[str, str]]]:
    """The conversations that these samples have already."""
    if not ids or not any(annotations.glob("*/*.jsonl")):
        return {}
    ids = list(dict.fromkeys(ids))
    messages = conversation_messages(pa.table({"id": ids}), str(annotations)).to_pylist()
    return {id_: known for id_, known in zip(ids, messages, strict=True) if known}


def _add(new: dict[str, list[dict[str, str]]], samples: _Samples, annotations: Path, model: str) -> dict[str, int]:
    """Adds conversations to the files of their splits; returns how many to which."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for id_, messages in new.items():
        row = samples.row(id_)
        line = {"id": id_, "messages": messages, "model": model, "prompt_version": "", "input_tokens": 0}
        lines[f"{row['source']}/{row['split']}.jsonl"].append(line | {"output_tokens": 0, "cost": 0.0, "created": now})
    for name in sorted(lines):
        _replace(annotations / name, lines[name], keep=True)
    return {name: len(lines[name]) for name in sorted(lines)}


def _replace(file: Path, rows: list[dict[str, Any]], keep: bool = False) -> None:
    """Writes JSON lines, after those that are there if `keep`; at any moment the file is the old or the new one."""
    if not rows:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as lines:
        lines.writelines(_lines(file) if keep and file.exists() else ())
        lines.writelines(json.dumps(row) + "\n" for row in rows)
    unfinished.replace(file)


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield line if line.endswith("\n") else line + "\n"
