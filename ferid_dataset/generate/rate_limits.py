"""How fast requests may start: the limits that the user states, and what the server's replies teach.

limit = RateLimit(requests_per_minute=500, tokens_per_minute=200_000)
await limit.turn()           before every try, also a repeated one
limit.learn(status, headers) after every reply: a 429 pauses all, for as long as its headers say
limit.used(tokens)           what a request really took
"""

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds, after a 429 that does not say when to come again
WIDER = 1.3  # how much slower requests start after a 429
CALM = 5.0  # seconds without a 429 in which that gap halves: a limit is kept closely, a chance 429 costs little
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class RateLimit:
    """Spaces requests evenly, so that no minute of any phase has too many.

    Args:
        requests_per_minute: None: no limit is known.
        tokens_per_minute: of input and output; None: no limit is known.
        tokens_each: what a request is expected to take, until replies tell.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        tokens_each: float = 1000,
    ):
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._tokens_each = tokens_each
        self._next = 0.0  # when the next request may start
        self._pause_end = 0.0
        self._pause = FIRST_PAUSE
        self._gap, self._gap_since = 0.0, 0.0  # seconds between requests, learnt from 429s
        self._starts: deque[float] = deque(maxlen=100)
        self._in_line: set[asyncio.Task] = set()

    async def turn(self) -> None:
        """Returns when the next request may start."""
        task = asyncio.current_task()
        self._in_line.add(task)
        try:
            while True:
                now = time.monotonic()
                start = max(now, self._next)
                gap = self._gap * 0.5 ** ((now - self._gap_since) / CALM)
                self._next = start + max(gap, self._request_seconds, self._tokens_each * self._token_seconds)
                if start > now:
                    await asyncio.sleep(start - now)
                if start >= self._pause_end:
                    break
            self._starts.append(time.monotonic())
        finally:
            self._in_line.discard(task)

    def cancel(self) -> None:
        """Cancels the tasks that wait for their turn; nothing of theirs is on the way."""
        for task in self._in_line:
            task.cancel()

    def used(self, tokens: int) -> None:
        """Learns what requests take: a running mean over about 50 of them."""
        self._tokens_each += (tokens - self._tokens_each) / 50

    def learn(self, status: int, headers: Mapping[str, str]) -> None:
        """Slows down after a 429, and stops before one when the server says that nothing is left."""
        if status == 429:
            self._hold(_retry_after(headers) or max(_resets(headers), default=self._pause))
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._widen()
        elif status < 400:
            self._pause = FIRST_PAUSE
            if left := _resets(headers):
                self._hold(max(left))

    def _hold(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        if end > self._pause_end:
            self._pause_end = end
            self._next = max(end, self._next)

    def _widen(self) -> None:
        """Widens the gap between requests, once for all that were refused together."""
        now = time.monotonic()
        if now - self._gap_since < FIRST_PAUSE or len(self._starts) < 2:
            return
        usual = (self._starts[-1] - self._starts[0]) / (len(self._starts) - 1)
        self._gap = WIDER * max(self._gap * 0.5 ** ((now - self._gap_since) / CALM), usual)
        self._gap_since = now


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, by `retry-after-ms` or `retry-after`; a date there is left to the SDK."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            if (seconds := float(headers.get(name, "")) * unit) > 0:
                return min(seconds, 3600.0)
        except ValueError:
            pass
    return None


def _resets(headers: Mapping[str, str]) -> list[float]:
    """Seconds until a used-up allowance is whole again: `x-ratelimit-reset-requests: 6m0s` where none remain."""
    return [
        min(sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(reset)), 3600.0)
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
        and (reset := headers.get(f"x-ratelimit-reset-{kind}", ""))
    ]
