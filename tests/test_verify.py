"""`--verify` opens every picture and clip: what is empty, broken or truncated, and copies among one's own pictures."""

import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ferid_dataset.clip_frames import frame_paths
from ferid_dataset.sources.base import SAMPLES
from ferid_dataset.verify import verify_media

av = pytest.importorskip("av")


def picture(path, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return str(path)


def clip(path, frames=40):
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for seed in range(frames):
            pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return str(path)


def table(**paths_of):
    """One sample for each keyword, of the source before the first "_"."""
    rows = [
        {
            "id": name.replace("_", "/", 1),
            "source": name.split("_")[0],
            "split": "test" if name.endswith("test") else "train",
            "media_type": "image",
            "paths": paths,
            "label": "fear",
            "options": ["fear"],
            "attributes": {},
        }
        for name, paths in paths_of.items()
    ]
    return pa.Table.from_pylist(rows, schema=SAMPLES)


def reasons(rows):
    return {row.id.split("/")[1]: row.reason for row in rows}


def test_pictures_and_frames(tmp_path):
    frames = [picture(tmp_path / f"{seed}.png", seed) for seed in range(4)]
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    cut = picture(tmp_path / "cut.png", 9)
    with open(cut, "r+b") as stream:
        stream.truncate(os.path.getsize(cut) // 2)
    verified = verify_media(
        table(
            raf_whole=[frames[0]],
            raf_empty=[str(tmp_path / "empty.jpg")],
            raf_text=[str(tmp_path / "text.jpg")],
            raf_cut=[cut],
            raf_gone=[str(tmp_path / "gone.jpg")],
            dfew_whole=[*frames, frames[0]],
            dfew_cut=[*frames[:3], cut],
        ),
        num_proc=2,
    )
    assert verified.samples["id"].to_pylist() == ["raf/whole", "dfew/whole"]
    said = reasons(verified.rejected)
    assert said.pop("cut").startswith("cannot be read: ")
    assert said.pop("gone").startswith("cannot be read: [Errno 2] No such file")
    assert said == {"empty": "the file is empty", "text": "it is not a picture, whatever its name says"}
    assert [row.label for row in verified.rejected] == ["fear"] * 5 and verified.truncated == []


def test_clips(tmp_path):
    whole = clip(tmp_path / "whole.mp4")
    data = open(whole, "rb").read()
    for name, content in (("cut", data[: len(data) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    names = ["whole", "cut", "empty", "text", "gone"]
    paths = frame_paths(pa.array([str(tmp_path / f"{name}.mp4") for name in names]), 4).to_pylist()
    verified = verify_media(table(**{f"mafw_{name}": found for name, found in zip(names, paths, strict=True)}))
    assert verified.samples["id"].to_pylist() == ["mafw/whole", "mafw/cut"]
    assert reasons(verified.truncated)["cut"].startswith("only ") and len(verified.truncated) == 1
    said = reasons(verified.rejected)
    assert said.keys() == {"empty", "text", "gone"}
    assert all(reason.startswith("cannot be read: ") and ".mp4" in reason for reason in said.values())


def test_copies_are_left_out_of_own_pictures_alone(tmp_path):
    one, other = picture(tmp_path / "one.png"), picture(tmp_path / "other.png")
    verified = verify_media(table(folder_train=[one], folder_test=[other], raf_train=[one], raf_test=[other]))
    assert verified.samples["id"].to_pylist() == ["folder/test", "raf/train", "raf/test"]
    assert reasons(verified.rejected) == {"train": "the same picture, byte for byte, as folder/test"}
