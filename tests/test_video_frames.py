"""Both readers against a decode of every frame: which frames, which bits, and what of clips that are broken."""

import importlib.util
import multiprocessing
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import modeling_emo_llama.video_frames as video_frames
from modeling_emo_llama.video_frames import bin_centres, frame_files, read_frames

READERS = ("pyav", "decord")
MPEG4 = {"codec": "mpeg4", "size": (64, 48)}
CLIPS = {
    "b_frames_gop_12.mp4": {"gop": 12},
    "b_frames_gop_250.mp4": {"gop": 250},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}},
    "b_pyramid.mp4": {"gop": 30, "b_frames": 5, "options": {"b-pyramid": "normal"}},
    "mpeg4.avi": MPEG4,
    "mpeg4_gop_250.avi": MPEG4 | {"gop": 250},
    "mpeg4_no_b_frames.avi": MPEG4 | {"b_frames": 0},
    "h264_made_up_times.avi": {},
    "variable_frame_rate.mp4": {"times": lambda i: 40 * i + 13 * (i % 3)},
    "one_frame.mp4": {"frames": 1},
    "two_frames.avi": MPEG4 | {"frames": 2},
    "odd_width.avi": MPEG4 | {"size": (75, 48)},
    "odd_444.mp4": {"size": (75, 49), "pix_fmt": "yuv444p"},
    "narrow.avi": MPEG4 | {"size": (16, 34)},
    "flash.flv": {"codec": "flv", "b_frames": 0},
    "h264.flv": {},
    "vp8.webm": {"codec": "libvpx", "b_frames": 0},
    "vp9.webm": {"codec": "libvpx-vp9", "b_frames": 0, "options": {"deadline": "realtime", "cpu-used": "8"}},
}


def write_clip(path, frames=60, size=(64, 48), codec="libx264", gop=12, b_frames=2, times=None, **more):
    """Coloured blocks that move, so that no two frames are alike. `times` gives the milliseconds of a frame."""
    width, height = size
    blocks = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w", options=more.get("muxer", {})) as container:
        stream = container.add_stream(codec, rate=25, options=more.get("options", {}))
        stream.width, stream.height, stream.pix_fmt = width, height, more.get("pix_fmt", "yuv420p")
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(blocks[i : i + height, 3 * i : 3 * i + width]))
            if times:
                frame.pts = times(i)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_packed_avi(path):
    """MPEG-4 as DivX 5 wrote it: a B-frame lies in one packet with the frame before, an empty packet follows."""
    write_clip(path, codec="mpeg4", b_frames=1, gop=24, options={"b_strategy": "0", "sc_threshold": "1000000000"})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        kinds = [packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 for packet in packets]  # 0 I, 1 P, 2 B
        packed = []
        for packet, kind in zip(packets, kinds, strict=True):
            if kind == 2:
                packed[-1] += packet
                packed.append(b"\0\0\1\xb6\x50\x5f")  # "not coded"
            else:
                packed.append(packet)
        header, user_data = packed[0].split(b"\0\0\1\xb2", 1)
        picture = user_data[user_data.index(b"\0\0\1\xb6") :]
        packed[0] = header + b"\0\0\1\xb2DivX503b1393p" + picture
        with av.open(str(path.with_suffix(".packed.avi")), "w") as out:
            copy = out.add_stream_from_template(stream)
            for i, data in enumerate(packed):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = copy, stream.time_base, i == 0
                packet.pts = packet.dts = i
                out.mux(packet)
    return path.with_suffix(".packed.avi")


def every_frame(path):
    """All frames that can be decoded, one after the other: uint8 [T, H, W, 3]."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in [*(packet for packet in container.demux(stream) if packet.size), None]:
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in stream.codec_context.decode(packet)]
            except av.FFmpegError:
                continue
    return np.stack(frames)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = {name: write_clip(folder / name, **made) for name, made in CLIPS.items()}
    return paths | {"packed_b_frames.avi": write_packed_avi(folder / "packed_b_frames.avi")}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [*CLIPS, "packed_b_frames.avi"])
def test_frames_are_those_of_a_decode_of_every_frame(clips, name, reader):
    expected = every_frame(clips[name])
    for num_frames in (1, 3, 8, 17, len(expected), len(expected) + 5):
        frames = read_frames(clips[name], num_frames, reader=reader)
        assert frames.num_frames_in_clip == len(expected) == CLIPS.get(name, {}).get("frames", 60)
        assert frames.indices == [int((i + 0.5) * len(expected) / num_frames) for i in range(num_frames)]
        assert frames.pixels.dtype == np.uint8 and frames.pixels.shape == (num_frames, *expected.shape[1:])
        assert np.array_equal(frames.pixels, expected[frames.indices])
        assert not frames.truncated


@pytest.mark.parametrize("made", [MPEG4 | {"size": (75, 49)}, {"pix_fmt": "yuv420p10le"}])
def test_where_ffmpeg_versions_make_other_rgb_both_readers_give_that_of_decord(tmp_path, made):
    clip = write_clip(tmp_path / "clip.mp4", **made)
    expected = every_frame(clip).astype(int)
    frames, by_decord = (read_frames(clip, 8, reader=reader) for reader in READERS)
    assert np.array_equal(frames.pixels, by_decord.pixels)
    nearest = [int(np.abs(expected - pixels).mean((1, 2, 3)).argmin()) for pixels in frames.pixels]
    assert nearest == frames.indices == by_decord.indices


@pytest.mark.parametrize(("degrees", "matrix"), [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_frames_are_upright(tmp_path, degrees, matrix):
    clip = write_clip(tmp_path / "clip.mp4", frames=20)
    lying = every_frame(clip)
    one = 1 << 16
    fixed = [
        struct.pack(">9i", *(one * x for x in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
        for a, b, c, d in ((1, 0, 0, 1), matrix)
    ]
    movie, track, rest = clip.read_bytes().split(fixed[0])  # of the whole movie, and of its one track
    clip.write_bytes(movie + fixed[0] + track + fixed[1] + rest)
    for reader in READERS:
        frames = read_frames(clip, 4, reader=reader)
        expected = np.rot90(lying[frames.indices], -degrees // 90, axes=(1, 2))  # a turn clockwise
        assert np.array_equal(frames.pixels, expected)
        assert read_frames(clip, 4, size=(30, 20), reader=reader).pixels.shape == (4, 30, 20, 3)


def test_resized_frames_are_the_same_frames(clips):
    for name in ("b_frames_gop_12.mp4", "mpeg4.avi", "odd_width.avi"):
        own = read_frames(clips[name], 8)
        by_pyav, by_decord = (read_frames(clips[name], 8, size=(36, 40), reader=reader) for reader in READERS)
        assert by_pyav.pixels.shape == by_decord.pixels.shape == (8, 36, 40, 3)
        assert by_pyav.indices == by_decord.indices == own.indices
        expected = np.stack([np.asarray(Image.fromarray(pixels).resize((40, 36), 2)) for pixels in own.pixels])
        for frames in (by_pyav, by_decord):
            errors = np.abs(frames.pixels[:, None].astype(int) - expected[None]).mean((2, 3, 4))
            assert (errors.argmin(1) == np.arange(8)).all()


@pytest.mark.parametrize("percent", [30, 60, 90])
@pytest.mark.parametrize("made", [{"gop": 250}, {"b_frames": 0}])
def test_cut_mp4(tmp_path, made, percent):
    whole = write_clip(tmp_path / "whole.mp4", muxer={"movflags": "faststart"}, **made)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * percent // 100])
    there = every_frame(cut)
    assert 0 < len(there) < 60
    frames = read_frames(cut, 8, reader="pyav")
    assert frames.truncated and frames.num_frames_in_clip == len(there)
    assert frames.indices == bin_centres(len(there), 8)
    assert np.array_equal(frames.pixels, there[frames.indices])
    try:  # decord reads such a file or refuses to, but does not repeat frames in place of those that are missing
        frames = read_frames(cut, 8, reader="decord")
    except OSError as error:
        assert "emo-llama[fast]" in str(error)
    else:
        assert np.array_equal(frames.pixels, there[frames.indices])


@pytest.mark.parametrize("percent", [30, 60, 90])
def test_cut_avi(tmp_path, percent):
    whole = write_clip(tmp_path / "whole.avi", codec="mpeg4", size=(128, 96))
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * percent // 100])
    there = every_frame(cut)
    assert 0 < len(there) < 60
    for reader in READERS:
        frames = read_frames(cut, 4, reader=reader)
        assert frames.num_frames_in_clip == len(there) and frames.indices == bin_centres(len(there), 4)
        assert np.array_equal(frames.pixels, there[frames.indices])
        assert frames.truncated == (reader == "pyav")


def test_clip_that_was_trimmed_without_coding_it_anew(clips, tmp_path):
    """Its file holds frames from the last keyframe on, that are not shown but that others need."""
    trimmed = tmp_path / "trimmed.mp4"
    with av.open(str(clips["b_frames_gop_12.mp4"])) as whole, av.open(str(trimmed), "w") as part:
        stream = whole.streams.video[0]
        copy = part.add_stream_from_template(stream)
        for packet in [packet for packet in whole.demux(stream) if packet.size]:
            packet.pts -= 17 * packet.duration
            packet.dts -= 17 * packet.duration
            packet.stream = copy
            part.mux(packet)
    shown = every_frame(clips["b_frames_gop_12.mp4"])[17:]
    for reader in READERS:
        frames = read_frames(trimmed, 8, reader=reader)
        assert frames.num_frames_in_clip == len(shown) == 43 and not frames.truncated
        assert np.array_equal(frames.pixels, shown[bin_centres(43, 8)])


def test_avi_with_dropped_frames(clips, tmp_path):
    """The header counts them as frames, but they are none that can be shown apart."""
    data = clips["mpeg4_no_b_frames.avi"].read_bytes()
    start, end = data.index(b"movi") + 4, data.index(b"idx1")
    frames = b"00dc".join(piece + b"00dc\0\0\0\0" * (piece != b"") for piece in data[start:end].split(b"00dc"))
    header = bytearray(data[:start])
    struct.pack_into("<I", header, 4, len(header) + len(frames) - 8)
    struct.pack_into("<I", header, start - 8, len(frames) + 4)
    for at in (header.index(b"avih") + 24, header.index(b"strh") + 40):
        struct.pack_into("<I", header, at, 120)
    (tmp_path / "dropped.avi").write_bytes(header + frames)
    for reader in READERS:
        found, whole = (
            read_frames(path, 8, reader=reader) for path in (tmp_path / "dropped.avi", clips["mpeg4_no_b_frames.avi"])
        )
        assert found.num_frames_in_clip == 60 and not found.truncated
        assert np.array_equal(found.pixels, whole.pixels)


@given(st.sampled_from(["b_frames_gop_12.mp4", "mpeg4.avi", "flash.flv", "vp8.webm"]), st.randoms(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_damaged_clips_give_frames_or_a_reason(clips, tmp_path_factory, name, random, in_header):
    data = bytearray(clips[name].read_bytes())
    for _ in range(random.choice([1, 5, 50])):
        data[random.randrange(500 if in_header else len(data))] = random.randrange(256)
    damaged = tmp_path_factory.getbasetemp() / f"damaged{name}"
    damaged.write_bytes(data[: random.choice([None, random.randrange(len(data))])])
    try:
        frames = read_frames(damaged, 4, size=(16, 16))
    except OSError as error:
        assert str(damaged) in str(error)
    else:
        assert frames.pixels.shape == (4, 16, 16, 3) and frames.indices == bin_centres(frames.num_frames_in_clip, 4)


def write_broken(path):
    """Files that are no clips, and a part of what is said of each."""
    whole = write_clip(path / "whole.mp4").read_bytes()
    at = whole.index(b"moov")
    contents = {
        "no_index.mp4": whole[: at - 4],
        "empty.mp4": b"",
        "text.mp4": b"not a video\n" * 99,
        "text.txt": b"no\n",
    }
    for name, content in contents.items():
        (path / name).write_bytes(content)
    with av.open(str(path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    header = whole[: whole.index(b"mdat") + 4]
    (path / "noise.mp4").write_bytes(header + bytes(at - len(header) - 4) + whole[at - 4 :])
    return [*contents, "sound.mp4", "noise.mp4", "missing.mp4"]


def test_what_is_no_clip_is_said_in_a_sentence(tmp_path):
    for name in write_broken(tmp_path):
        for reader in READERS:
            with pytest.raises(OSError) as error:
                read_frames(tmp_path / name, 8, reader=reader)
            assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no clip .*missing.mp4"):
        read_frames(tmp_path / "missing.mp4", 8)
    with pytest.raises(OSError, match="sound.mp4 has no video stream"):
        read_frames(tmp_path / "sound.mp4", 8)
    with pytest.raises(OSError, match="no frame of .*noise.mp4 can be decoded"):
        read_frames(tmp_path / "noise.mp4", 8)


def test_wrong_arguments(clips):
    clip = clips["one_frame.mp4"]
    with pytest.raises(ValueError, match="num_frames must be 1 or more, not 0"):
        read_frames(clip, 0)
    with pytest.raises(ValueError, match='there is no reader \'cv2\': choose "pyav" or "decord"'):
        read_frames(clip, 1, reader="cv2")


def test_pyav_is_used_where_it_is_installed(clips, monkeypatch):
    used = []
    for name in READERS:
        read = getattr(video_frames, f"_read_with_{name}")
        monkeypatch.setattr(video_frames, f"_read_with_{name}", lambda *a, n=name, r=read: used.append(n) or r(*a))
    with_pyav = read_frames(clips["mpeg4.avi"], 8)
    monkeypatch.setitem(sys.modules, "av", None)
    without = read_frames(clips["mpeg4.avi"], 8)
    assert used == ["pyav", "decord"] and np.array_equal(with_pyav.pixels, without.pixels)
    with pytest.raises(ImportError, match=r"the reader pyav needs: pip install 'emo-llama\[fast\]'"):
        read_frames(clips["mpeg4.avi"], 8, reader="pyav")
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match=r"pip install decord, or 'emo-llama\[fast\]' for PyAV"):
        read_frames(clips["mpeg4.avi"], 8)


def fill(folder, *names, size=(20, 10)):
    """Pictures of which each is grey by the number in its name."""
    folder.mkdir(exist_ok=True)
    for name in names:
        value = int("".join(filter(str.isdigit, name)))
        Image.new("RGB", size, (value, value, value)).save(folder / name)
    return folder


def test_folder_of_frames(tmp_path):
    folder = fill(tmp_path / "02522", *(f"{i}.png" for i in range(1, 26)))
    (folder / ".9.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no frame")
    frames = read_frames(folder, 4)
    assert frames.indices == [3, 9, 15, 21] and frames.num_frames_in_clip == 25 and not frames.truncated
    assert frames.pixels.shape == (4, 10, 20, 3) and frames.pixels[:, 0, 0, 0].tolist() == [4, 10, 16, 22]
    assert read_frames(folder, 30).pixels[:, 0, 0, 0].tolist() == [i + 1 for i in bin_centres(25, 30)]
    assert read_frames(folder, 4, size=(6, 8)).pixels.shape == (4, 6, 8, 3)


def test_folders_that_are_no_clip(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="empty holds no picture"):
        read_frames(tmp_path / "empty", 8)
    mixed = fill(tmp_path / "mixed", "1.png")
    fill(mixed, "2.png", size=(30, 30))
    with pytest.raises(OSError, match="the frames in .*mixed are not of one size: give the size"):
        read_frames(mixed, 2)
    assert read_frames(mixed, 2, size=(8, 8)).pixels[:, 0, 0, 0].tolist() == [1, 2]
    (mixed / "2.png").write_bytes((mixed / "1.png").read_bytes()[:40])
    with pytest.raises(OSError, match="2.png cannot be read: "):
        read_frames(mixed, 2)


def test_frame_files_go_by_their_numbers():
    names = ["10.jpg", "2.jpg", "1.JPG", "notes.txt", ".3.jpg", "2.png"]
    assert frame_files(names) == ["1.JPG", "2.jpg", "2.png", "10.jpg"]
    assert frame_files(f"img_{i:05}.jpg" for i in (3, 100, 20)) == ["img_00003.jpg", "img_00020.jpg", "img_00100.jpg"]
    assert frame_files(["a_2_9.jpg", "a_2_10.jpg", "a_1_11.jpg"]) == ["a_1_11.jpg", "a_2_9.jpg", "a_2_10.jpg"]


@given(st.integers(1, 10**7), st.integers(1, 300))
def test_bin_centres(num_frames_in_clip, num_frames):
    indices = bin_centres(num_frames_in_clip, num_frames)
    assert indices == [int((i + 0.5) * num_frames_in_clip / num_frames) for i in range(num_frames)]
    assert 0 <= indices[0] and indices[-1] < num_frames_in_clip and indices == sorted(indices)
    for i, index in enumerate(indices):  # the frame overlaps its own bin
        assert i * num_frames_in_clip < (index + 1) * num_frames and index * num_frames < (i + 1) * num_frames_in_clip
    if num_frames <= num_frames_in_clip:
        assert len(set(indices)) == num_frames


def test_bin_centres_of_nothing():
    with pytest.raises(ValueError, match="cannot choose 8 of 0 frames: both must be 1 or more"):
        bin_centres(0, 8)


def read_all(paths, reader, sums):
    for path in paths:
        sums.put(int(read_frames(path, 8, reader=reader).pixels.sum()))


@pytest.mark.parametrize("reader", READERS)
def test_a_forked_child_reads_what_its_parent_read(clips, reader):
    paths = [clips["b_frames_gop_12.mp4"], clips["mpeg4.avi"], clips["odd_width.avi"]]
    expected = [int(read_frames(path, 8, reader=reader).pixels.sum()) for path in paths]
    fork = multiprocessing.get_context("fork")
    sums = fork.Queue()
    child = fork.Process(target=read_all, args=(paths, reader, sums), daemon=True)
    child.start()
    assert [sums.get(timeout=20) for _ in paths] == expected
    child.join(20)
    assert child.exitcode == 0


def test_importing_the_file_is_cheap():
    file = importlib.util.find_spec("modeling_emo_llama").submodule_search_locations[0] + "/video_frames.py"
    code = f"import runpy, sys; runpy.run_path({file!r}); print({{'av', 'decord', 'PIL', 'torch'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
