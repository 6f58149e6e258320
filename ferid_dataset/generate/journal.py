"""The journal of a generation: every reply that was paid for, in one SQLite file beside the annotations.

    with Journal(Path("annotations/journal.sqlite")) as journal:
        journal.add([Reply(id="raf_db/train_00001", stage="conversation", attempt=1, source="raf_db", split="train",
                           label="sadness", rules="", text='{"turns": [...]}', model="m", prompt_version="1",
                           input_tokens=900, output_tokens=120, cost=0.0004, created="2026-01-31T12:00:00+00:00")])
        journal.latest("conversation")   # {"raf_db/train_00001": Attempt(attempt=1, rules="", ...)}

`rules` names the broken rules, comma between them; a reply without any is accepted. A sample that has no row is
pending. `add` returns when the rows are on the disk: a process that is killed at any moment loses nothing that it
counted. Whoever opens the journal holds SQLite's exclusive lock until it closes the file or dies.
"""

import operator
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ferid_dataset.errors import FeridError

_TABLES = (
    """CREATE TABLE IF NOT EXISTS replies (
        stage TEXT, id TEXT, attempt INTEGER, source TEXT, split TEXT, label TEXT, rules TEXT, model TEXT,
        prompt_version TEXT, input_tokens INTEGER, output_tokens INTEGER, cost REAL, created TEXT, text TEXT,
        PRIMARY KEY (stage, id, attempt))""",
    # Batches that were not collected yet, and who waits in them. The name is ours, and stands here before the batch is
    # submitted; its number is the server's, null until the submission has returned.
    "CREATE TABLE IF NOT EXISTS batches (name TEXT PRIMARY KEY, stage TEXT, number TEXT, base_url TEXT)",
    "CREATE TABLE IF NOT EXISTS waiting (stage TEXT, id TEXT, attempt INTEGER, name TEXT, PRIMARY KEY (stage, id))",
    # The annotation files as they were last written.
    "CREATE TABLE IF NOT EXISTS files (file TEXT PRIMARY KEY, size INTEGER, changed INTEGER, replies INTEGER)",
)


class Reply(NamedTuple):
    """One answered request, accepted or rejected."""

    id: str  # of the sample
    stage: str  # "conversation", or "description" of a clip, which comes before it
    attempt: int  # 1, 2, 3
    source: str
    split: str
    label: str
    rules: str  # "unsupported,length": what it broke; "" accepts it
    text: str  # as it came
    model: str
    prompt_version: str
    input_tokens: int
    output_tokens: int
    cost: float  # by the prices that the user gave
    created: str  # ISO 8601, UTC


class Attempt(NamedTuple):
    """What counts of the last reply to a sample."""

    attempt: int
    rules: str
    split: str
    label: str


make_attempt = lru_cache(maxsize=1000)(Attempt)  # most are alike: one object for many samples


class Batch(NamedTuple):
    """A batch that was not collected yet."""

    name: str
    stage: str
    number: str | None  # the server's id; null: the process stopped between submitting it and being told
    base_url: str


class Totals(NamedTuple):
    """What replies have used together."""

    replies: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*map(operator.add, self, other))


_COLUMNS = ", ".join(Reply._fields)
_INSERT = f"INSERT OR IGNORE INTO replies ({_COLUMNS}) VALUES ({', '.join('?' * len(Reply._fields))})"


class Journal:
    """An open journal; a context manager.

    Args:
        file: the SQLite file, which is made where it is missing; None keeps everything in memory.

    Raises:
        FeridError: another process works on it, it is no journal, or it cannot be written.
    """

    def __init__(self, file: Path | None):
        self.file = file
        try:
            # The writes come from a thread, one at a time.
            self._db = sqlite3.connect(file or ":memory:", timeout=0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        except sqlite3.DatabaseError as error:
            raise self._sentence(error) from error
        with self._transaction():
            for table in _TABLES:
                self._db.execute(table)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._db.close()

    def add(self, replies: Iterable[Reply], collected: str | None = None) -> int:
        """Writes replies, all or none; one that is there already is ignored. On return they are durable.

        Args:
            replies: in any order.
            collected: the name of the batch that they come from; they wait no more.

        Returns:
            How many were new.

        Raises:
            FeridError: the disk is full or the file cannot be written; what was written before stays.
        """
        replies = list(replies)
        with self._transaction():
            new = self._db.executemany(_INSERT, replies).rowcount
            if collected:
                done = [(collected, reply.stage, reply.id) for reply in replies]
                self._db.executemany("DELETE FROM waiting WHERE name = ? AND stage = ? AND id = ?", done)
        return max(new, 0)

    def latest(self, stage: str) -> dict[str, Attempt]:
        """The last attempt at each sample."""
        query = "SELECT id, attempt, rules, split, label FROM replies WHERE stage = ? ORDER BY rowid"
        return {id_: make_attempt(*rest) for id_, *rest in self._db.execute(query, (stage,))}

    def last_replies(self, stage: str) -> dict[str, Reply]:
        """The last reply to each sample, whole."""
        query = f"SELECT {_COLUMNS} FROM replies WHERE stage = ? ORDER BY rowid"
        return {reply.id: reply for reply in map(Reply._make, self._db.execute(query, (stage,)))}

    def descriptions(self) -> dict[str, str]:
        """The accepted description of each clip that has one."""
        return self.texts("description")

    def texts(self, stage: str) -> dict[str, str]:
        """The accepted text of each sample that has one, of a stage of which a sample has but one."""
        return dict(self._db.execute("SELECT id, text FROM replies WHERE stage = ? AND rules = ''", (stage,)))

    def models(self, stage: str) -> dict[str, str]:
        """Who wrote these, as the server calls it."""
        return dict(self._db.execute("SELECT id, model FROM replies WHERE stage = ? AND rules = ''", (stage,)))

    def splits(self) -> list[tuple[str, str]]:
        """(source, split) of all that have an accepted conversation."""
        query = "SELECT DISTINCT source, split FROM replies WHERE stage = 'conversation' AND rules = ''"
        return list(self._db.execute(query))

    def accepted(self, source: str, split: str, after: int = 0) -> Iterator[Reply]:
        """The accepted conversations of a split in the order in which they came, those after a `number()`."""
        query = f"""SELECT {_COLUMNS} FROM replies WHERE rowid > ? AND stage = 'conversation' AND rules = ''
            AND source = ? AND split = ? ORDER BY rowid"""
        return map(Reply._make, self._db.execute(query, (after, source, split)))

    def rejected(self, after: int = 0) -> Iterator[Reply]:
        """The replies that broke a rule, whole, all attempts, those after a `number()`."""
        query = f"SELECT {_COLUMNS} FROM replies WHERE rowid > ? AND rules != '' ORDER BY rowid"
        return map(Reply._make, self._db.execute(query, (after,)))

    def totals(self) -> dict[str, Totals]:
        """By stage, those that have replies."""
        query = (
            "SELECT stage, COUNT(*), SUM(input_tokens), SUM(output_tokens), TOTAL(cost) FROM replies GROUP BY stage"
        )
        return {stage: Totals(*sums) for stage, *sums in self._db.execute(query)}

    def number(self) -> int:
        """Grows with every reply."""
        return self._db.execute("SELECT COALESCE(MAX(rowid), 0) FROM replies").fetchone()[0]

    # ---- batches ----

    def open_batch(self, batch: Batch, samples: Iterable[tuple[str, int]]) -> None:
        """Notes a batch before it is submitted, with (id, attempt) of the samples that will wait in it."""
        with self._transaction():
            self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", batch)
            rows = ((batch.stage, id_, attempt, batch.name) for id_, attempt in samples)
            self._db.executemany("INSERT INTO waiting VALUES (?, ?, ?, ?)", rows)

    def number_batch(self, name: str, number: str) -> None:
        """Notes what the server calls a batch."""
        with self._transaction():
            self._db.execute("UPDATE batches SET number = ? WHERE name = ?", (number, name))

    def close_batch(self, name: str) -> int:
        """Forgets a batch; samples that still wait in it are pending again. Returns how many these are."""
        with self._transaction():
            self._db.execute("DELETE FROM batches WHERE name = ?", (name,))
            return self._db.execute("DELETE FROM waiting WHERE name = ?", (name,)).rowcount

    def batches(self) -> list[Batch]:
        return [Batch(*row) for row in self._db.execute("SELECT name, stage, number, base_url FROM batches")]

    def waiting(self, name: str | None = None) -> dict[tuple[str, str], int]:
        """{(stage, id): attempt} of the samples that wait in a batch, or in any."""
        query = "SELECT stage, id, attempt FROM waiting WHERE ?1 IN (name, '')"
        return {(stage, id_): attempt for stage, id_, attempt in self._db.execute(query, (name or "",))}

    # ---- annotation files ----

    def files(self) -> dict[str, tuple[int, int, int]]:
        """{file: (size in bytes, time of change in nanoseconds, `number()` when it was written)}"""
        return {file: tuple(stamp) for file, *stamp in self._db.execute("SELECT * FROM files")}

    def note_files(self, files: dict[str, tuple[int, int, int]]) -> None:
        with self._transaction():
            self._db.execute("DELETE FROM files")
            self._db.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", [(file, *files[file]) for file in files])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and durable at its end."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise self._sentence(error) from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _sentence(self, error: sqlite3.DatabaseError) -> FeridError:
        if "locked" in str(error):
            return FeridError(f"another ferid generate works on {self.file}: wait for it, or stop it")
        if "full" in str(error) or "disk I/O" in str(error):
            return FeridError(
                f"{self.file} cannot grow ({error}): make room on its disk and run the same command again; "
                "all replies so far are kept"
            )
        return FeridError(f"{self.file} is no journal that can be used ({error}): move it away, or mend its folder")
