"""`ferid generate --batch` and `--collect`: the same requests through the Batch API, which takes up to a day.

    submit(order)     writes request files of at most 50,000 lines and 200 MB, uploads them, and notes in the journal
                      who waits in which batch; two runs, where clips have to be described first
    collect(order)    fetches what is ready; lines are joined by our sample ids, whatever their order. Samples of a
                      batch that expired, failed or lost lines are pending again

One line of a request file:

    {"custom_id": "raf_db/train_00001", "method": "POST", "url": "/v1/chat/completions", "body": {"model": ..., ...}}

The journal knows a batch before it is submitted, and the batch carries the journal's name for it as metadata: whenever
the process stops, the next one finds the batch again, or knows that there is none.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import openai
from datasets.utils import tqdm

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.chat_request import UnreadablePicture
from ferid_dataset.generate.choose_samples import choose, rows
from ferid_dataset.generate.client import FILTERED, MAX_RETRIES, REFUSED, Answer, read_answer, sentence
from ferid_dataset.generate.journal import Batch, Reply
from ferid_dataset.generate.pipeline import Summary, summarize
from ferid_dataset.generate.work import UNREADABLE, Order, Work

STAGES = ("description", "conversation")
BATCH_REQUESTS, BATCH_BYTES = 50_000, 200_000_000  # what the API takes in a file
ENDPOINT = "/v1/chat/completions"
UNFINISHED = {"validating", "in_progress", "finalizing", "cancelling"}
COLUMNS = ["id", "source", "media_type", "label", "options", "attributes"]
AT_ONCE = 64  # pictures that are read together, and replies that are committed together


class _Server:
    """The Batch API of the server of one stage; a context manager."""

    def __init__(self, order: Order, stage: str):
        self.endpoint, self.stage = order.endpoint(stage), stage
        _, url, key = self.endpoint
        self.client = openai.OpenAI(base_url=url, api_key=key, max_retries=MAX_RETRIES)

    def __enter__(self) -> "_Server":
        return self

    def __exit__(self, *_) -> None:
        self.client.close()

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """
        Raises:
            FeridError: what the server, or the way to it, has against a call within the block.
        """
        try:
            yield
        except (openai.APIError, httpx2.HTTPError) as error:  # the latter while a file is read
            found = sentence(error, *self.endpoint)
            raise found if isinstance(found, FeridError) else FeridError(f"{found}: start again later") from error

    def owns(self, batch: Batch) -> bool:
        return (batch.stage, batch.base_url) == (self.stage, self.endpoint.url)


def submit(order: Order) -> Summary:
    """Submits batches for all pending samples.

    Raises:
        FeridError: something is wrong that the user can mend; batches that were submitted before are noted.
    """
    notes: list[str] = []
    with Work(order) as work:
        for stage in STAGES if order.describer_model else ("conversation",):
            with _Server(order, stage) as server:
                _find_lost(work, server)
                if submitted := _submit_stage(work, server, notes):
                    notes.append(f"batches of {stage}s submitted: {submitted:,}")
        work.look()
        return summarize(work, notes)


def _submit_stage(work: Work, server: _Server, notes: list[str]) -> int:
    """Returns the number of batches."""
    each = work.order.cost(*work.expected_tokens(server.stage))
    planned = work.used.cost + each * len(work.journal.waiting())
    submitted = 0
    lines = _lines(work, server.stage)
    id_, line = next(lines, (None, b""))
    while id_ is not None:
        name = uuid.uuid4().hex
        file = work.order.annotations / f"batch-{name}.jsonl"
        ids: list[str] = []
        try:
            with file.open("wb") as stream:
                while id_ is not None and len(ids) < BATCH_REQUESTS and stream.tell() + len(line) <= BATCH_BYTES:
                    planned += each
                    if work.order.max_cost is not None and planned > work.order.max_cost:
                        notes.append(f"stopped where the cost could pass {work.order.max_cost:,.2f}: raise --max-cost")
                        lines = iter(())
                    else:
                        stream.write(line)
                        ids.append(id_)
                    id_, line = next(lines, (None, b""))
            if not ids and id_ is not None:
                raise FeridError(f"the request for {id_} is larger than a batch may be: lower --picture-side")
            if ids:
                _submit_file(work, server, Batch(name, server.stage, None, server.endpoint.url), file, ids)
                submitted += 1
        finally:
            file.unlink()
    return submitted


def _lines(work: Work, stage: str) -> Iterator[tuple[str, bytes]]:
    """(id, line of a request file) of each pending sample at this stage; pictures are read in threads."""
    samples = (sample for sample in work.samples() if work.stage(sample) == stage)

    def body(sample: dict[str, Any]) -> dict[str, Any] | UnreadablePicture:
        try:
            return work.request(sample, stage)
        except UnreadablePicture as error:
            return error

    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads,
        tqdm(desc=f"{stage}s", unit=" requests", leave=False) as bar,
    ):
        while some := list(islice(samples, AT_ONCE)):
            for sample, request in zip(some, threads.map(body, some), strict=True):
                bar.update()
                if isinstance(request, UnreadablePicture):
                    work.journal.add([work.judge(sample, stage, Answer(str(request), UNREADABLE, 0, 0, None))])
                    continue
                line = {"custom_id": sample["id"], "method": "POST", "url": ENDPOINT, "body": request}
                yield sample["id"], json.dumps(line).encode() + b"\n"


def _submit_file(work: Work, server: _Server, batch: Batch, file: Path, ids: list[str]) -> None:
    with file.open("rb") as stream, server.sentences():
        uploaded = server.client.files.create(file=stream, purpose="batch")
    work.journal.open_batch(batch, [(id_, work.next_attempt(id_, batch.stage)) for id_ in ids])
    with server.sentences():
        # Not repeated by the SDK, for a second batch would be paid for as well: `_find_lost` looks for it.
        made = server.client.with_options(max_retries=0).batches.create(
            input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h", metadata={"ferid": batch.name}
        )
    work.journal.number_batch(batch.name, made.id)


def _find_lost(work: Work, server: _Server) -> None:
    """Numbers the batches whose submission was not answered; samples of those never made are pending again."""
    lost = [batch.name for batch in work.journal.batches() if not batch.number and server.owns(batch)]
    if not lost:
        return
    with server.sentences():
        made = {(batch.metadata or {}).get("ferid"): batch.id for batch in server.client.batches.list()}
    for name in lost:
        if name in made:
            work.journal.number_batch(name, made[name])
        else:
            work.journal.close_batch(name)
    work.look()


def collect(order: Order) -> Summary:
    """Fetches the replies of all batches that have ended.

    Raises:
        FeridError: something is wrong that the user can mend; what was fetched before is kept.
    """
    notes: Counter[str] = Counter()
    with Work(order) as work:
        for stage in {batch.stage for batch in work.journal.batches()}:
            with _Server(order, stage) as server:
                _find_lost(work, server)
                for batch in work.journal.batches():
                    if server.owns(batch):
                        _collect_batch(work, server, batch, notes)
                    elif batch.stage == stage:
                        notes[f"batches at {batch.base_url}, another address than the given one"] += 1
        work.look()
        return summarize(work, [f"{what}: {count:,}" for what, count in notes.items()])


def _collect_batch(work: Work, server: _Server, batch: Batch, notes: Counter[str]) -> None:
    with server.sentences():
        found = server.client.batches.retrieve(batch.number)
    if found.status in UNFINISHED:
        notes[f"batches {found.status}"] += 1
        return
    waiting = {id_: attempt for (_, id_), attempt in work.journal.waiting(batch.name).items()}
    samples = {row["id"]: row for row in rows(choose(work.order.out, splits=()), waiting, COLUMNS)}
    replies: list[Reply] = []
    refused: list[Reply] = []
    answered = False
    with server.sentences():
        for line in _results(server, found):
            attempt, sample = waiting.pop(line.get("custom_id"), None), samples.get(line.get("custom_id"))
            answer = _answer(line)
            if not (attempt and sample and answer):  # a line that came before, or of nobody, or without an answer
                continue
            reply = work.judge(sample, batch.stage, answer, attempt)
            answered |= reply.rules != REFUSED
            (refused if reply.rules == REFUSED else replies).append(reply)
            if len(replies) >= AT_ONCE:
                work.journal.add(replies, batch.name)
                replies.clear()
    # Where nothing was answered, the requests are to blame and not the samples.
    work.journal.add(replies + (refused if answered else []), batch.name)
    notes[f"batches {found.status}"] += 1
    if again := work.journal.close_batch(batch.name):
        notes["samples without a reply in them, which --batch asks for again"] += again


def _results(server: _Server, batch: openai.types.Batch) -> Iterator[dict[str, Any]]:
    """The lines of the files of a batch; those that are no JSON objects are left out."""
    for number in filter(None, (batch.output_file_id, batch.error_file_id)):
        with server.client.files.with_streaming_response.content(number) as file:
            for line in file.iter_lines():
                with suppress(ValueError):
                    if isinstance(row := json.loads(line), dict):
                        yield row


def _answer(line: dict[str, Any]) -> Answer | None:
    """The answer in a line of results; None where the request was not answered."""
    response = line.get("response") or {}
    if response.get("status_code") == 200:
        return read_answer(response.get("body"))
    if response.get("status_code") not in (400, 422):
        return None
    error = (response.get("body") or {}).get("error") or {}
    rule = "content_filter" if error.get("code") in FILTERED else REFUSED
    return Answer(str(error.get("message")), rule, 0, 0, None)
