"""`ferid build`: the folder it writes, loaded back; what it leaves out; what it says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image, ImageOps

from ferid_dataset import faces as faces_module
from ferid_dataset.add_faces import add_faces
from ferid_dataset.build import build_ferid
from ferid_dataset.errors import FeridError
from ferid_dataset.faces import find_faces
from ferid_dataset.ferid import FEATURES
from ferid_dataset.sources import folder

REPOSITORY = Path(__file__).parents[1]


def draw(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 20, 3), np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for seed in range(20):
        draw(root / "train" / ("happy" if seed % 2 else "Angry") / f"{seed:02}.png", seed)
    for seed in range(20, 24):
        draw(root / "test" / "sad" / f"{seed}.jpg", seed)
    return root


@pytest.fixture
def annotations(tmp_path):
    file = tmp_path / "annotations/folder/train.jsonl"
    file.parent.mkdir(parents=True)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "He smiles."}]
    file.write_text(json.dumps({"id": "folder/train/happiness/01", "messages": turns}) + "\n")
    return tmp_path / "annotations"


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def run(*command, cwd=None, **environment):
    """In a process of its own, with its own cache and no Hub."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_the_literal_call(tmp_path, photos, annotations):
    summary = build_ferid(tmp_path / "ferid", folder=photos, annotations=annotations)
    assert summary.rows == {"category": {"train": 20, "test": 4}, "conversation": {"train": 1}}
    code = """
from datasets import get_dataset_config_names, load_dataset
assert get_dataset_config_names("ferid") == ["category", "conversation"]
category, conversation = load_dataset("ferid", "category"), load_dataset("ferid", "conversation")
row = category["train"][0]
print(len(category["train"]), len(category["test"]), row["id"], row["images"][0].size)
print(len(conversation["train"]), conversation["train"][0]["messages"][1]["content"])
print(category["train"].features == conversation["train"].features, len(load_dataset("ferid", split="train")))
"""
    done = run("-c", code, cwd=tmp_path, HF_HOME=str(tmp_path / "hf"))
    assert done.stdout.splitlines() == ["20 4 folder/train/anger/00 (20, 24)", "1 He smiles.", "True 20"], done.stderr


def test_a_rebuild_is_never_served_stale(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ids(config="category"):
        return load_dataset("ferid", config, split="train", cache_dir=str(tmp_path / "cache"))["id"][:]

    build_ferid("ferid", folder=photos)
    assert len(ids()) == 20
    first = set(os.listdir("ferid/category"))
    draw(photos / "train/happy/new.png", 99)
    build_ferid("ferid", folder=photos)
    assert len(ids()) == 21 and "folder/train/happiness/new" in ids()
    assert len(os.listdir("ferid/category")) == 2  # the old file of train is gone
    (photos / "train/happy/new.png").unlink()
    build_ferid("ferid", folder=photos)
    assert len(ids()) == 20
    assert set(os.listdir("ferid/category")) == first  # the same rows, the same bytes, the same name


def test_the_folder_and_its_card(tmp_path, photos, annotations):
    out = tmp_path / "ferid"
    build_ferid(out, folder=photos, annotations=annotations)
    card = (out / "README.md").read_text()
    configs = yaml.safe_load(card.split("---")[1])["configs"]
    assert [config["config_name"] for config in configs] == ["category", "conversation"]
    assert configs[0]["default"] is True and "default" not in configs[1]
    named = {file["path"] for config in configs for file in config["data_files"]}
    assert named == {str(file.relative_to(out)) for file in out.glob("*/*.parquet")}
    assert "| category | folder | 20 | - | 4 |" in card
    assert sorted(os.listdir(tmp_path)) == ["annotations", "ferid", "photos"]  # no work folder left

    build_ferid(out, folder=photos)  # without annotations the conversations go
    assert sorted(os.listdir(out)) == ["README.md", "category", "rejected.jsonl", "truncated.jsonl"]


def test_files_open_in_datasets_before_release_4(tmp_path, photos):
    """Which know no feature called List; with the old spelling the features are the same here."""
    build_ferid(tmp_path / "ferid", folder=photos)
    (file,) = (tmp_path / "ferid/category").glob("train-*")
    assert b'"List"' not in pq.read_schema(file).metadata[b"huggingface"]
    rows = load_dataset(str(tmp_path / "ferid"), "category", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features == FEATURES


def test_embed_writes_the_pictures_in(tmp_path, photos):
    build_ferid(tmp_path / "ferid", folder=photos, embed=True)
    shutil.rmtree(photos)
    (file,) = (tmp_path / "ferid/category").glob("train-*")
    picture = pq.read_table(file)["images"].to_pylist()[0][0]
    assert picture["path"] == "00.png" and picture["bytes"].startswith(b"\x89PNG")
    rows = load_dataset(str(tmp_path / "ferid"), "category", split="train", cache_dir=str(tmp_path / "cache"))
    assert rows[0]["images"][0].size == (20, 24)


def test_bad_pictures_are_left_out_with_their_reason(tmp_path, photos):
    whole = (photos / "train/Angry/00.png").read_bytes()
    (photos / "train/Angry/broken.png").write_bytes(whole[: len(whole) // 2])
    (photos / "train/Angry/empty.jpg").write_bytes(b"")
    (photos / "train/Angry/text.jpg").write_text("hello")
    draw(photos / "train/Angry/00.tif", 50)
    shutil.copy(photos / "train/happy/01.png", photos / "train/happy/copy.png")
    shutil.copy(photos / "test/sad/20.jpg", photos / "train/happy/leak.jpg")
    out = tmp_path / "ferid"
    summary = build_ferid(out, folder=photos, verify=True, max_rejected=0.5)
    assert (summary.read, summary.rejected, summary.rows["category"]) == (30, 6, {"train": 20, "test": 4})
    assert f"rejected: 6 of 30, see {out / 'rejected.jsonl'}" in str(summary)
    reasons = {Path(row["path"]).name: row["reason"] for row in rejected(out)}
    assert list(reasons) == ["00.tif", "broken.png", "empty.jpg", "text.jpg", "copy.png", "leak.jpg"]
    assert "same name as" in reasons["00.tif"]
    assert "cannot be read: " in reasons["broken.png"] and "truncated" in reasons["broken.png"]
    assert "empty" in reasons["empty.jpg"] and "not a picture" in reasons["text.jpg"]
    assert reasons["copy.png"].endswith("byte for byte, as folder/train/happiness/01")
    assert reasons["leak.jpg"].endswith("byte for byte, as folder/test/sadness/20")

    with pytest.raises(FeridError, match="6 of 30 samples were rejected, over 5%.*rejected.jsonl"):
        build_ferid(tmp_path / "other", folder=photos, verify=True)
    assert (tmp_path / "other/README.md").exists()  # built all the same

    assert build_ferid(out, folder=photos).rejected == 1


def test_nothing_usable(tmp_path, photos):
    for file in photos.glob("*/*/*"):
        file.write_bytes(b"")
    with pytest.raises(FeridError, match="none of the 24 samples can be used.* the file is empty"):
        build_ferid(tmp_path / "ferid", folder=photos, verify=True)
    assert not (tmp_path / "ferid").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"folder": None}, "nothing to build from"),
        ({"configs": ["categories"]}, "no config 'categories': choose from category, conversation"),
        ({"configs": ["conversation"]}, "conversations need annotations"),
        ({"max_rejected": 5}, "between 0 and 1"),
        ({"faces": "nosuch"}, "nosuch"),
    ],
)
def test_wrong_requests(tmp_path, photos, arguments, sentence):
    with pytest.raises(FeridError, match=sentence):
        build_ferid(tmp_path / "ferid", **({"folder": photos} | arguments))
    assert not (tmp_path / "ferid/README.md").exists()


def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, photos):
    before = sorted(photos.rglob("*"))
    with pytest.raises(FeridError, match="not empty and holds no FERID"):
        build_ferid(photos, folder=photos)
    assert sorted(photos.rglob("*")) == before
    build_ferid(photos.parent / "ferid", folder=photos)
    (tmp_path / "ferid/mine.txt").write_text("kept")
    build_ferid(tmp_path / "ferid", folder=photos)
    assert (tmp_path / "ferid/mine.txt").read_text() == "kept"


def test_an_interrupted_build_leaves_the_old_one_whole(tmp_path, photos, monkeypatch):
    out = tmp_path / "ferid"
    build_ferid(out, folder=photos)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    draw(photos / "train/happy/new.png", 99)
    monkeypatch.setattr("ferid_dataset.build.dataset_card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_ferid(out, folder=photos)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert sorted(os.listdir(tmp_path)) == ["ferid", "photos"]


@pytest.fixture
def face_photos(tmp_path):
    """An astronaut, the same lying on her side but told so in EXIF, and noise."""
    pytest.importorskip("dlib")
    astronaut = Image.fromarray(pytest.importorskip("skimage.data").astronaut()[:256, 96:352])
    root = tmp_path / "people/train/happy"
    draw(root / "noise.png", 0)
    astronaut.save(root / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees before it is shown
    astronaut.rotate(90, expand=True).save(root / "lying.jpg", exif=exif, quality=95)
    assert ImageOps.exif_transpose(Image.open(root / "lying.jpg")).size == astronaut.size
    return tmp_path / "people"


def test_faces(tmp_path, face_photos, monkeypatch):
    out = tmp_path / "ferid"
    summary = build_ferid(out, folder=face_photos, faces="dlib", num_proc=1)
    assert "no face found in 1 of 3 samples; they use the model's no-face embedding" in str(summary)
    rows = load_dataset(str(out), "category", split="train", cache_dir=str(tmp_path / "cache"))
    lying, noise, upright = rows["faces"][:]
    assert noise == [[]]
    face = upright[0][0]
    left, top, right, bottom = face["box"]
    assert 60 < left < right < 190 and 40 < top < bottom < 210
    assert np.shape(face["landmarks"]) == (68, 2)
    assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-4)
    assert np.abs(np.subtract(lying[0][0]["box"], face["box"])).max() < 12  # EXIF was obeyed

    # Only what has changed is looked at again.
    seen = []
    monkeypatch.setattr(faces_module, "_look", lambda todo, *_: seen.extend(row["id"] for row in todo) or [])
    find_faces(folder.read(face_photos).samples, "dlib", out / "faces")
    assert seen == []
    draw(face_photos / "train/happy/noise.png", 1)
    find_faces(folder.read(face_photos).samples, "dlib", out / "faces")
    assert seen == ["folder/train/happiness/noise"]
    find_faces(folder.read(face_photos).samples, "another", out / "faces")
    assert len(seen) == 4


@pytest.mark.slow  # the processes that look for faces are started four times
def test_faces_are_added_to_a_built_ferid(tmp_path, face_photos, monkeypatch):
    out = tmp_path / "ferid"
    build_ferid(out, folder=face_photos)
    added = add_faces(out, "dlib", num_proc=1)
    assert str(added) == "no face found in 1 of 3 samples; they use the no-face embedding"
    rows = load_dataset(str(out), "category", split="train", cache_dir=str(tmp_path / "cache"))
    built = tmp_path / "built"
    build_ferid(built, folder=face_photos, faces="dlib", num_proc=1)
    (ours,), (theirs,) = (list((folder / "category").glob("*.parquet")) for folder in (out, built))
    assert ours.read_bytes() == theirs.read_bytes()  # as if they had been looked for in the build
    assert rows["faces"][1] == [[]] and len(rows["faces"][2][0]) == 1

    monkeypatch.setattr(faces_module, "_look", lambda *_: pytest.fail("looked again"))
    assert add_faces(out, "dlib") == added

    monkeypatch.undo()
    assert add_faces(out, "dlib", num_proc=1, cropped=["folder"]).without_face == 0  # each picture is one face
    with pytest.raises(FeridError, match="there is no source 'raf'"):
        add_faces(out, "dlib", cropped=["raf"])
    build_ferid(out, folder=face_photos, embed=True)
    with pytest.raises(FeridError, match="holds its pictures inside: build it with --faces"):
        add_faces(out, "dlib")
    with pytest.raises(FeridError, match="there is no folder"):
        add_faces(tmp_path / "nowhere", "dlib")


def test_command_line(tmp_path, photos):
    ferid = ["-m", "ferid_dataset.cli"]
    shown = run(*ferid, "--help")
    assert shown.returncode == 0 and "build" in shown.stdout
    done = run(*ferid, "build", tmp_path / "ferid", "--folder", photos, "--config", "category")
    assert done.returncode == 0 and "category: train 20, test 4" in done.stdout, done.stderr
    wrong = run(*ferid, "build", tmp_path / "ferid", "--folder", tmp_path / "nowhere")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr.startswith("ferid: there is no folder") and wrong.stderr.count("\n") == 1


def test_ctrl_c_is_one_sentence(tmp_path, photos):
    pipe = photos / "train/happy/waits.jpg"
    os.mkfifo(pipe)  # whoever reads it waits until we close it
    command = [sys.executable, "-m", "ferid_dataset.cli", "build", tmp_path / "ferid", "--folder", photos, "--verify"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    writer = None
    while writer is None and process.poll() is None:
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    os.close(writer)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr and "ferid: stopped" in stderr
