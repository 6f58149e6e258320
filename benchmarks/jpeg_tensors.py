"""JPEG to tensor: the fast path of the image processor, against what else a user would do.

    OMP_NUM_THREADS=1 python benchmarks/jpeg_tensors.py

Every way makes the same batch, float32 of shape (16, 3, 224, 224), of the same 16 encoded JPEGs (a photograph whose
columns are moved on; quality 90). Opponents: Pillow and NumPy by hand; transformers' LLaVA processor, which is the
parity path. The limit is libjpeg-turbo's decoder alone, at full size. All run in turn in one process on one thread; a
ratio is the median over the rounds of CPU time to CPU time. Expected: Pillow and NumPy take 3 to 3.5 x as long at 224
and at 512 pixels, 4.2 x at 1280 x 960. At 224 pixels more than half of their time is NumPy's normalisation: with
PyTorch's, in place, Pillow takes 2 x as long as the fast path.
"""

import io
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
from PIL import Image
from skimage.data import astronaut
from transformers import LlavaImageProcessorPil

from modeling_emo_llama import EmoLlamaImageProcessor

SIZES = [(224, 224), (512, 512), (1280, 960)]
SIDE = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SETTINGS = {
    "do_pad": True,
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": MEAN,
    "image_std": STD,
}
BATCH = 16
REPEATS = 3
ROUNDS = 9


def photographs(size: tuple[int, int]) -> list[bytes]:
    """JPEGs of one photograph, each with its columns moved on, so that no two are the same bits."""
    photo = np.asarray(Image.fromarray(astronaut()).resize(size, Image.Resampling.LANCZOS))
    encoded = []
    for number in range(BATCH):
        stream = io.BytesIO()
        Image.fromarray(np.roll(photo, 13 * number, axis=1)).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    return encoded


def by_hand(jpegs: list[bytes]) -> torch.Tensor:
    arrays = []
    for jpeg in jpegs:
        picture = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = (np.asarray(picture, np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        arrays.append(pixels.transpose(2, 0, 1))
    return torch.from_numpy(np.stack(arrays))


def psnr(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of two normalised batches, in dB of the pixels' range."""
    error = (left - right) * torch.tensor(STD).view(3, 1, 1)
    return -10 * math.log10(error.square().mean().item())


def cpu_seconds(run: Callable[[], object]) -> float:
    """A picture's share of a few batches in a row, as a training loop makes them."""
    start = time.process_time()
    for _ in range(REPEATS):
        run()
    return (time.process_time() - start) / REPEATS / BATCH


def main() -> None:
    torch.set_num_threads(1)
    fast = EmoLlamaImageProcessor(**SETTINGS, fast_jpeg=True)
    llava = LlavaImageProcessorPil(**SETTINGS)
    ratios = {}
    print(f"milliseconds a picture, and how many times as long as the fast path; {ROUNDS} rounds of {BATCH} pictures")
    for size in SIZES:
        jpegs = photographs(size)
        ways = {
            "fast path": lambda jpegs=jpegs: fast(jpegs, return_tensors="pt")["pixel_values"],
            "Pillow and NumPy": lambda jpegs=jpegs: by_hand(jpegs),
            "parity path": lambda jpegs=jpegs: llava(
                [Image.open(io.BytesIO(jpeg)) for jpeg in jpegs], return_tensors="pt"
            )["pixel_values"],
            "limit: decoder alone": lambda jpegs=jpegs: [simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs],
        }
        difference = psnr(ways["fast path"](), ways["parity path"]())
        for run in ways.values():
            run()
        seconds = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, run in ways.items():
                seconds[name].append(cpu_seconds(run))
        print(f"{size[0]} x {size[1]} -> {SIDE}, PSNR of the fast to the parity path {difference:.1f} dB")
        for name, times in seconds.items():
            ratio = statistics.median(other / own for other, own in zip(times, seconds["fast path"], strict=True))
            ratios.setdefault(name, []).append(ratio)
            print(f"    {name:22} {1000 * statistics.median(times):7.3f} ms   {ratio:5.2f} x")
    for name, values in ratios.items():
        print(f"geometric mean over the sizes: {name:22} {statistics.geometric_mean(values):5.2f} x")


if __name__ == "__main__":
    main()
