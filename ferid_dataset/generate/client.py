"""One chat model behind an OpenAI-compatible server: requests in, answers out, and a sentence for every mistake.

    async with ChatClient(endpoint("gpt-5-mini", None)) as client:
        answer = await client.ask({"model": "gpt-5-mini", "messages": [...], "response_format": {...}})
        # Answer(text='{"turns": [...]}', rule=None, input_tokens=912, output_tokens=131, model="gpt-5-mini")

Every try, also one that the SDK repeats, waits for its turn (`RateLimit`), and every reply teaches the limit. The key
is in the headers of requests and nowhere else.
"""

import json
import math
import os
import ssl
from itertools import cycle
from typing import Any, NamedTuple

import httpx2
import openai

from ferid_dataset.errors import FeridError
from ferid_dataset.generate.rate_limits import RateLimit

MAX_RETRIES = 8  # with the SDK's waits about a minute
CONNECTIONS_PER_POOL = 8
DEFAULT_URL = "https://api.openai.com/v1"
REFUSED = "bad_request"  # the rule of samples that the server will not answer
FILTERED = {"content_filter", "content_policy_violation"}  # codes of a 400 that is about this one sample


class Answer(NamedTuple):
    """What a chat completion holds. `rule` names why it cannot be used, where the server says so."""

    text: str
    rule: str | None
    input_tokens: int
    output_tokens: int
    model: str | None


class Endpoint(NamedTuple):
    """A model, and where it is."""

    model: str
    url: str
    key: str


class Unanswered(Exception):
    """The server did not answer this request, in spite of all tries: it stays to be asked."""


class Refused(Exception):
    """The server will not answer this request (400), though it may answer others; with the rule of that name."""

    def __init__(self, words: str, rule: str):
        super().__init__(words)
        self.rule = rule


def endpoint(model: str, base_url: str | None, key_variable: str = "OPENAI_API_KEY") -> Endpoint:
    """
    Args:
        model: as the server calls it.
        base_url: such as "http://localhost:8000/v1"; None: `OPENAI_BASE_URL`, else OpenAI's.
        key_variable: of the environment.

    Raises:
        FeridError: there is no key.
    """
    if not (key := os.environ.get(key_variable, "").strip()):
        raise FeridError(f"{key_variable} is not set: export it; any word will do for a server that asks for none")
    return Endpoint(model, base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL, key)


def read_answer(completion: Any) -> Answer:
    """The answer in a chat completion as JSON, whatever servers make of that."""
    tokens = [0, 0]
    try:
        usage = completion.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        choice = completion["choices"][0]
        message = choice["message"]
        text, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Answer(json.dumps(completion), "malformed", *tokens, None)
    rule = None
    if refusal:
        rule = "refusal"
    elif finish in ("length", "content_filter"):
        rule = {"length": "cut"}.get(finish, finish)
    elif not isinstance(text, str) or not text.strip():
        rule = "empty"
    return Answer(str(refusal or text or ""), rule, *tokens, completion.get("model"))


class ChatClient:
    """Asks one model.

    Args:
        endpoint: the model.
        limit: shared by all requests; None: no limit.
        concurrency: how many requests will be on the way at a time.
    """

    def __init__(self, endpoint: Endpoint, limit: RateLimit | None = None, concurrency: int = 1):
        self.endpoint, self.limit = endpoint, limit or RateLimit()
        certificates = httpx2.create_ssl_context()
        try:
            # Several, because a pool looks at each of its connections whenever a request comes or goes.
            clients = [self._sdk(certificates) for _ in range(math.ceil(concurrency / CONNECTIONS_PER_POOL))]
        except (httpx2.InvalidURL, openai.OpenAIError) as error:
            raise FeridError(f"{endpoint.url} is no address of a server ({error}): check --base-url") from error
        self._clients, self._turns = clients, cycle(clients)

    def _sdk(self, certificates: ssl.SSLContext) -> openai.AsyncOpenAI:
        hooks = {"request": [self._before], "response": [self._after]}
        http_client = openai.DefaultAsyncHttpxClient(event_hooks=hooks, verify=certificates)
        _, url, key = self.endpoint
        return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=MAX_RETRIES, http_client=http_client)

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(self, *_) -> None:
        for client in self._clients:
            await client.close()

    async def check(self) -> None:
        """One look at the list of models, so that a wrong address or key is known before pictures are read.

        Raises:
            FeridError: nobody listens, or the key is wrong. Servers without that list pass.
        """
        try:
            await self._clients[0].with_options(max_retries=1, timeout=30).models.list()
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            found = sentence(error, *self.endpoint)
            raise found if isinstance(found, FeridError) else FeridError(f"{found}: check --base-url") from error
        except (openai.APIError, ValueError, AttributeError):
            return

    async def ask(self, body: dict[str, Any]) -> Answer:
        """
        Raises:
            Unanswered: not now; another request may fare better.
            Refused: not this one.
            FeridError: no request will ever be answered so.
        """
        try:
            # `chat.completions.create` sends the same, but takes more time to walk through its arguments than all else
            response = await next(self._turns).post("/chat/completions", body=body, cast_to=httpx2.Response)
        except openai.APIError as error:
            raise sentence(error, *self.endpoint) from error
        answer = read_answer(response.json())
        self.limit.used(answer.input_tokens + answer.output_tokens)
        return answer

    async def _before(self, request: httpx2.Request) -> None:
        if request.method == "POST":
            await self.limit.turn()

    async def _after(self, response: httpx2.Response) -> None:
        self.limit.learn(response.status_code, response.headers)
        if response.status_code == 200:
            await response.aread()
            try:
                json.loads(response.content)
            except ValueError:  # a body that was cut: as a lost connection, for the SDK to try again
                raise httpx2.RemoteProtocolError("the body is no JSON", request=response.request) from None


def sentence(error: openai.APIError | httpx2.HTTPError, model: str, url: str, key: str) -> Exception:
    """What an error of the SDK means for a run: the exception to raise for it, which never holds the key."""
    code = str(getattr(error, "code", None))
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    words = " ".join(str(message or error).split()).replace(key, "<key>")[:300]
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return FeridError(f"{url} does not take the key (HTTP {error.status_code}): set OPENAI_API_KEY to a valid one")
    if isinstance(error, openai.NotFoundError):
        return FeridError(
            f"{url} does not know the model {model!r}, or is not the right address ({words}): "
            "check --model and --base-url, which mostly ends in /v1"
        )
    if isinstance(error, openai.RateLimitError) and code == "insufficient_quota":
        return FeridError(f"the account at {url} has no credit left ({words}): add some and start again")
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return Refused(words, "content_filter" if code in FILTERED else REFUSED)
    if isinstance(error, openai.APIConnectionError | httpx2.HTTPError):
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        return Unanswered(f"{url} does not answer ({reason})")
    return Unanswered(f"{url} answers with errors ({words})")
