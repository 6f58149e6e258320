"""What is ordered, and what of it is still to be done: the choice of samples, less what the journal knows.

with Work(Order(out=Path("ferid"), annotations=Path("annotations"), model="gpt-5-mini")) as work:
    work.count                # Counter({"accepted": 11000, "rejected": 171, "pending": 1100, ...})
    for sample in work.samples(): ...      # a FERID row, with "split", and "reason" where it was rejected before
    work.judge(sample, "conversation", answer)       # Reply(..., rules="") or Reply(..., rules="unsupported")
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ferid_dataset.dataset_card import read_build_facts
from ferid_dataset.errors import FeridError
from ferid_dataset.generate.annotation_files import read_annotations, shard_suffix, write_annotations
from ferid_dataset.generate.chat_request import conversation_request, description_request
from ferid_dataset.generate.choose_samples import COLUMNS, choose, rows
from ferid_dataset.generate.client import Answer, Endpoint, endpoint
from ferid_dataset.generate.journal import Attempt, Journal, Reply, Totals, make_attempt
from ferid_dataset.generate.rules import violations
from ferid_dataset.generate.schema import parse_reply
from ferid_dataset.prompts import PROMPT_VERSION, description_prompt, generation_prompt, rejection_reason
from ferid_dataset.sources.base import Choices
from ferid_dataset.sources.mafw import read_captions

MEASURED = 20  # replies from which on they tell what a request takes; before, text counts by its characters and
CHARACTERS_PER_TOKEN = 4  # pictures by OpenAI's formula for tiles of 512 pixels, which other models differ from
OUTPUT_TOKENS = {"conversation": 200, "description": 120}
FRAMES = 8  # of a clip, as `ferid build` takes them by default

MOST_ATTEMPTS = 3  # the first, and two more of --retry-rejected
UNREADABLE = "unreadable_picture"  # the rule of samples that were not asked for; they are looked at again in each run


@dataclass(frozen=True)
class Order:
    """What a user orders; the options of `ferid generate`.

    Args:
        out: the folder that `ferid build` wrote.
        annotations: the folder of the journal and of `<source>/<split>.jsonl`.
        model, base_url: of the server that writes conversations; no address: `OPENAI_BASE_URL`, else OpenAI's.
        describer_model, describer_base_url: of the model that describes clips from all their frames.
        descriptions: a file of lines {"id", "description"} that are used instead.
        mafw: the folder of MAFW, whose captions are used instead.
        concurrency: requests that are on the way at a time.
        requests_per_minute, tokens_per_minute: what the account allows, where that is known.
        max_cost: no request is sent that could lift the cost of all replies in the journal above it.
        price_in, price_out: of a million tokens.
        picture_side: pictures are scaled down to so many pixels on their longer side.
        splits, sources, per_class, limit, shard: see `choose`.
        retry_rejected: asks again for rejected samples, and tells the model why; each at most twice.
        json_mode: for servers without structured outputs.
    """

    out: Path
    annotations: Path
    model: str
    base_url: str | None = None
    describer_model: str | None = None
    describer_base_url: str | None = None
    descriptions: Path | None = None
    mafw: Path | None = None
    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    picture_side: int = 512
    splits: Sequence[str] = ("train",)
    sources: Sequence[str] = ()
    per_class: int | None = None
    limit: int | None = None
    shard: tuple[int, int] | None = None
    retry_rejected: bool = False
    json_mode: bool = False

    def __post_init__(self):
        if self.max_cost is not None and (self.price_in is None or self.price_out is None):
            raise FeridError("a cap on the cost needs prices: give --price-in and --price-out, of a million tokens")
        if self.annotations.exists() and not self.annotations.is_dir():
            raise FeridError(f"{self.annotations} is a file: give a folder to --annotations")

    def endpoint(self, stage: str) -> Endpoint:
        """Where the model of a stage is. A describer at an address of its own has a key of its own, too.

        Raises:
            FeridError: there is no key.
        """
        if stage == "conversation":
            return endpoint(self.model, self.base_url)
        if not self.describer_base_url:
            return endpoint(self.describer_model, self.base_url)
        return endpoint(self.describer_model, self.describer_base_url, "DESCRIBER_API_KEY")

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        return (input_tokens * (self.price_in or 0) + output_tokens * (self.price_out or 0)) / 1e6


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" is (2, 8), the second of eight parts.

    Raises:
        FeridError: it is something else.
    """
    if not (match := re.fullmatch(r"(\d+)/(\d+)", text)) or not 1 <= int(match[1]) <= int(match[2]):
        raise FeridError(f"there is no shard {text}: the first of eight is 1/8, the last 8/8")
    return int(match[1]), int(match[2])


class Work:
    """An order with its journal open; a context manager. On leaving it, the annotation files are brought up to date.

    Args:
        order: what is wanted.
        write: whether anything may be written; without it, the journal of a folder that has none stays in memory.

    Raises:
        FeridError: the FERID, the annotations or the journal cannot be used, or do not belong together.
    """

    def __init__(self, order: Order, write: bool = True):
        self.order, self._write = order, write
        self.choice = choose(
            order.out,
            splits=order.splits,
            sources=order.sources,
            per_class=order.per_class,
            limit=order.limit,
            shard=order.shard,
        )
        self._suffix = shard_suffix(order.shard)
        file = order.annotations / f"journal{self._suffix}.sqlite"
        if write:
            order.annotations.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(file if write or file.exists() else None)
        try:
            self.look()
        except BaseException:
            self.journal.__exit__()
            raise

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *_) -> None:
        try:
            if self._write:
                write_annotations(self.order.annotations, self.journal, self._suffix)
        finally:
            self.journal.__exit__()

    def look(self) -> None:
        """Finds out where each chosen sample stands; `pending` has those to be asked, with why they were rejected."""
        chosen = self.choice.table
        elsewhere = read_annotations(self.order.annotations, self.journal, self._suffix, self.choice.every)
        self.descriptions = self._given_descriptions() | self.journal.descriptions()
        self.attempts = {stage: self.journal.latest(stage) for stage in ("description", "conversation")}
        if self.attempts["conversation"] and self.attempts["conversation"].keys().isdisjoint(chosen["id"].to_pylist()):
            self._check_same_ids()
        waiting = {id_ for _, id_ in self.journal.waiting()}
        self.count: Counter[str] = Counter()
        self.rules: Counter[str] = Counter()
        self.totals = self.journal.totals()
        self.pending: dict[str, str | None] = {}
        for id_, kind, split, label in zip(
            *(chosen[name].to_pylist() for name in ("id", "media_type", "split", "label")), strict=True
        ):
            last = self.attempts["conversation"].get(id_) or self.attempts["description"].get(id_)
            if last and (last.split, last.label) != (split, label):
                raise FeridError(
                    f"{self.order.annotations} was generated for another FERID: {id_} is {last.label} of {last.split} "
                    f"there and {label} of {split} in {self.order.out}: give another folder to --annotations"
                )
            state = "accepted" if id_ in elsewhere else self._state(id_, kind, last)
            if id_ in waiting and state != "accepted":
                state = "waiting"
            self.count[state] += 1
            if last and last.rules:
                self.rules.update(last.rules.split(","))
            if state == "pending":
                again = last and last.rules and last.rules != UNREADABLE
                self.pending[id_] = rejection_reason(last.rules.split(",")) if again else None

    def _state(self, id_: str, kind: str, last: Attempt | None) -> str:
        if last and not last.rules and id_ in self.attempts["conversation"]:
            return "accepted"
        again = self.order.retry_rejected and last and last.attempt < MOST_ATTEMPTS
        if last and last.rules not in ("", UNREADABLE) and not again:
            return "rejected"
        if kind == "video" and id_ not in self.descriptions and not self.order.describer_model:
            return "undescribed"
        return "pending"

    def _check_same_ids(self) -> None:
        """A journal that knows nothing of this build belongs to another one."""
        if self.attempts["conversation"].keys().isdisjoint(self.choice.every["id"].to_pylist()):
            ids = next(iter(self.attempts["conversation"]))
            raise FeridError(
                f"{self.order.annotations} was generated for another FERID: {self.order.out} has none of its samples, "
                f"such as {ids}; give another folder to --annotations"
            )

    def settle(self, reply: Reply) -> None:
        """Counts a reply that is on the disk."""
        before = self.attempts[reply.stage].get(reply.id)
        if before and before.rules:
            self.rules.subtract(before.rules.split(","))
        self.rules.update(reply.rules.split(",") if reply.rules else ())
        self.attempts[reply.stage][reply.id] = make_attempt(reply.attempt, reply.rules, reply.split, reply.label)
        used = Totals(1, reply.input_tokens, reply.output_tokens, reply.cost)
        self.totals[reply.stage] = self.totals.get(reply.stage, Totals()) + used
        if reply.stage == "description" and not reply.rules:
            self.descriptions[reply.id] = reply.text
        else:
            self.count["pending"] -= 1
            self.count["rejected" if reply.rules else "accepted"] += 1

    def _given_descriptions(self) -> dict[str, str]:
        """Descriptions that no model has to write."""
        given = {}
        if self.order.mafw:
            chosen = read_build_facts(self.order.out).choices
            names = ("fold", "mafw_labels")
            given = read_captions(str(self.order.mafw), Choices(**{n: chosen[n] for n in names if n in chosen}))
        if file := self.order.descriptions:
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                try:
                    row = json.loads(line)
                    given[row["id"]] = " ".join(row["description"].split())
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise FeridError(
                        f'{file}:{number} is no line of {{"id", "description"}}: mend or remove it'
                    ) from error
        return {id_: text for id_, text in given.items() if text}

    @property
    def used(self) -> Totals:
        """What all replies in the journal have used."""
        return sum(self.totals.values(), Totals())

    def is_measured(self, stage: str) -> bool:
        """Whether replies tell what requests take."""
        totals = self.totals.get(stage, Totals())
        return totals.replies >= MEASURED and totals.input_tokens > 0

    def expected_tokens(self, stage: str) -> tuple[float, float]:
        """Of one request, and of its reply."""
        if self.is_measured(stage):
            totals = self.totals[stage]
            return totals.input_tokens / totals.replies, totals.output_tokens / totals.replies
        words = description_prompt() if stage == "description" else generation_prompt("sadness", "video", "x" * 600)
        tiles = math.ceil(min(self.order.picture_side, 768) / 512) ** 2
        pictures = (FRAMES if stage == "description" else 1) * (85 + 170 * tiles)
        return sum(map(len, words)) / CHARACTERS_PER_TOKEN + pictures, OUTPUT_TOKENS[stage]

    def samples(self) -> Iterator[dict[str, Any]]:
        """The rows of the pending samples."""
        for row in rows(self.choice, self.pending, COLUMNS):
            yield row | {"reason": self.pending[row["id"]]}

    def stage(self, sample: dict[str, Any]) -> str:
        """What is to be asked next of a sample."""
        described = sample["media_type"] == "image" or sample["id"] in self.descriptions
        return "conversation" if described else "description"

    def request(self, sample: dict[str, Any], stage: str) -> dict[str, Any]:
        """The body of the request; reads the pictures.

        Raises:
            UnreadablePicture: one cannot be decoded.
        """
        if stage == "description":
            return description_request(sample, self.order.describer_model, self.order.picture_side)
        return conversation_request(
            sample,
            self.order.model,
            self.order.picture_side,
            description=self.descriptions.get(sample["id"]),
            rejected_reason=sample["reason"],
            json_mode=self.order.json_mode,
        )

    def judge(self, sample: dict[str, Any], stage: str, answer: Answer, attempt: int | None = None) -> Reply:
        """The reply as the journal takes it, with the rules that it breaks."""
        rules = [answer.rule] if answer.rule else []
        if not rules and stage == "conversation":
            try:
                rules = violations(sample, parse_reply(answer.text))
            except ValueError:
                rules = ["malformed"]
        model = self.order.model if stage == "conversation" else self.order.describer_model
        return Reply(
            id=sample["id"],
            stage=stage,
            attempt=attempt or self.next_attempt(sample["id"], stage),
            source=sample["source"],
            split=sample["split"],
            label=sample["label"],
            rules=",".join(rules),
            text=answer.text,
            model=answer.model or model or "",
            prompt_version=PROMPT_VERSION,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            cost=self.order.cost(answer.input_tokens, answer.output_tokens),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def next_attempt(self, id_: str, stage: str) -> int:
        last = self.attempts[stage].get(id_)
        return last.attempt + 1 if last else 1
