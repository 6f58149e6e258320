"""Opens every picture and clip once, so that no broken one reaches training.

Rejected("raf_db/train_00003", "/data/RAF-DB/.../train_00003_aligned.jpg", "cannot be read: image file is truncated")
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils import tqdm
from PIL import Image, UnidentifiedImageError

from ferid_dataset.sources.base import SPLITS, Rejected


class Verified(NamedTuple):
    """The samples that can be used, those that cannot, and clips (usable, too) of which only a part can be read."""

    samples: pa.Table
    rejected: list[Rejected]
    truncated: list[Rejected]


class Seen(NamedTuple):
    """What was found in the media of one sample."""

    digest: bytes = b""  # of the bytes of its files
    problem: str | None = None
    truncated: str | None = None


def verify_media(samples: pa.Table, num_proc: int | None = None) -> Verified:
    """Keeps the samples whose pictures and clips decode.

    Of pictures of one's own folder that are equal byte for byte the first stays, those of the test split before those
    of validation and of train, so that nothing is both trained on and tested. The published datasets keep theirs:
    figures are compared on their official splits. `ferid check` tells of such copies.

    Args:
        samples: a table of `SAMPLES`.
        num_proc: threads; all cores by default. The decoders work outside of Python's lock.
    """
    rows = samples.select(["id", "source", "split", "paths", "label"]).to_pylist()
    seen = look(samples, num_proc)
    problems = {row["id"]: result.problem for row, result in zip(rows, seen, strict=True) if result.problem}
    own = [(row, result) for row, result in zip(rows, seen, strict=True) if row["source"] == "folder"]
    for group in copies(own):
        first, *others = sorted(group, key=lambda row: SPLITS.index(row["split"]), reverse=True)
        problems |= {row["id"]: f"the same picture, byte for byte, as {first['id']}" for row in others}
    rejected = [
        Rejected(row["id"], row["paths"][0], problems[row["id"]], row["label"])
        for row in rows
        if row["id"] in problems
    ]
    truncated = [
        Rejected(row["id"], row["paths"][0], result.truncated, row["label"])
        for row, result in zip(rows, seen, strict=True)
        if result.truncated and row["id"] not in problems
    ]
    kept = pc.invert(pc.is_in(samples["id"], pa.array(problems, pa.string())))
    return Verified(samples.filter(kept), sorted(rejected), sorted(truncated))


def look(samples: pa.Table, num_proc: int | None = None) -> list[Seen]:
    """Decodes the media of every sample, in their order."""
    all_paths = samples["paths"].to_pylist()
    with ThreadPoolExecutor(num_proc) as pool:
        return list(tqdm(pool.map(_look_at, all_paths), "verify", total=len(all_paths), unit=" samples"))


def copies(seen: list[tuple[dict, Seen]]) -> list[list[dict]]:
    """The groups of rows whose media are equal byte for byte."""
    groups: dict[bytes, list[dict]] = {}
    for row, result in seen:
        if not result.problem:
            groups.setdefault(result.digest, []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _look_at(paths: list[str]) -> Seen:
    """Decodes the pictures, or the frames of the video file, that `paths` name."""
    if paths[0].startswith("frame://"):
        return _look_at_clip(paths[0].partition("::")[2], len(paths))
    digest = hashlib.sha256()
    for path in dict.fromkeys(paths):  # a short clip names a frame more than once
        try:
            data = Path(path).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except UnidentifiedImageError:
            return Seen(problem="the file is empty" if not data else "it is not a picture, whatever its name says")
        except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
            return Seen(problem=f"cannot be read: {error or type(error).__name__}")
        digest.update(data)
    return Seen(digest.digest())


def _look_at_clip(clip: str, num_frames: int) -> Seen:
    from modeling_emo_llama.video_frames import read_frames  # brings torch, which pictures do without

    try:
        frames = read_frames(clip, num_frames)
        digest = hashlib.sha256(Path(clip).read_bytes()).digest()
    except (OSError, ValueError) as error:
        return Seen(problem=f"cannot be read: {error}")
    partly = f"only {frames.num_frames_in_clip} frames can be decoded" if frames.truncated else None
    return Seen(digest, truncated=partly)
