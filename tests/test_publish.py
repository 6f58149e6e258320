"""`ferid push`: what reaches a Hub and what never does, loaded back from it; what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fake_hub import FakeHub, Refusal
from PIL import Image

from ferid_dataset import publish
from ferid_dataset.build import build_ferid
from ferid_dataset.dataset_card import build_facts
from ferid_dataset.errors import FeridError
from ferid_dataset.publish import push_ferid
from ferid_dataset.sources.base import Choices, Reading, Rejected

REPOSITORY = Path(__file__).parents[1]
FACE = {"box": [1, 2, 3, 4], "score": 0.5, "landmarks": [[1, 2], [3, 4]], "embedding": [0.625, 0.75]}
TURNS = [{"role": "user", "content": "Why does he smile?"}, {"role": "assistant", "content": "One cannot know."}]


@pytest.fixture
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Runs Python code or a `ferid` command in a process of its own, which knows no other Hub."""

    def run(*command: str, code: str | None = None, token: str = "hf_writer", home: str = "hf", cwd: Path = tmp_path):
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": token,
            "HF_HOME": str(tmp_path / home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(REPOSITORY),
        }
        arguments = ["-c", code] if code else ["-m", "ferid_dataset.cli", *map(str, command)]
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment)

    return run


@pytest.fixture
def data(tmp_path):
    """Own pictures with two conversations, and a RAF-DB of three pictures."""
    for seed in range(14):
        split, emotion = ("train", "test")[seed > 9], ("happy", "angry", "sad")[seed % 3]
        _draw(tmp_path / f"photos/{split}/{emotion}/{seed:02}.png", seed)
    names = ["train_00001", "train_00002", "test_0001"]
    for seed, name in enumerate(names):
        _draw(tmp_path / f"RAF-DB/basic/Image/aligned/{name}_aligned.jpg", 50 + seed)
    labels = tmp_path / "RAF-DB/basic/EmoLabel/list_patition_label.txt"
    labels.parent.mkdir()
    labels.write_text("".join(f"{name}.jpg {4 + index}\n" for index, name in enumerate(names)))
    lines = [{"id": name, "messages": TURNS} for name in ("folder/train/happiness/00", "raf_db/train_00002")]
    file = tmp_path / "annotations/mixed/train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"folder": tmp_path / "photos", "raf_db": tmp_path / "RAF-DB", "annotations": tmp_path / "annotations"}


@pytest.fixture
def ferid(tmp_path, data):
    """The built folder; a face with an embedding is in each row."""
    build_ferid(tmp_path / "ferid", **data)
    _add_faces(tmp_path / "ferid")
    return tmp_path / "ferid"


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)).save(path)


def _add_faces(out: Path) -> None:
    for file in out.glob("*/*.parquet"):
        rows = pq.read_table(file)
        place = rows.column_names.index("faces")
        faces = pa.array([[[FACE]]] * len(rows), rows.schema.field("faces").type)
        pq.write_table(rows.set_column(place, rows.schema.field("faces"), faces), file)


def _rows(out: Path, **changes) -> dict[str, list[dict]]:
    """{"category train": its rows} of a built folder, with some columns changed."""
    return {
        f"{file.parent.name} {file.name.split('-')[0]}": [row | changes for row in pq.read_table(file).to_pylist()]
        for file in sorted(out.glob("*/*.parquet"))
    }


def _published_tables(files: dict[str, bytes]) -> list[pa.Table]:
    return [pq.read_table(pa.BufferReader(content)) for name, content in files.items() if name.endswith(".parquet")]


def _metadata(files: dict[str, bytes]) -> dict:
    return yaml.safe_load(files["README.md"].decode().split("---")[1])


def test_the_words_alone_are_published_and_load_back(hub, client, ferid, tmp_path):
    done = client("push", ferid, "user/ferid")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{hub.url}/datasets/user/ferid",
        "  category: train 12, test 5",
        "  conversation: train 2",
        "  without pictures, faces, embeddings",
        "  sent README.md and 3 Parquet files (0.0 MB), removed 0 of earlier pushes",
        'load_dataset("user/ferid", "category")',
        'load_dataset("user/ferid", "conversation")',
    ]
    assert not hub.repos["user/ferid"].private and len(hub.repos["user/ferid"].commits) == 2
    files = hub.files("user/ferid")
    named = [file["path"] for config in _metadata(files)["configs"] for file in config["data_files"]]
    assert sorted(files) == [".gitattributes", "README.md", *sorted(named)]

    load = """
import json
from datasets import get_dataset_config_names, load_dataset
rows = {}
for config in get_dataset_config_names("user/ferid"):
    for split, loaded in load_dataset("user/ferid", config).items():
        rows[f"{config} {split}"] = loaded.with_format("arrow")[:].to_pylist()
        assert list(load_dataset("user/ferid", config, split=split, streaming=True)) == list(loaded)
print(json.dumps(rows))
"""
    loaded = client(code=load, token="", home="another")
    assert json.loads(loaded.stdout or "null") == _rows(ferid, images=[], faces=None), loaded.stderr
    for table in _published_tables(files):
        assert table.schema.equals(pq.read_schema(next(ferid.glob("category/train-*"))), check_metadata=True)
        assert str(tmp_path) not in json.dumps(table.to_pylist())
    for secret in (str(tmp_path).encode(), b"\x89PNG", b"\xff\xd8\xff", np.float32(FACE["embedding"]).tobytes()):
        assert not any(secret in content for content in [*files.values(), *hub.storage.values()])


def test_only_what_is_new_is_sent_and_what_is_old_removed(hub, client, ferid, data, tmp_path):
    _draw(data["folder"] / "train/happy/new.png", 99)
    build_ferid(tmp_path / "later", **data)
    code = f"""
from ferid_dataset.publish import push_ferid
for out in ({str(ferid)!r}, {str(ferid)!r}, {str(tmp_path / "later")!r}):
    print(push_ferid(out, "user/ferid"))
"""
    done = client(code=code)
    assert [line for line in done.stdout.splitlines() if "sent" in line or "there" in line] == [
        "  sent README.md and 3 Parquet files (0.0 MB), removed 0 of earlier pushes",
        "  all of it was there already",
        "  sent README.md and 1 Parquet files (0.0 MB), removed 1 of earlier pushes",
    ], done.stderr
    assert [upload.split()[0] for upload in hub.uploads()] == ["PUT", "PUT", "PUT", "POST", "PUT", "POST"]
    (_, _), (_, first), (_, later) = hub.repos["user/ferid"].commits
    new, old = set(later) - set(first), set(first) - set(later)
    assert [re.sub("[0-9a-f]{16}", "", name) for name in (*new, *old)] == ["category/train-.parquet"] * 2
    assert new.pop() in later["README.md"].decode()


def test_media_that_are_asked_for_go_to_a_private_repository(hub, client, data, tmp_path):
    out = tmp_path / "ferid"
    build_ferid(out, embed=True, **data)
    _add_faces(out)
    done = client("push", out, "user/ferid", "--private", *"--with pictures --with faces --with embeddings".split())
    assert done.returncode == 0 and "without" not in done.stdout, done.stderr
    assert hub.repos["user/ferid"].private
    published = _published_tables(hub.files("user/ferid"))
    assert sum(map(len, published)) == 19
    for row in (row for table in published for row in table.to_pylist()):
        assert row["images"][0]["bytes"][:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
        assert row["faces"] == [[FACE | {"age": None, "gender": None}]]
    assert "embeddings, which identify people: keep them private" in hub.files("user/ferid")["README.md"].decode()
    code = """
import os
from datasets import exceptions, load_dataset
for token in ("hf_stranger", "hf_writer"):
    os.environ["HF_TOKEN"] = token
    try:
        print(load_dataset("user/ferid", split="train")[0]["images"][0].size)
    except exceptions.DatasetNotFoundError:
        print("not for", token)
"""
    done = client(code=code)
    assert done.stdout.splitlines() == ["not for hf_stranger", "(8, 8)"], done.stderr


def test_faces_without_embeddings(hub, client, ferid):
    code = f"""
from datasets import load_dataset
from ferid_dataset import publish
publish.ROWS_IN_MEMORY = 5
print(publish.push_ferid({str(ferid)!r}, "user/ferid", media=["faces"]).sent)
print(load_dataset("user/ferid", split="train")["id"][:])
"""
    done = client(code=code)
    sent, ids = done.stdout.splitlines()
    assert len(eval(sent)) == 3, done.stderr
    assert eval(ids) == [row["id"] for row in _rows(ferid)["category train"]]
    face = FACE | {"embedding": None, "age": None, "gender": None}
    for table in _published_tables(hub.files("user/ferid")):
        assert table["faces"].to_pylist() == [[[face]]] * len(table)


def test_who_holds_the_sources_gets_the_pictures_back(hub, client, ferid, data, tmp_path):
    assert client("push", ferid, "user/ferid").returncode == 0
    card = hub.files("user/ferid")["README.md"].decode()
    save = re.search(r"```python\n(from pathlib.*?)```", card, re.S)[1]
    assert "\nferid build ferid --raf-db ROOT --folder ROOT --annotations annotations\n" in card
    somewhere = tmp_path / "somewhere"
    somewhere.mkdir()
    done = client(code=f"from datasets import load_dataset\n{save}", token="", home="another", cwd=somewhere)
    assert done.returncode == 0, done.stderr
    build_ferid(somewhere / "ferid", **(data | {"annotations": somewhere / "annotations"}))
    assert _rows(somewhere / "ferid") == _rows(ferid, faces=None)


def test_what_the_hub_refuses(hub, client, ferid):
    hub.add_repo("user/public", **{"README.md": b"# Mine"})
    hub.add_repo("user/other", **{"README.md": b"# Mine", "data.csv": b"a,b"})
    hub.add_repo("user/busy")
    hub.add_repo("user/full")

    def refuse_to_store():
        raise Refusal(413, "Storage limit reached")

    cases = [
        ("hf_nobody", "user/ferid", {}, "does not know this token: run `hf auth login` again, or set HF_TOKEN"),
        ("hf_writer", "stranger/ferid", {}, "this token may not write to stranger/ferid"),
        ("hf_writer", "nobody/ferid", {}, "there is no nobody on the Hub"),
        ("hf_writer", "user/fe rid", {}, "'user/fe rid' is no name that the Hub allows"),
        ("hf_writer", "user/public", {"private": True}, "user/public exists and is public: make it private"),
        ("hf_writer", "user/other", {}, "user/other holds something else than a FERID"),
        ("hf_writer", "user/full", {}, "the Hub refuses user/full: "),
        ("hf_writer", "user/busy", {}, "user/busy was changed by somebody else in the meantime: push again"),
        ("hf_writer", "user/busy", {}, "sent README.md and 3 Parquet files"),
        ("", "user/ferid", {}, "there is no token for the Hub: run `hf auth login`, or set HF_TOKEN"),
    ]
    hub.once["store"] = refuse_to_store
    hub.once["commit"] = lambda: hub.repos["user/busy"].commit({"README.md": b"# Faster"})
    commits = [list(hub.repos[name].commits) for name in ("user/public", "user/other", "user/full")]
    code = f"""
import os
from ferid_dataset.errors import FeridError
from ferid_dataset.publish import push_ferid
for token, repo, options, _ in {cases!r}:
    os.environ["HF_TOKEN"] = token
    try:
        print(*str(push_ferid({str(ferid)!r}, repo, **options)).splitlines())
    except FeridError as error:
        print(error)
"""
    done = client(code=code)
    said = done.stdout.splitlines()
    assert len(said) == len(cases), done.stderr
    for sentence, (*_, expected) in zip(said, cases, strict=True):
        assert expected in sentence
    uploads = [upload.split("/storage")[0] for upload in hub.uploads()]
    assert uploads[-2:] == ["POST /api/datasets/user/busy/commit/main"] * 2  # what had arrived is not sent again
    assert commits == [hub.repos[name].commits for name in ("user/public", "user/other", "user/full")]

    hub.url = "http://127.0.0.1:9"  # where nobody answers
    done = client("push", ferid, "user/ferid")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ferid: http://127.0.0.1:9 cannot be reached")


@pytest.mark.parametrize(
    ("repo", "options", "sentence"),
    [
        ("ferid", {}, "'ferid' is no name of a Hub repository: give user/name"),
        ("user/ferid", {"media": ["images"]}, "no 'images' to publish: choose from pictures, faces, embeddings"),
        ("user/ferid", {"media": ["embeddings"]}, "an embedding is part of a face: ask for both"),
        ("user/ferid", {"media": ["pictures"]}, "holds no pictures: build it with --embed"),
        ("user/ferid", {"media": ["faces", "embeddings"]}, "identify people, they are biometric data: add --private"),
        ("user/ferid", {}, "the Hub is switched off here: unset HF_HUB_OFFLINE"),  # by conftest.py
    ],
)
def test_what_is_refused_without_a_word_to_the_hub(ferid, repo, options, sentence, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with pytest.raises(FeridError, match=re.escape(sentence)):
        push_ferid(ferid, repo, **options)


def test_pictures_need_a_private_repository_but_for_open_sources(tmp_path, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    build_ferid(tmp_path / "ferid", embed=True, **data)
    with pytest.raises(FeridError, match="pictures of folder, raf_db are not free to be passed on: add --private"):
        push_ferid(tmp_path / "ferid", "user/ferid", media=["pictures"])
    monkeypatch.setattr(publish, "OPEN", {"folder", "raf_db"})
    with pytest.raises(FeridError, match="switched off"):  # so it would have gone to the Hub
        push_ferid(tmp_path / "ferid", "user/ferid", media=["pictures"])


def test_what_is_no_ferid_is_not_pushed(tmp_path, ferid):
    (tmp_path / "empty").mkdir()
    for out, sentence in ((tmp_path / "nowhere", "there is no folder"), (tmp_path / "empty", "holds no FERID")):
        with pytest.raises(FeridError, match=sentence):
            push_ferid(out, "user/ferid")
    readme = ferid / "README.md"
    readme.write_text(readme.read_text().replace("ferid_build", "something"))
    with pytest.raises(FeridError, match="holds no FERID, or one of an older release: build it again"):
        push_ferid(ferid, "user/ferid")


def test_a_dry_run_calls_nobody(tmp_path, ferid):  # the Hub is switched off here
    before = sorted(tmp_path.rglob("*"))
    done = push_ferid(ferid, "user/ferid", media=["faces"], dry_run=True)
    assert done.left_out == ["pictures", "embeddings"] and len(done.sent) == 3
    assert "nothing was sent, this is a dry run" in str(done) and "would be there: README.md and 3" in str(done)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_card_says_what_was_measured(ferid):
    card = (ferid / "README.md").read_text()
    assert "| category | raf_db | 2 | - | 1 |" in card and "| category | folder | 10 | - | 4 |" in card
    assert "| category | **all** | 12 | - | 5 |" in card and "| conversation | **all** | 2 | - | - |" in card
    assert "| source | split | happiness | sadness | anger | largest / smallest |" in card
    assert "| folder | train | 4 | 3 | 3 | 1.3 |" in card and "| raf_db | test | - | - | 1 | - |" in card
    assert "rows hold their absolute paths" in card
    assert "- **RAF-DB** (`raf_db`). <http://www.whdeng.cn/RAF/model1.html>. Access:" in card
    assert "aligned pictures of the basic set, 3 listed." in card
    for citation in ("xing2024emollama", "li2017reliable"):
        assert card.count(f"{{{citation},") == 1
    for duty in ("Article 5(1)(f)", "Annex III, point 1(c)", "Article 50(3)", "GDPR, Article 4(14)"):
        assert duty in card


def test_the_facts_of_a_build():
    readings = {"dfew": Reading(pa.table({"id": ["dfew/00001"]}), [], {"not single-labelled": 2}, "frames")}
    choices = Choices(fold=3, pictures="/home/somebody/pictures")
    facts = build_facts(choices, readings, [Rejected("dfew/00002", "/home/somebody/2", "why")], [])
    assert facts._asdict() == {
        "choices": {"fold": 3, "frames": 8},
        "read": {"dfew": 3},
        "rejected": {"dfew": 1},
        "truncated": {},
        "left_out": {"dfew": {"not single-labelled": 2}},
        "layouts": {"dfew": "frames"},
    }
