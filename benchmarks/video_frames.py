"""8 frames of a clip at 224 x 224: `read_frames` with PyAV against decord, and against decoding alone.

    OMP_NUM_THREADS=1 python benchmarks/video_frames.py

decord is used as is common: `VideoReader(path, width, height).get_batch(indices)`. "decode only" opens the clip and
decodes what the wanted frames need, as ours does, and converts none. 8 clips of 100 frames are written to a
temporary folder first: H.264 with B-frames, few and many keyframes, three sizes; MPEG-4 with B-frames in AVI. One
thread, CPU time, interleaved rounds; a ratio is the median over the rounds. Expected, as geometric means: at least
1.9 x decord, at most 1.25 x decoding. H.264 alone gains less, since decoding is most of its cost.
"""

import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path

import av
import decord
import numpy as np

from modeling_emo_llama.video_frames import _decode, bin_centres, read_frames

NUM_FRAMES, SIDE, ROUNDS = 8, 224, 7
CLIPS = [  # encoder, suffix, width, height, frames between keyframes
    ("libx264", "mp4", 224, 224, 12),
    ("libx264", "mp4", 224, 224, 250),
    ("libx264", "mp4", 640, 360, 12),
    ("libx264", "mp4", 640, 360, 250),
    ("libx264", "mp4", 1280, 720, 12),
    ("libx264", "mp4", 1280, 720, 250),
    ("mpeg4", "avi", 320, 240, 12),
    ("mpeg4", "avi", 640, 360, 250),
]


def write_clip(path: Path, encoder: str, width: int, height: int, gop: int) -> None:
    """100 frames of a bright disc that moves over a blurred, drifting, slightly noisy background."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (height // 16 + 20, width // 16 + 20, 3), np.uint8)
    background = av.VideoFrame.from_ndarray(coarse).reformat(width + 200, height + 200, interpolation="BICUBIC")
    background = background.to_ndarray().astype(np.int16)
    noise = random.integers(-4, 5, (height, width, 3), np.int16)
    rows, columns = np.ogrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        if encoder == "mpeg4":  # x264's own defaults are 3 B-frames and constant quality
            stream.codec_context.max_b_frames, stream.bit_rate = 2, 3 * width * height
        for i in range(100):
            pixels = background[i : i + height, 2 * i : 2 * i + width] + np.roll(noise, 37 * i, axis=1)
            x, y = width * (0.5 + 0.3 * math.sin(i / 9)), height * (0.5 + 0.2 * math.cos(i / 7))
            pixels[(rows - y) ** 2 + (columns - x) ** 2 < (height / 5) ** 2] += 50
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ours(path: str) -> None:
    read_frames(path, NUM_FRAMES, (SIDE, SIDE), "pyav")


def with_decord(path: str) -> None:
    reader = decord.VideoReader(path, width=SIDE, height=SIDE, num_threads=1)
    reader.get_batch(bin_centres(len(reader), NUM_FRAMES)).asnumpy()


def decode_only(path: str) -> None:
    with av.open(path, options={"skip_frame": "all"}) as container:
        _decode(container, container.streams.best("video"), NUM_FRAMES)


def main() -> None:
    ways = {"ours": ours, "decord": with_decord, "decode only": decode_only}
    over_decord, over_decoding = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for encoder, suffix, width, height, gop in CLIPS:
            paths.append(Path(folder) / f"{encoder}_{width}x{height}_gop{gop}.{suffix}")
            write_clip(paths[-1], encoder, width, height, gop)
        seconds = {path: {name: [] for name in ways} for path in paths}
        for round_number in range(ROUNDS + 1):  # the first round warms up
            for path in paths:
                for name, read in ways.items():
                    start = time.process_time()
                    read(str(path))
                    if round_number:
                        seconds[path][name].append(time.process_time() - start)
    for path, times in seconds.items():
        rounds = list(zip(*times.values(), strict=True))
        over_decord.append(statistics.median(other / own for own, other, _ in rounds))
        over_decoding.append(statistics.median(own / least for own, _, least in rounds))
        print(
            f"{path.name:28} {1000 * statistics.median(times['ours']):6.1f} CPU-ms"
            f"   {over_decord[-1]:.2f} x decord   {over_decoding[-1]:.2f} x decode only"
        )
    h264 = [path.name.startswith("libx264") for path in paths]
    for name, chosen in {"H.264": h264, "all": [True] * len(paths)}.items():
        mean, least = (
            statistics.geometric_mean(itertools.compress(ratios, chosen)) for ratios in (over_decord, over_decoding)
        )
        print(f"geometric mean, {name:5} {mean:.2f} x decord, {least:.2f} x decode only")


if __name__ == "__main__":
    main()
