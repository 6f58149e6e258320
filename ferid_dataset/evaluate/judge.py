"""A language model as judge of free answers: asked once for each, in fixed words, and never guessed for.

    judge(answers, Order(model="gpt-5-mini", journal=Path("results/judge.sqlite")))
    -> Verdicts(judgements={"mafw/00025": {"reason": "...", "label_agreement": 10, "clue_agreement": 6}, ...},
                model="gpt-5-mini", answered_by=["gpt-5-mini-2025-08-07"], prompt_version="1",
                not_judged={"not answered": 2}, ...)

Every reply is in the journal of generations (`generate/journal.py`) before it counts, under the hash of judge and
prompt: what was judged once is not paid for again, and another judge, wording, reference or answer is another entry.
An error, a refusal or a reply of another form is no score: such answers are counted in `not_judged`.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from datasets.utils import tqdm
from pydantic import BaseModel, ConfigDict, ValidationError

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.client import Answer, ChatClient, Refused, Unanswered, endpoint
from ferid_dataset.generate.journal import Journal, Reply, Totals
from ferid_dataset.prompts import JUDGE_PROMPT_VERSION, judge_prompt

STAGE = "judgement"
MOST_ATTEMPTS = 3  # at a reply of the right form
FAILURES_IN_A_ROW = 25  # requests that fail for good, one after the other, before the server counts as down
Score = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


class Judgement(BaseModel):
    """What the answer has of the truth."""

    model_config = ConfigDict(extra="forbid")

    reason: str
    label_agreement: Score
    clue_agreement: Score


STRUCTURED = {
    "type": "json_schema",
    "json_schema": {"name": "judgement", "strict": True, "schema": Judgement.model_json_schema()},
}
JSON_MODE = {"type": "json_object"}


@dataclass(frozen=True)
class Order:
    """Who judges, and where replies are kept.

    Args:
        model: the judge, as its server calls it.
        journal: the SQLite file of replies.
        base_url: of the server; none: `OPENAI_BASE_URL`, else OpenAI's. The key is in `OPENAI_API_KEY`.
        concurrency: requests that are on the way at a time.
        json_mode: for servers without structured outputs.
    """

    model: str
    journal: Path
    base_url: str | None = None
    concurrency: int = 8
    json_mode: bool = False


@dataclass
class Verdicts:
    """The judgements by id of the answer, and how they came about."""

    model: str
    prompt_version: str = JUDGE_PROMPT_VERSION
    judgements: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered_by: list[str] = field(default_factory=list)  # the models that replied, as the server calls them
    not_judged: dict[str, int] = field(default_factory=dict)  # by reason
    input_tokens: int = 0  # of all replies in the journal
    output_tokens: int = 0

    def as_facts(self) -> dict[str, Any]:
        """All but the judgements themselves, with their number."""
        return {"judged": len(self.judgements)} | {k: v for k, v in asdict(self).items() if k != "judgements"}


def judge(answers: Sequence[dict[str, Any]], order: Order) -> Verdicts:
    """
    Ask a judge about every answer that has a reference and no judgement yet.

    Args:
        answers (`Sequence[dict]`):
            Rows with `id`, `label`, `question`, `reference` and `text`.
        order (`Order`):
            The judge.

    Raises:
        [`FeridError`]: something is wrong that the user can mend; what was judged before is kept.
    """
    server = endpoint(order.model, order.base_url)  # without a key nothing is opened
    order.journal.parent.mkdir(parents=True, exist_ok=True)
    with Journal(order.journal) as journal:
        judging = _Judging(answers, order, journal)
        if judging.pending:
            asyncio.run(judging.all(ChatClient(server, concurrency=order.concurrency)))
        return judging.verdicts()


class _Judging:
    def __init__(self, answers: Sequence[dict[str, Any]], order: Order, journal: Journal):
        self.order, self.journal = order, journal
        self.compared = [row for row in answers if row.get("reference")]
        self.not_judged = Counter({"no reference": len(answers) - len(self.compared)})
        self.attempts = {key: last.attempt for key, last in journal.latest(STAGE).items()}
        done = journal.texts(STAGE)
        self.pending = {}  # two answers that say the same to the same question are asked about once
        for row in self.compared:
            key = self._key(row)
            if key not in done and self.attempts.get(key, 0) < MOST_ATTEMPTS:
                self.pending[key] = row
        self.answered, self.failures = False, 0  # in a row
        self._writing = asyncio.Lock()

    def _key(self, row: dict[str, Any]) -> str:
        texts = (self.order.model, JUDGE_PROMPT_VERSION, *self._prompt(row))
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    @staticmethod
    def _prompt(row: dict[str, Any]) -> tuple[str, str]:
        return judge_prompt(row["label"], row.get("question") or "", row["reference"], row["text"])

    def _request(self, row: dict[str, Any]) -> dict[str, Any]:
        system, user = self._prompt(row)
        return {
            "model": self.order.model,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": [{"type": "text", "text": user}]},
            ],
            "response_format": JSON_MODE if self.order.json_mode else STRUCTURED,
        }

    async def all(self, client: ChatClient) -> None:
        async with client:
            await client.check()
            rows = iter(self.pending.items())
            with tqdm(total=len(self.pending), desc="judge", unit=" answers") as bar:
                workers = range(min(self.order.concurrency, len(self.pending)))
                tasks = [asyncio.ensure_future(self._work(client, rows, bar)) for _ in workers]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()

    async def _work(self, client: ChatClient, rows: Iterator[tuple[str, dict[str, Any]]], bar: tqdm) -> None:
        for key, row in rows:
            rule = "asked"
            while rule and self.attempts.get(key, 0) < MOST_ATTEMPTS:
                if (answer := await self._ask(client, row)) is None:
                    break
                rule = answer.rule or _broken(answer.text)
                await self._keep(key, row, answer, rule)
            bar.update()

    async def _ask(self, client: ChatClient, row: dict[str, Any]) -> Answer | None:
        """None: the server does not answer, and the answer stays to be judged."""
        try:
            answer = await client.ask(self._request(row))
        except Refused as error:
            if not self.answered and error.rule != "content_filter":
                advice = "a server without structured outputs needs --json-mode"
                raise FeridError(f"the judge refuses the request ({error}): {advice}") from error
            return Answer(str(error), error.rule, 0, 0, None)
        except Unanswered as error:
            self.failures += 1
            if self.failures >= FAILURES_IN_A_ROW:
                raise FeridError(
                    f"{self.failures} requests failed in a row ({error}): mend that and run the same command"
                ) from error
            return None
        self.answered, self.failures = True, 0
        return answer

    async def _keep(self, key: str, row: dict[str, Any], answer: Answer, rule: str | None) -> None:
        self.attempts[key] = self.attempts.get(key, 0) + 1
        reply = Reply(
            id=key,
            stage=STAGE,
            attempt=self.attempts[key],
            source=row.get("source") or "",
            split="",
            label=row["label"],
            rules=rule or "",
            text=answer.text,
            model=answer.model or self.order.model,
            prompt_version=JUDGE_PROMPT_VERSION,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cost=0.0,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        async with self._writing:
            await asyncio.to_thread(self.journal.add, [reply])

    def verdicts(self) -> Verdicts:
        texts, models, last = self.journal.texts(STAGE), self.journal.models(STAGE), self.journal.latest(STAGE)
        found, answered_by = Verdicts(self.order.model), set()
        for row in self.compared:
            key = self._key(row)
            if key in texts:
                found.judgements[row["id"]] = Judgement.model_validate_json(texts[key]).model_dump()
                answered_by.add(models[key])
            else:
                self.not_judged[last[key].rules if key in last else "not answered"] += 1
        found.answered_by, found.not_judged = sorted(answered_by), dict(+self.not_judged)
        totals = self.journal.totals().get(STAGE, Totals())
        found.input_tokens, found.output_tokens = totals.input_tokens, totals.output_tokens
        return found


def _broken(text: str) -> str | None:
    """The rule that a reply of another form breaks."""
    try:
        Judgement.model_validate_json(text)
    except ValidationError:
        return "malformed"
    return None
