"""Frames of video files as pictures with paths: through `datasets`, workers, threads and a stream."""

import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, load_dataset
from datasets.table import embed_table_storage
from hypothesis import given
from hypothesis import strategies as st

import modeling_emo_llama.video_frames as video_frames
from ferid_dataset.clip_frames import _pictures, frame_paths
from ferid_dataset.errors import FeridError
from ferid_dataset.sources.media_files import choose_frames
from modeling_emo_llama.video_frames import bin_centres, frame_files, read_frames

FEATURES = Features({"images": [Image()]})
NAMES = ["00025.mp4", "a b.mp4", "#1 50%41 + é 表情.mp4", "what?*[x]~&.mp4", "frame:3of8.mp4"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 30 frames, each clip of its own colours."""
    folder = tmp_path_factory.mktemp("some clips")
    for seed, name in enumerate(NAMES):
        random = np.random.default_rng(seed)
        with av.open(str(folder / "clip.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for _ in range(30):
                blocks = random.integers(0, 256, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks)))
            container.mux(stream.encode())
        (folder / "clip.mp4").rename(folder / name)
    return [str(folder / name) for name in NAMES]


def rows(clips, num_frames=8):
    table = pa.table({"images": frame_paths(pa.array(clips, pa.string()), num_frames).to_pylist()})
    return Dataset(table).cast(FEATURES)


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


def test_paths():
    clips = pa.array(["/not/of/these.mp4", "/data/a b.mp4", "/data/é%#.avi"]).slice(1)
    assert frame_paths(clips, 2).to_pylist() == [
        ["frame://0of2::/data/a b.mp4", "frame://1of2::/data/a b.mp4"],
        ["frame://0of2::/data/é%#.avi", "frame://1of2::/data/é%#.avi"],
    ]
    assert frame_paths(clips.slice(2), 8).to_pylist() == []
    assert frame_paths(clips, 8).type == pa.list_(pa.string())
    with pytest.raises(FeridError, match="/data/a::b.mp4 has :: in its path, .*: rename it"):
        frame_paths(pa.array(["/data/a.mp4", "/data/a::b.mp4"]), 8)


def test_a_row_holds_the_frames_whatever_the_name(clips):
    dataset = rows(clips)
    for clip, row in zip(clips, dataset, strict=True):
        assert [image.mode for image in row["images"]] == ["RGB"] * 8
        assert np.array_equal(pixels(row["images"]), read_frames(clip, 8).pixels)
    assert len(rows(clips, 3)[1]["images"]) == 3


def test_a_clip_is_decoded_once_a_row_and_anew_when_it_has_changed(clips, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(video_frames, "read_frames", lambda *args: read.append(args) or read_frames(*args))
    clip = str(tmp_path / "clip.mp4")
    shutil.copy(clips[0], clip)
    dataset = rows([clip])
    first = pixels(dataset[0]["images"])
    assert np.array_equal(pixels(dataset[0]["images"]), first)
    assert read == [(clip, 8)]
    shutil.copy(clips[1], clip)
    os.utime(clip, (1, 1))
    assert np.array_equal(pixels(dataset[0]["images"]), read_frames(clips[1], 8).pixels)
    assert len(read) == 2
    for _ in rows(clips):
        pass
    assert _pictures.cache_info().currsize == _pictures.cache_info().maxsize == 4, "few clips are kept"


def test_a_clip_that_cannot_be_read_is_named(tmp_path):
    broken, missing = tmp_path / "broken.mp4", tmp_path / "missing.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(OSError, match="broken.mp4 cannot be read: Invalid data"):
        rows([str(broken)])[0]
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        rows([str(missing)])[0]


@pytest.mark.parametrize("path", ["frame://8of8::/a.mp4", "frame://x::/a.mp4", "frame://1of8", "frame://1of0::/a.mp4"])
def test_wrong_paths(path):
    with pytest.raises(ValueError, match="no frame to read: .*; one is frame://3of8::/path/of/clip.mp4"):
        fsspec.open(path).open()


def test_nothing_can_be_written(clips):
    with pytest.raises(ValueError, match="frames of clips cannot be written: .*00025.mp4"):
        fsspec.open(f"frame://1of8::{clips[0]}", "wb").open()


def test_embedded_rows_need_no_clip(clips):
    table = embed_table_storage(rows(clips[:1]).data.table)
    assert all(image["bytes"].startswith(b"P6 48 32 255\n") for image in table["images"][0].as_py())
    assert np.array_equal(pixels(Dataset(table)[0]["images"]), read_frames(clips[0], 8).pixels)


def test_streaming_and_pickled_rows(clips, tmp_path):
    dataset = rows(clips)
    table = dataset.data.table.replace_schema_metadata(FEATURES.arrow_schema.metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), split="train").features == FEATURES
    stream = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), streaming=True, split="train")
    copy = pickle.loads(pickle.dumps(dataset))
    for clip, streamed, copied in zip(clips, stream, copy, strict=True):
        expected = read_frames(clip, 8).pixels
        assert np.array_equal(pixels(streamed["images"]), expected)
        assert np.array_equal(pixels(copied["images"]), expected)


def test_threads(clips):
    dataset = rows(clips)
    expected = [read_frames(clip, 8).pixels for clip in clips]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: pixels(dataset[i % len(clips)]["images"]), range(40)))
    assert all(np.array_equal(frames, expected[i % len(clips)]) for i, frames in enumerate(found))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers(clips, start):
    from torch.utils.data import DataLoader

    dataset = rows(clips)
    dataset[0]  # the parent has a reader's libraries and decoded frames before it forks
    loader = DataLoader(dataset, None, num_workers=2, multiprocessing_context=start, timeout=60)
    for clip, row in zip(clips, loader, strict=True):
        assert np.array_equal(pixels(row["images"]), read_frames(clip, 8).pixels)


def test_the_file_system_is_found_without_an_import_and_needs_no_torch():
    code = """if True:
        import sys, fsspec
        print(fsspec.get_filesystem_class("frame").__module__)
        print({"torch", "transformers", "av", "decord", "datasets", "PIL"} & set(sys.modules))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["ferid_dataset.clip_frames", "set()"]


@given(
    st.lists(st.from_regex(r"[0-9a]{1,3}(_[0-9]{1,2})?\.(jpg|PNG|txt)", fullmatch=True), unique=True),
    st.integers(1, 9),
)
def test_both_wings_choose_the_same_frames_of_a_folder(names, num_frames):
    pictures = frame_files(names)
    expected = [pictures[index] for index in bin_centres(len(pictures), num_frames)] if pictures else []
    assert choose_frames(tuple(names), num_frames) == expected
