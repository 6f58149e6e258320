"""`ferid generate --dry-run`: what an order will take, before anything is paid for.

    dry_run(order) -> "12,271 requests ..., 15.3 million tokens in, ..."  and three whole requests

Tokens are those that replies in the journal have taken, once there are some; before, they are guessed.
"""

import json
import math
from itertools import islice

from ferid_dataset.generate.batch import BATCH_BYTES, BATCH_REQUESTS
from ferid_dataset.generate.chat_request import UnreadablePicture
from ferid_dataset.generate.work import FRAMES, Order, Work

SECONDS_PER_REQUEST = 5.0  # where no limit is given
BYTES_PER_PIXEL = 0.125  # of a JPEG of a face as base64
BYTES_OF_TEXT = 4_000


def dry_run(order: Order, examples: int = 3) -> str:
    """What is left of an order, in words, and some whole requests. Nothing is sent and nothing is written.

    Raises:
        FeridError: the FERID, the annotations or the journal cannot be used, or do not belong together.
    """
    with Work(order, write=False) as work:
        return "\n".join([*_estimates(work), *_examples(work, examples)])


def _estimates(work: Work) -> list[str]:
    order, table = work.order, work.choice.table
    kinds = dict(zip(table["id"].to_pylist(), table["media_type"].to_pylist(), strict=True))
    described = sum(kinds[id_] == "video" and id_ not in work.descriptions for id_ in work.pending)
    requests = {"conversation": len(work.pending), "description": described}
    lines, tokens, cost, batches = [], 0.0, 0.0, 0
    for stage, count in requests.items():
        sent, received = (count * each for each in work.expected_tokens(stage))
        cost += order.cost(sent, received)
        tokens += sent + received
        pictures = FRAMES if stage == "description" else 1
        size = BYTES_OF_TEXT + pictures * order.picture_side**2 * BYTES_PER_PIXEL
        batches += math.ceil(count / min(BATCH_REQUESTS, BATCH_BYTES // size))
        if count:
            millions = f"{sent / 1e6:,.2f} million tokens in, {received / 1e6:,.2f} out"
            measured = (
                "as replies so far took" if work.is_measured(stage) else "a guess, a first --limit 50 measures it"
            )
            lines.append(f"{count:,} requests for a {stage}: about {millions} ({measured})")
    total = sum(requests.values())
    if order.price_in is not None and order.price_out is not None:
        lines.append(f"cost: about {cost:,.2f} at {order.price_in} in and {order.price_out} out a million tokens")
    else:
        lines.append("cost: give --price-in and --price-out, of a million tokens")
    minutes = [total / order.requests_per_minute] if order.requests_per_minute else []
    minutes += [tokens / order.tokens_per_minute] if order.tokens_per_minute else []
    minutes += [total * SECONDS_PER_REQUEST / order.concurrency / 60]
    lines.append(
        f"time: about {max(minutes) / 60:,.1f} hours at the given limits, {order.concurrency} requests at a time of "
        f"{SECONDS_PER_REQUEST:g} s each; as batches: {batches:,}, each within 24 hours"
    )
    return lines


def _examples(work: Work, count: int) -> list[str]:
    return [f"\n{sample['id']}:\n{_shown(work, sample)}" for sample in islice(work.samples(), count)]


def _shown(work: Work, sample: dict) -> str:
    """The request as it is sent, but for the bytes of its pictures."""
    try:
        body = work.request(sample, work.stage(sample))
    except UnreadablePicture as error:
        return f"its picture cannot be read: {error}"
    for part in body["messages"][1]["content"]:
        if part["type"] == "image_url":
            url = part["image_url"]["url"]
            part["image_url"]["url"] = f"{url[:40]}... ({len(url):,} characters)"
    return json.dumps(body, indent=2, ensure_ascii=False)
