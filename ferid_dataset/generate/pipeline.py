"""`ferid generate`, online: a fixed number of workers that share one iterator of samples.

    generate(Order(out=Path("ferid"), annotations=Path("annotations"), model="gpt-5-mini"))
        -> Summary(count={"accepted": 12015, "rejected": 256}, rules={"unsupported": 190, ...}, totals=..., ...)

A worker takes a sample, reads its picture in a thread, asks, judges the reply by the rules, and takes the next one
when the reply is on the disk. Ctrl-C, the cap on the cost, or an error that no request will survive lets no further
request start; those on the way are awaited and kept. A second Ctrl-C gives them up.
"""

import asyncio
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from datasets.utils import tqdm

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.chat_request import UnreadablePicture
from ferid_dataset.generate.client import Answer, ChatClient, Refused, Unanswered
from ferid_dataset.generate.journal import Reply, Totals
from ferid_dataset.generate.rate_limits import RateLimit
from ferid_dataset.generate.work import UNREADABLE, Order, Work

FAILURES_IN_A_ROW = 25  # requests that fail for good, one after the other, before the server counts as down


@dataclass
class Summary:
    """Where the order stands; `str()` of it is what `ferid generate` prints."""

    annotations: str
    count: dict[str, int]  # samples by state: accepted, rejected, pending, waiting, undescribed
    rules: dict[str, int]  # broken rules of the last attempts
    totals: Totals
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.count.values())
        lines = [f"{self.annotations}: {self.count.get('accepted', 0):,} of {total:,} samples have a conversation"]
        if rejected := self.count.get("rejected"):
            by_rule = ", ".join(f"{rule} {count:,}" for rule, count in self.rules.items())
            lines.append(f"  rejected: {rejected:,} ({by_rule}); rejected.jsonl has them, --retry-rejected asks again")
        if pending := self.count.get("pending"):
            lines.append(f"  still to be asked: {pending:,}; the same command goes on")
        if waiting := self.count.get("waiting"):
            lines.append(f"  in batches: {waiting:,}; --collect fetches what is ready")
        if undescribed := self.count.get("undescribed"):
            lines.append(
                f"  clips without a description: {undescribed:,}; give --describer-model, --descriptions or --mafw"
            )
        totals = self.totals
        cost = f", cost {totals.cost:,.2f}" if totals.cost else ""
        lines.append(f"  tokens: {totals.input_tokens:,} in, {totals.output_tokens:,} out{cost}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def summarize(work: Work, notes: list[str] = ()) -> Summary:
    rules = {rule: count for rule, count in work.rules.most_common() if count > 0}
    return Summary(str(work.order.annotations), dict(+work.count), rules, work.used, list(notes))


def generate(order: Order) -> Summary:
    """Asks for the conversation of every pending sample of the order.

    Raises:
        FeridError: something is wrong that the user can mend; what was answered before is kept.
        KeyboardInterrupt: stopped; the same.
    """
    order.endpoint("conversation")  # without a key nothing is opened
    with Work(order) as work:
        run = _Run(work)
        if work.pending:
            asyncio.run(run.all())
        summary = summarize(work, run.notes())
    if run.error:
        raise run.error
    if run.interrupted:
        raise KeyboardInterrupt
    return summary


class _Run:
    def __init__(self, work: Work):
        self.work = work
        self.samples = work.samples()
        self.dearest = max(work.order.cost(*work.expected_tokens(stage)) for stage in ("conversation", "description"))
        self.on_the_way = 0
        self.answered = False
        self.failures = 0  # in a row
        self.unanswered: Counter[str] = Counter()
        self.stopping = self.interrupted = self.capped = False
        self.error: FeridError | None = None
        self._uncommitted: list[Reply] = []
        self._committing = asyncio.Lock()

    def notes(self) -> list[str]:
        notes = [f"not answered: {count:,} ({why})" for why, count in self.unanswered.most_common(3)]
        if self.capped:
            notes.append(f"stopped at the cap of {self.work.order.max_cost:,.2f}: raise --max-cost to go on")
        return notes

    async def all(self) -> None:
        order, done = self.work.order, self.work.count["accepted"] + self.work.count["rejected"]
        async with AsyncExitStack() as stack:
            tokens = sum(self.work.expected_tokens("conversation"))
            limit = RateLimit(order.requests_per_minute, order.tokens_per_minute, tokens)
            self.clients = {"conversation": ChatClient(order.endpoint("conversation"), limit, order.concurrency)}
            if order.describer_model:
                limit = RateLimit() if order.describer_base_url else limit  # which is that of the other server
                self.clients["description"] = ChatClient(order.endpoint("description"), limit, order.concurrency)
            for client in self.clients.values():
                await stack.enter_async_context(client)
                await client.check()
            total = done + len(self.work.pending)
            self.bar = stack.enter_context(tqdm(total=total, initial=done, desc="generate", unit=" samples"))
            stack.enter_context(self._until_interrupted())
            await asyncio.gather(*(self._work() for _ in range(min(order.concurrency, len(self.work.pending)))))

    @contextmanager
    def _until_interrupted(self) -> Iterator[None]:
        """The first Ctrl-C, or SIGTERM, stops softly; the second one is Python's own."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

        def stop() -> None:
            self.interrupted = True
            self._stop()
            words = f"stopping: {self.on_the_way} requests are on the way; Ctrl-C again gives them up"
            tqdm.write(words, file=sys.stderr)
            for number in signals:
                loop.remove_signal_handler(number)

        with suppress(NotImplementedError):  # Windows
            for number in signals:
                loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            with suppress(NotImplementedError):
                for number in signals:
                    loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """No request starts any more, nor do those that only wait for their turn."""
        self.stopping = True
        for client in self.clients.values():
            client.limit.cancel()

    async def _work(self) -> None:
        while not self.stopping and (sample := next(self.samples, None)) is not None:
            try:
                if self.work.stage(sample) == "conversation" or await self._ask(sample, "description"):
                    await self._ask(sample, "conversation")
            except FeridError as error:
                self.error = self.error or error
                self._stop()
            except asyncio.CancelledError:
                if not self.stopping:
                    raise

    async def _ask(self, sample: dict[str, Any], stage: str) -> bool:
        """Whether a reply was accepted; on return it is on the disk."""
        if not self._can_pay():
            return False
        self.on_the_way += 1
        try:
            answer = await self._answer(sample, stage)
            if answer is None:
                return False
            reply = self.work.judge(sample, stage, answer)
            await self._commit(reply)
        finally:
            self.on_the_way -= 1
        if stage == "conversation" or reply.rules:
            self.bar.update()
        return not reply.rules

    def _can_pay(self) -> bool:
        cap = self.work.order.max_cost
        if cap is not None and self.work.used.cost + (self.on_the_way + 1) * self.dearest > cap:
            self.capped = self.stopping = True
        return not self.stopping

    async def _answer(self, sample: dict[str, Any], stage: str) -> Answer | None:
        """None: there is no answer, and the sample stays to be asked."""
        try:
            body = await asyncio.to_thread(self.work.request, sample, stage)
            answer = await self.clients[stage].ask(body)
        except UnreadablePicture as error:
            self._fail(f"pictures that cannot be read, such as {error}")
            return Answer(str(error), UNREADABLE, 0, 0, None)
        except Refused as error:
            if self.answered or error.rule == "content_filter":  # it is the sample, then
                return Answer(str(error), error.rule, 0, 0, None)
            self._fail(f"{error}; a server without structured outputs needs --json-mode")
        except Unanswered as error:
            self._fail(str(error))
        else:
            self.answered, self.failures = True, 0
            return answer
        return None

    def _fail(self, why: str) -> None:
        self.failures += 1
        self.unanswered[why] += 1
        if self.failures >= FAILURES_IN_A_ROW:
            raise FeridError(f"{self.failures} samples failed in a row ({why}): mend that and run the same command")

    async def _commit(self, reply: Reply) -> None:
        """Returns when the reply is on the disk. Whoever comes first writes for all who came meanwhile."""
        self._uncommitted.append(reply)
        async with self._committing:
            if replies := self._uncommitted:
                self._uncommitted = []
                try:
                    await asyncio.to_thread(self.work.journal.add, replies)
                except FeridError:
                    self._uncommitted += replies  # the others must not take theirs for written
                    raise
        self.dearest = max(self.dearest, reply.cost)
        self.work.settle(reply)
        used = self.work.used
        rejected = ", ".join(f"{rule} {count:,}" for rule, count in self.work.rules.most_common(5) if count > 0)
        tokens = f"{used.input_tokens:,}+{used.output_tokens:,} tokens"
        self.bar.set_postfix_str(f"{tokens}, cost {used.cost:.2f}, rejected: {rejected or 'none'}", refresh=False)
