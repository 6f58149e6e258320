"""A Hub on the loopback interface: what publishing and loading datasets and models needs, as strict as the real one.

    with FakeHub() as hub:
        client process with HF_ENDPOINT=hub.url HF_TOKEN=hf_writer HF_HUB_DISABLE_XET=1, set before it imports anything
        hub.files("user/ferid") -> {"README.md": b"...", ...}        hub.files("models/user/emo-llama") of a model

A request that the real Hub would not understand (an unknown route, an upload that nobody announced, bytes that do not
have the promised hash, ...) is noted in `hub.mistakes`, and leaving the block fails with them. Refusals that a client
must expect (no such repository, no right to write, somebody else was faster) are answers with the Hub's status codes
and `X-Error-Code`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKENS = {"hf_writer": "user", "hf_stranger": "stranger"}  # and the namespace that each may write to
NAMESPACES = {"user", "stranger"}
SEPARATORS = re.compile(rb"^---\s*$", re.M)
LFS = (".parquet", ".safetensors")
LICENCES = {"apache-2.0", "mit", "cc-by-nc-4.0", "llama2", "llama3", "other"}  # some of the Hub's
BASE_MODEL_RELATIONS = {"adapter", "finetune", "merge", "quantized"}


class Refusal(Exception):
    """An answer that is no success: status, message, and the Hub's own code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Mistake(Exception):
    """The client did what no client may do."""


@dataclass
class Repo:
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)  # (sha, all files), the oldest first

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        if revision == "main":
            return self.commits[-1]
        for sha, files in self.commits:
            if sha == revision:
                return sha, files
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class FakeHub:
    """A server on a free port; a context manager."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}  # "user/ferid" is a dataset, "models/user/emo-llama" a model
        self.storage: dict[str, bytes] = {}  # LFS objects by their SHA-256
        self.announced: dict[str, int] = {}  # LFS objects that are to be uploaded, and their size
        self.requests: list[tuple[str, str]] = []
        self.mistakes: list[str] = []
        self.lock = threading.Lock()
        self.once: dict[str, Callable[[], None]] = {}  # by route, what happens before it is answered the next time

    def __enter__(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.server.server_port}/storage"  # another host, as the real one's is
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
        if error == (None, None, None):
            assert not self.mistakes, "\n".join(self.mistakes)

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo].commits[-1][1]

    def uploads(self) -> list[str]:
        """The requests that carried the content of files, and forgets all requests so far."""
        made = [f"{method} {path}" for method, path in self.requests if method == "PUT" or "/commit/" in path]
        self.requests.clear()
        return made

    def add_repo(self, name: str, private: bool = False, **files: bytes) -> Repo:
        self.repos[name] = Repo(private)
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS)
        self.repos[name].commit({".gitattributes": attributes.encode()} | files)
        return self.repos[name]


def _uses_lfs(path: str) -> bool:
    return path.endswith(LFS)


def _wrong_in_model_card(metadata: dict) -> list[str]:
    """What the Hub would not take of a model card: github.com/huggingface/hub-docs, modelcard.md."""
    wrong = []
    if metadata.get("license") not in LICENCES:
        wrong.append(f'"license" must be one of {sorted(LICENCES)}')
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        wrong.append('"license_name" is required when "license" is "other"')
    if "base_model" in metadata and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", metadata["base_model"]):
        wrong.append('"base_model" must be the id of a model on the Hub')
    if metadata.get("base_model_relation", "adapter") not in BASE_MODEL_RELATIONS:
        wrong.append(f'"base_model_relation" must be one of {sorted(BASE_MODEL_RELATIONS)}')
    for index in metadata.get("model-index", []):
        if not isinstance(index.get("name"), str) or not index.get("results"):
            wrong.append('"model-index" needs a name and results')
        seen = set()
        for result in index.get("results", []):
            task, dataset, metrics = result["task"], result["dataset"], result["metrics"]
            for place, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
                wrong += [f'"model-index.{place}.{key}" is required' for key in keys if not result[place].get(key)]
            wrong += ['"metrics" needs type and value' for m in metrics if not m.get("type") or m.get("value") is None]
            seen.add((task["type"], dataset["type"], dataset.get("config"), dataset.get("split")))
        if len(seen) < len(index.get("results", [])):
            wrong.append("two results of the same task, dataset, config and split")
    return wrong


def _git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_sha(content)}
    if _uses_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    """Finds the route of a request; each route is a method that returns (status, headers, body)."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub
    REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
    API = rf"/api/(?P<kind>datasets|models)/{REPO}"
    FILES = rf"/(?P<kind>datasets/)?{REPO}"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", rf"{API}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
        ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})", "store"),
        ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", "fetch"),
    )

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding"):
            self.hub.mistakes.append(f"{self.command} {self.path}: the Hub wants a Content-Length")
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path))
            try:
                status, headers, content = self.route(unquote(url.path), body)
            except Refusal as refusal:
                status, content = refusal.status, json.dumps({"error": refusal.message}).encode()
                headers = {"X-Error-Message": refusal.message}
                headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            except (Mistake, KeyError, ValueError) as error:
                self.hub.mistakes.append(f"{self.command} {self.path}: {error!r}")
                status, headers, content = 400, {}, json.dumps({"error": str(error)}).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *_) -> None:
        pass

    def route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self.ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                found = match.groupdict()
                if "repo" in found:
                    models = "models/" if found.pop("kind") in (None, "models") else ""
                    found["repo"] = self.repo(
                        models + found["repo"], write=name in ("preupload", "lfs_batch", "commit")
                    )
                if "revision" in found:
                    found["revision"] = found["revision"] or "main"
                self.hub.once.pop(name, lambda: None)()
                answer = getattr(self, name)(body=body, **found)
                if isinstance(answer, tuple):
                    return answer
                return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
        raise Mistake("there is no such route")

    def user(self) -> str | None:
        if (header := self.headers.get("Authorization")) is None:
            return None
        if (token := header.removeprefix("Bearer ")) not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return TOKENS[token]

    def repo(self, name: str, write: bool) -> Repo:
        user, repo = self.user(), self.hub.repos.get(name)
        owner = name.split("/")[-2]
        if repo is None or (repo.private and user != owner):  # which it never tells apart
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != owner:
            raise Refusal(403 if user else 401, "You have read access but not the required permissions")
        repo.name = name.removeprefix("models/")
        return repo

    def create(self, body: bytes):
        request, user = json.loads(body), self.user()
        namespace = request["organization"] or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if namespace not in NAMESPACES:
            raise Refusal(404, "Namespace not found")
        if namespace != user:
            raise Refusal(403, f'You don\'t have the rights to create a dataset under the namespace "{namespace}"')
        kind = request.get("type", "model")
        if kind not in ("dataset", "model"):
            raise Mistake(f"this is neither a dataset nor a model: {request}")
        name = f"{namespace}/{request['name']}"
        key, path = (f"models/{name}", name) if kind == "model" else (name, f"datasets/{name}")
        if key in self.hub.repos:
            raise Refusal(409, f"You already created this {kind} repo")
        self.hub.add_repo(key, private=request.get("visibility") == "private")
        return {"url": f"{self.hub.url}/{path}", "name": name, "id": "0"}

    def whoami(self, body: bytes):
        if (user := self.user()) is None:
            raise Refusal(401, "Invalid username or password.")
        return {"type": "user", "name": user, "auth": {"type": "access_token"}}

    def validate_yaml(self, body: bytes):
        request = json.loads(body)
        metadata = yaml.safe_load(SEPARATORS.split(request["content"].encode())[1])
        if request["repoType"] == "dataset":
            if not isinstance(metadata["configs"], list):
                raise Mistake(f"this is no card of a dataset: {metadata}")
            return {"errors": [], "warnings": []}
        if errors := [{"message": message} for message in _wrong_in_model_card(metadata)]:
            return 400, {"Content-Type": "application/json"}, json.dumps({"errors": errors, "warnings": []}).encode()
        return {"errors": [], "warnings": []}

    def info(self, repo: Repo, revision: str, body: bytes):
        sha, files = repo.at(revision)
        card = SEPARATORS.split(files.get("README.md", b""))
        return {
            "id": repo.name,
            "sha": sha,
            "private": repo.private,
            "tags": [],
            "cardData": yaml.safe_load(card[1]) if len(card) > 2 else None,
            "siblings": [self.sibling(path, files[path]) for path in sorted(files)],
        }

    def sibling(self, path: str, content: bytes) -> dict:
        if self.query.get("blobs", ["false"])[0].lower() not in ("true", "1"):
            return {"rfilename": path}
        entry = _entry(path, content)
        if "lfs" in entry:
            entry["lfs"]["sha256"] = entry["lfs"].pop("oid")
        return {"rfilename": path, "blobId": entry["oid"], "size": entry["size"], "lfs": entry.get("lfs")}

    def tree(self, repo: Repo, revision: str, folder: str | None, body: bytes):
        _, files = repo.at(revision)
        start = f"{folder}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(start)}
        if not inside:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [_entry(path, content) for path, content in inside.items() if deep or "/" not in path[len(start) :]]
        folders = {path.rpartition("/")[0] for path in inside} - {start.rstrip("/"), ""}
        return entries + [{"type": "directory", "path": path, "size": 0, "oid": _git_sha(b"")} for path in folders]

    def preupload(self, repo: Repo, revision: str, body: bytes):
        _, files = repo.at(revision)
        answers = []
        for file in json.loads(body)["files"]:
            path, old = file["path"], files.get(file["path"])
            if not base64.b64decode(file["sample"], validate=True) or file["size"] < 1:
                raise Mistake(f"{path} is empty")
            oid = None
            if old is not None:
                oid = hashlib.sha256(old).hexdigest() if _uses_lfs(path) else _git_sha(old)
            mode = "lfs" if _uses_lfs(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo: Repo, body: bytes):
        request = json.loads(body)
        if request["operation"] != "upload" or request["hash_algo"] != "sha256" or "basic" not in request["transfers"]:
            raise Mistake(f"an LFS batch of another kind: {request}")
        objects = []
        for wanted in request["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.storage:
                self.hub.announced[wanted["oid"]] = wanted["size"]
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/{wanted['oid']}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def store(self, oid: str, body: bytes):
        if self.headers.get("Authorization"):
            raise Mistake("a token went to the storage, which is none of its business")
        if self.hub.announced.pop(oid, None) != len(body) or hashlib.sha256(body).hexdigest() != oid:
            raise Mistake("these bytes were not announced")
        self.hub.storage[oid] = body
        return 200, {}, b""

    def commit(self, repo: Repo, revision: str, body: bytes):
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if self.headers["Content-Type"] != "application/x-ndjson" or header["key"] != "header" or revision != "main":
            raise Mistake("this is no commit to main")
        if not header["value"]["summary"] or not operations:
            raise Mistake("a commit without a message, or without content")
        sha, files = repo.at(revision)
        if header["value"].get("parentCommit", sha) != sha:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(files)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "deletedFile":
                del files[path]
            elif operation["key"] == "lfsFile" and _uses_lfs(path) and value["algo"] == "sha256":
                files[path] = self.hub.storage[value["oid"]]
                if len(files[path]) != value["size"]:
                    raise Mistake(f"{path} has another size")
            elif operation["key"] == "file" and not _uses_lfs(path) and value["encoding"] == "base64":
                files[path] = base64.b64decode(value["content"], validate=True)
            else:
                raise Mistake(f"no such operation: {operation['key']} {path}")
        sha = repo.commit(files)
        kind = "" if self.hub.repos.get(f"models/{repo.name}") is repo else "datasets/"
        return {"commitUrl": f"{self.hub.url}/{kind}{repo.name}/commit/{sha}", "commitOid": sha}

    def resolve(self, repo: Repo, revision: str, path: str, body: bytes):
        sha, files = repo.at(revision)
        if path not in files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = files[path]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not _uses_lfs(path):
            return self.part(content, headers | {"ETag": f'"{_git_sha(content)}"'})
        oid = hashlib.sha256(content).hexdigest()
        place = {"Location": f"{self.hub.storage_url}/{oid}"}
        return 302, headers | place | {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"'}, b""

    def fetch(self, oid: str, body: bytes):
        if self.headers.get("Authorization"):
            raise Mistake("a token went to the storage, which is none of its business")
        return self.part(self.hub.storage[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def part(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if not (wanted := self.headers.get("Range")):
            return 200, headers, content
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        first, last = int(first), min(int(last or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]
