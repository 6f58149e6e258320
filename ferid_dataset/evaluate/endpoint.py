"""Asks a model behind an OpenAI-compatible server the question of each row: the paper's GPT-4V column.

    lines = ask_endpoint(rows, Server("gpt-5-mini", "http://localhost:8000/v1"), Path("DIR/replies-3f1c09a2.sqlite"))

The client, its limits and the journal are those of `ferid generate`: each reply is on the disk before it counts, and
is never paid twice. One request has the pictures of the row, those of a clip in their order, and the same words that
any other model is asked:

    {"model": "gpt-5-mini", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,..."}},
        {"type": "text", "text": "What is the facial expression of the person in the image? Choose one ..."}]}]}

A request that fails is no answer: it is tried again, and then the row is left undone, and said to be. A refusal, by
the model or by the server's filter, is an answer, which names no expression.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List
from datasets.utils import tqdm

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.chat_request import UnreadablePicture, data_url
from ferid_dataset.generate.client import Answer, ChatClient, Refused, Unanswered, endpoint
from ferid_dataset.generate.journal import Journal, Reply
from ferid_dataset.generate.pipeline import FAILURES_IN_A_ROW
from ferid_dataset.generate.rate_limits import RateLimit
from ferid_dataset.prompts import PROMPT_VERSION

TRIES = 3  # of a request whose reply is none; each is tried by the client several times besides
NO_ANSWER = {"malformed", "empty", "bad_request"}  # rules of replies that say nothing about the picture
REFUSALS = {"refusal", "content_filter"}


@dataclass(frozen=True)
class Server:
    """Where to ask, and how fast.

    Args:
        model: as the server calls it.
        base_url: such as "http://localhost:8000/v1"; `OPENAI_API_KEY` has the key.
        concurrency: requests that are on the way at a time.
        requests_per_minute, tokens_per_minute: what the account allows, where that is known.
        picture_side: pictures are scaled down to so many pixels on their longer side.
        temperature: of the sampling; the server's own by default, since some models take no other.
    """

    model: str
    base_url: str
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    picture_side: int = 512
    temperature: float | None = None


def ask_endpoint(rows: Dataset, server: Server, journal: Path) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """
    Args:
        rows (`Dataset`): FERID rows of either config; the first question of each is asked.
        server (`Server`): who is asked.
        journal (`Path`): where replies are kept; those that it has are not asked for again.

    Yields:
        `tuple[dict, str, bool]`: each row without its pictures, the text of its answer, and whether it is a refusal.

    Raises:
        [`FeridError`]: there is no key, the server cannot be used, or rows were left undone; what was answered is
            kept.
    """
    where = endpoint(server.model, server.base_url)  # without a key nothing is opened
    rows = rows.cast_column("images", List(Image(decode=False)))
    with Journal(journal) as kept:
        questions = _Questions(rows, server, kept)
        if questions.pending:
            asyncio.run(questions.ask_all(lambda limit: ChatClient(where, limit, server.concurrency)))
        questions.check_whole()
        replies = questions.replies
        for row in rows.remove_columns("images"):
            yield row, replies[row["id"]].text, replies[row["id"]].rules in REFUSALS


def question_request(row: dict[str, Any], server: Server) -> dict[str, Any]:
    """The body of a chat completion.

    Raises:
        UnreadablePicture: one cannot be decoded.
    """
    pictures = [
        {"type": "image_url", "image_url": {"url": data_url(image, server.picture_side)}} for image in row["images"]
    ]
    question = next(message["content"] for message in row["messages"] if message["role"] == "user")
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}],
    }
    return body if server.temperature is None else body | {"temperature": server.temperature}


class _Questions:
    """The rows that are to be asked, and what has come of them."""

    def __init__(self, rows: Dataset, server: Server, journal: Journal):
        self.rows, self.server, self.journal = rows, server, journal
        kept = journal.last_replies("answer")
        self.attempts = {name: reply.attempt for name, reply in kept.items()}
        self.replies = {name: reply for name, reply in kept.items() if reply.rules not in NO_ANSWER}
        self.pending = [index for index, name in enumerate(rows["id"]) if name not in self.replies]
        self.undone: Counter[str] = Counter()
        self.failures = 0  # in a row
        self.writing = asyncio.Lock()

    async def ask_all(self, client: Callable[[RateLimit], ChatClient]) -> None:
        """A fixed number of workers share one iterator; the first error that no request survives stops all."""
        server, indices = self.server, iter(self.pending)
        limit = RateLimit(server.requests_per_minute, server.tokens_per_minute)
        bar = {"initial": len(self.rows) - len(self.pending), "total": len(self.rows), "unit": " rows"}
        async with client(limit) as self.client:
            await self.client.check()
            with tqdm(desc="evaluate", **bar) as self.bar:
                workers = [asyncio.create_task(self._work(indices)) for _ in range(server.concurrency)]
                try:
                    await asyncio.gather(*workers)
                finally:
                    for worker in workers:
                        worker.cancel()
                    await asyncio.gather(*workers, return_exceptions=True)

    def check_whole(self) -> None:
        """
        Raises:
            FeridError: rows have no answer.
        """
        if undone := sum(self.undone.values()):
            reasons = "; ".join(f"{count:,}: {why}" for why, count in self.undone.most_common(3))
            raise FeridError(
                f"{undone:,} of {len(self.rows):,} rows have no answer ({reasons}): "
                "the same command asks for them again, all answers so far are kept"
            )

    async def _work(self, indices: Iterator[int]) -> None:
        for index in indices:
            row = self.rows[index]
            for left in reversed(range(TRIES)):
                try:
                    answer = await self._answer(row)
                except (UnreadablePicture, Unanswered) as error:
                    self._leave(str(error))
                    break
                if answer.rule not in NO_ANSWER:
                    self.failures = 0
                    self.bar.update()
                    break
                if not left or answer.rule == "bad_request":  # which would be answered alike
                    self._leave(
                        f"{answer.rule}: {answer.text}"[:200] if answer.text else f"the reply is {answer.rule}"
                    )
                    break

    async def _answer(self, row: dict[str, Any]) -> Answer:
        """On return, what the server said is on the disk."""
        body = await asyncio.to_thread(question_request, row, self.server)
        try:
            answer = await self.client.ask(body)
        except Refused as error:
            answer = Answer(str(error), error.rule, 0, 0, None)
        self.attempts[row["id"]] = self.attempts.get(row["id"], 0) + 1
        reply = Reply(
            id=row["id"],
            stage="answer",
            attempt=self.attempts[row["id"]],
            source=row["source"],
            split="",
            label=row["label"],
            rules=answer.rule or "",
            text=answer.text,
            model=answer.model or self.server.model,
            prompt_version=PROMPT_VERSION,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cost=0.0,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        async with self.writing:
            await asyncio.to_thread(self.journal.add, [reply])
        if answer.rule not in NO_ANSWER:
            self.replies[row["id"]] = reply
        return answer

    def _leave(self, why: str) -> None:
        self.undone[why] += 1
        self.failures += 1
        if self.failures >= FAILURES_IN_A_ROW:
            raise FeridError(f"{self.failures} rows failed one after the other ({why}): mend that and run it again")
