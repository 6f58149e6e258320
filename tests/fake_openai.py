"""An OpenAI-compatible server on the loopback interface: as strict as the real one, and hostile at will.

    with FakeOpenAI(hostile=["429", "cut", ...], latency=0.2) as server:
        client with base_url=server.url, api_key=KEY
        server.answers -> Counter({"sha256 of the request's pictures and stage": how often it was answered})

`hostile` is what befalls the first chat requests, one after the other; then `chance` of each of a dict of them. What
no client may do (an unknown route or parameter, a schema that is not strict, JSON mode without the word JSON, a batch
file over the limits, ...) is noted in `server.mistakes`, and leaving the block fails with them.
"""

import asyncio
import base64
import hashlib
import io
import json
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from PIL import Image

KEY = "sk-fake-key-of-the-tests"
MODELS = {"writer", "describer", "judge"}
PARAMETERS = {"model", "messages", "response_format", "temperature"}
LINES, BYTES = 50_000, 200_000_000  # of a batch file
ADJECTIVES = {"surprise": "surprised", "fear": "fearful", "disgust": "disgusted", "happiness": "happy"}
ADJECTIVES |= {"sadness": "sad", "anger": "angry", "neutral": "neutral", "contempt": "contemptuous"}
ADJECTIVES |= {"anxiety": "anxious", "helplessness": "helpless", "disappointment": "disappointed"}


class Mistake(Exception):
    """The client did what no client may do."""


def good_reply(label: str) -> str:
    """A conversation that breaks no rule."""
    answer = (
        f"The person has {'an' if label[0] in 'aeiou' else 'a'} {ADJECTIVES[label]} facial expression. "
        "It shows in the eyes, the eyebrows and the mouth."
    )
    return json.dumps({"turns": [{"question": "What is the facial expression of the person?", "answer": answer}]})


def write_reply(body: dict) -> str:
    """What a well-behaved model says."""
    text = body["messages"][1]["content"][0]["text"]
    facts = re.search(r"\{.*\}", text)
    if "response_format" not in body or not facts:
        return "The person sits in a room, turns to the side, and raises the eyebrows while speaking."
    return good_reply(json.loads(facts[0])["expression"])


@dataclass
class FakeBatch:
    lines: list[dict]
    number: str
    metadata: dict
    file: str
    polls: int = 0
    status: str = "validating"
    output: str | None = None
    errors: str | None = None


@dataclass
class FakeOpenAI:
    """A server on a free port, in a thread; a context manager."""

    reply: Callable[[dict], str] = write_reply
    hostile: Iterable[str] = ()
    chance: dict[str, float] = field(default_factory=dict)
    latency: float = 0.0
    requests_per_window: int | None = None  # more are answered with 429
    window: float = 1.0  # seconds
    headers: bool = True  # whether these 429s say when to come again
    look_at_pictures: bool = True
    batch_ends: Iterable[str] = ()  # of the first batches: completed, expired, failed, cancelled
    batch_polls: int = 1  # until a batch ends
    seed: int = 0

    def __post_init__(self):
        self.hostile, self.batch_ends = list(self.hostile), list(self.batch_ends)
        self.random = random.Random(self.seed)
        self.mistakes: list[str] = []
        self.requests: Counter[str] = Counter()  # by route
        self.done: Counter[str] = Counter()  # chat requests by what befell them: "answered", "429", ...
        self.answers: Counter[str] = Counter()
        self.bodies: list[dict] = []  # the first 1,000 of chat requests
        self.times: list[float] = []  # when chat requests came
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, FakeBatch] = {}
        self.on_the_way = self.most_on_the_way = 0
        self.used: dict[int, int] = defaultdict(int)
        self.authorizations: set[str] = set()

    def __enter__(self) -> "FakeOpenAI":
        started = threading.Event()
        self.loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=1 << 20)
            self.port = server.sockets[0].getsockname()[1]
            self._stopped = asyncio.Event()
            started.set()
            await self._stopped.wait()
            server.close()
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(serve(),), daemon=True)
        self._thread.start()
        started.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *error) -> None:
        self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        if error == (None, None, None):
            assert not self.mistakes, "\n".join(self.mistakes[:5])

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                method, path, _ = first.split(" ")
                body = await reader.readexactly(int(headers.get("content-length") or 0))
                if "transfer-encoding" in headers:
                    body = await self._chunks(reader)
                try:
                    answer = await self._route(method, path.removeprefix("/v1"), headers, body)
                except (Mistake, KeyError, ValueError, TypeError, IndexError) as error:
                    self.mistakes.append(f"{method} {path}: {error!r}")
                    answer = refusal(400, str(error), "invalid_request_error")
                status, extra, content = answer
                if status == 0:  # cut: more is promised than comes
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n")
                    writer.write(content[:80])
                    await writer.drain()
                    break
                names = {"Content-Type": "application/json", "Content-Length": str(len(content))} | extra
                lines = "".join(f"{name}: {value}\r\n" for name, value in names.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body

    async def _route(self, method: str, path: str, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        path, _, query = path.partition("?")
        self.requests[f"{method} {path}"] += 1
        self.authorizations.add(headers.get("authorization", ""))
        if headers.get("authorization") != f"Bearer {KEY}":
            return refusal(401, f"Incorrect API key provided: {headers.get('authorization')}", "invalid_api_key")
        if (method, path) == ("POST", "/chat/completions"):
            return await self._chat(json.loads(body))
        if (method, path) == ("GET", "/models"):
            return answer({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
        if (method, path) == ("POST", "/files"):
            return self._upload(headers["content-type"], body)
        if match := re.fullmatch(r"/files/([\w-]+)/content", path):
            return 200, {"Content-Type": "application/octet-stream"}, self.files[match[1]]
        if (method, path) == ("POST", "/batches"):
            return self._submit(json.loads(body))
        if (method, path) == ("GET", "/batches"):
            found = [self._batch(batch) for batch in reversed(self.batches.values())]
            after = re.search(r"after=([\w-]+)", query)
            start = next((i + 1 for i, b in enumerate(found) if after and b["id"] == after[1]), 0)
            page = found[start : start + 2]
            return answer({"object": "list", "data": page, "has_more": len(found) > start + 2})
        if match := re.fullmatch(r"/batches/([\w-]+)", path):
            if match[1] not in self.batches:
                return refusal(404, f"No batch found with id '{match[1]}'", "not_found")
            batch = self.batches[match[1]]
            self._work_on(batch)
            return answer(self._batch(batch))
        return refusal(404, f"Invalid URL ({method} {path})", "unknown_url")

    # ---- chat ----

    async def _chat(self, body: dict) -> tuple[int, dict, bytes]:
        self.times.append(time.monotonic())
        if body.get("model") not in MODELS:
            return refusal(404, f"The model '{body.get('model')}' does not exist", "model_not_found")
        who = self.check(body)
        if len(self.bodies) < 1000:
            self.bodies.append(body)
        what = self.hostile.pop(0) if self.hostile else self._befalls()
        self.on_the_way += 1
        self.most_on_the_way = max(self.most_on_the_way, self.on_the_way)
        try:
            await asyncio.sleep(self.latency + (1.0 if what == "slow" else 0))
            return self._finish(body, what, who)
        finally:
            self.on_the_way -= 1

    def _befalls(self) -> str:
        if self.requests_per_window:
            window = int(time.monotonic() / self.window)
            self.used[window] += 1
            if self.used[window] > self.requests_per_window:
                return "limit"
        draw = self.random.random()
        for what, share in self.chance.items():
            if (draw := draw - share) < 0:
                return what
        return "good"

    def _finish(self, body: dict, what: str, who: str) -> tuple[int, dict, bytes]:
        self.done[what] += 1
        if what in ("429", "429 header", "limit"):
            extra = {}
            if what == "429 header":
                extra = {"retry-after-ms": "300", "x-ratelimit-remaining-requests": "0"}
            elif what == "limit" and self.headers:
                left = self.window - time.monotonic() % self.window
                extra = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{left * 1000:.0f}ms"}
                extra["retry-after-ms"] = f"{left * 1000:.0f}"
            return refusal(429, "Rate limit reached", "rate_limit_exceeded", extra)
        if what == "quota":
            return refusal(429, "You exceeded your current quota", "insufficient_quota", {"x-should-retry": "false"})
        if what == "500":
            return refusal(500, "The server had an error", "server_error")
        if what == "bad request":
            return refusal(400, "Invalid parameter: response_format json_schema is not supported", "invalid_value")
        if what == "filtered":
            return refusal(400, "The prompt was filtered", "content_filter")
        content = self.completion(body, what)
        if what == "cut":
            return 0, {}, content
        if what == "malformed":
            return 200, {}, content[: len(content) // 2]
        self.done["answered"] += 1
        self.answers[who] += 1
        return 200, {}, content

    def completion(self, body: dict, what: str = "good") -> bytes:
        message = {"role": "assistant", "content": self.reply(body), "refusal": None}
        finish = "stop"
        if what == "wrong schema":
            message["content"] = json.dumps({"turns": "none", "label": 3})
        elif what == "no JSON":
            message["content"] = "Sure! Here is the conversation you asked for."
        elif what == "refusal":
            message |= {"content": None, "refusal": "I can't help with that."}
        elif what == "length":
            message["content"], finish = message["content"][:40], "length"
        elif what == "empty":
            message["content"] = ""
        choices = [] if what == "no choices" else [{"index": 0, "message": message, "finish_reason": finish}]
        return json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": choices,
                "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
            }
        ).encode()

    def check(self, body: dict) -> str:
        """Checks a chat request, and returns what tells its sample and stage from others."""
        if unknown := set(body) - PARAMETERS:
            raise Mistake(f"Unrecognized request argument supplied: {unknown}")
        system, user = (
            body["messages"] if len(body["messages"]) > 1 else ({"role": "system", "content": ""}, *body["messages"])
        )
        if (system["role"], user["role"]) != ("system", "user") or not isinstance(system["content"], str):
            raise Mistake("messages must be a user message, and perhaps a system message before it")
        text, *pictures = sorted(user["content"], key=lambda part: part["type"] != "text")
        sees = "You see no picture" not in system["content"]  # as a judge of texts is told
        if set(text) != {"type", "text"} or text["type"] != "text" or bool(pictures) != sees:
            raise Mistake("a text part is wanted, and pictures but for a judge")
        digest = hashlib.sha256(b"format" if "response_format" in body else b"")
        if not sees:
            digest.update(text["text"].encode())
        for picture in pictures:
            if set(picture) != {"type", "image_url"} or picture["type"] != "image_url":
                raise Mistake(f"no picture: {picture['type']}")
            start, _, data = picture["image_url"]["url"].partition(",")
            if start != "data:image/jpeg;base64":
                raise Mistake(f"no data URL: {start}")
            digest.update(data.encode())
            if self.look_at_pictures:
                with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
                    if opened.format != "JPEG" or opened.mode != "RGB":
                        raise Mistake(f"not an RGB JPEG but {opened.format} {opened.mode}")
        if "response_format" in body:
            self._check_format(body["response_format"], system["content"] + text["text"])
        return digest.hexdigest()

    def _check_format(self, response_format: dict, prompt: str) -> None:
        if response_format == {"type": "json_object"}:
            if "JSON" not in prompt:
                raise Mistake("'messages' must contain the word 'json' in some form")
            return
        schema = response_format["json_schema"]
        if response_format["type"] != "json_schema" or set(schema) - {"name", "strict", "schema", "description"}:
            raise Mistake("no such response format")
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", schema["name"]) or schema["strict"] is not True:
            raise Mistake("a strict schema with a name is wanted")
        objects = [schema["schema"], *schema["schema"].get("$defs", {}).values()]
        for each in objects:
            if each["additionalProperties"] is not False or set(each["required"]) != set(each["properties"]):
                raise Mistake("a strict schema forbids other properties and requires its own")

    # ---- batches ----

    def _upload(self, content_type: str, body: bytes) -> tuple[int, dict, bytes]:
        boundary = content_type.split("boundary=")[1].strip('"')
        parts = {}
        for part in body.split(b"--" + boundary.encode())[1:-1]:
            head, _, content = part.strip(b"\r\n").partition(b"\r\n\r\n")
            parts[re.search(rb'name="(\w+)"', head)[1]] = content
        if parts[b"purpose"] != b"batch" or len(parts[b"file"]) > BYTES:
            raise Mistake("a batch file of at most 200 MB is wanted")
        name = f"file-{len(self.files)}"
        self.files[name] = parts[b"file"]
        return answer({"id": name, "object": "file", "bytes": len(parts[b"file"]), "purpose": "batch"})

    def _submit(self, request: dict) -> tuple[int, dict, bytes]:
        if request["endpoint"] != "/v1/chat/completions" or request["completion_window"] != "24h":
            raise Mistake("no such batch")
        if any(len(key) > 64 or len(value) > 512 for key, value in request.get("metadata", {}).items()):
            raise Mistake("metadata are too long")
        lines = [json.loads(line) for line in self.files[request["input_file_id"]].splitlines()]
        if not 0 < len(lines) <= LINES or len({line["custom_id"] for line in lines}) < len(lines):
            raise Mistake("1 to 50,000 lines with ids of their own are wanted")
        for line in lines:
            if set(line) != {"custom_id", "method", "url", "body"} or line["method"] != "POST":
                raise Mistake(f"no request: {sorted(line)}")
            if line["url"] != request["endpoint"] or line["body"]["model"] != lines[0]["body"]["model"]:
                raise Mistake("one endpoint and one model a batch")
            self.check(line["body"])
        number = f"batch-{len(self.batches)}"
        batch = FakeBatch(lines, number, request.get("metadata", {}), request["input_file_id"])
        self.batches[number] = batch
        return answer(self._batch(batch))

    def _batch(self, batch: FakeBatch) -> dict:
        return {
            "id": batch.number,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": batch.file,
            "completion_window": "24h",
            "status": batch.status,
            "output_file_id": batch.output,
            "error_file_id": batch.errors,
            "created_at": 1,
            "metadata": batch.metadata,
            "request_counts": {"total": len(batch.lines), "completed": 0, "failed": 0},
        }

    def _work_on(self, batch: FakeBatch) -> None:
        """Ends a batch after some polls: shuffled, with a line twice and one of nobody's; expired: only half of it."""
        batch.polls += 1
        if batch.output or batch.status in ("failed", "cancelled", "expired", "completed"):
            return
        batch.status = "in_progress"
        if batch.polls <= self.batch_polls:
            return
        batch.status = self.batch_ends.pop(0) if self.batch_ends else "completed"
        if batch.status == "failed":
            return
        lines = list(batch.lines)
        self.random.shuffle(lines)
        answered = lines[: len(lines) // 2] if batch.status != "completed" else lines
        out, errors = [], []
        for line in answered:
            what = self._befalls()
            if what == "500":
                errors.append(batch_line(line["custom_id"], 500, {"error": {"message": "The server had an error"}}))
                continue
            self.answers[self.check(line["body"])] += 1
            self.done["answered"] += 1
            out.append(batch_line(line["custom_id"], 200, json.loads(self.completion(line["body"], what))))
        expired = {"code": "batch_expired", "message": "This request could not be executed."}
        errors += [batch_line(line["custom_id"], None, None, expired) for line in lines[len(answered) :]]
        out += [*out[:2], batch_line("nobody/0001", 200, {})]
        batch.output, batch.errors = f"file-out-{batch.number}", f"file-err-{batch.number}"
        self.files[batch.output] = "\n".join(map(json.dumps, out)).encode()
        self.files[batch.errors] = "\n".join(map(json.dumps, errors)).encode()


def batch_line(custom_id: str, status: int | None, body: dict | None, error: dict | None = None) -> dict:
    response = {"status_code": status, "request_id": "req", "body": body} if status else None
    return {"id": "batch_req", "custom_id": custom_id, "response": response, "error": error}


def answer(body: dict) -> tuple[int, dict, bytes]:
    return 200, {}, json.dumps(body).encode()


def refusal(status: int, message: str, code: str, headers: dict | None = None) -> tuple[int, dict, bytes]:
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return status, headers or {}, json.dumps(body).encode()
