"""Opens every picture once, so that no broken one reaches training and no test picture is trained on.

Rejected("folder/train/anger/0003", "/photos/train/anger/0003.jpg", "cannot be read: image file is truncated")
"""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from datasets.utils import tqdm
from PIL import Image, UnidentifiedImageError

from ferid_dataset.sources.base import SPLITS, Reading, Rejected


def verify_pictures(samples: pa.Table, num_proc: int | None = None) -> Reading:
    """Keeps the samples whose pictures decode and occur once.

    Of pictures that are equal byte for byte the first stays, those of the test split before those of validation and
    of train, so that nothing is both trained on and tested.

    Args:
        samples: a table of `SAMPLES`.
        num_proc: threads; all cores by default. Pillow decodes outside of Python's lock.
    """
    rows = samples.select(["id", "split", "paths"]).to_pylist()
    rejected: dict[str, Rejected] = {}
    with ThreadPoolExecutor(num_proc) as pool:
        digests = list(tqdm(pool.map(_digest, rows), total=len(rows), desc="verify", unit=" pictures"))

    first_of: dict[bytes, str] = {}
    test_first = sorted(zip(rows, digests, strict=True), key=lambda pair: SPLITS.index(pair[0]["split"]), reverse=True)
    for row, digest in test_first:
        if isinstance(digest, str):
            reason = f"cannot be read: {digest}"
        elif digest in first_of:
            reason = f"the same picture, byte for byte, as {first_of[digest]}"
        else:
            first_of[digest] = row["id"]
            continue
        rejected[row["id"]] = Rejected(row["id"], row["paths"][0], reason)
    kept = pa.array([row["id"] not in rejected for row in rows], pa.bool_())
    return Reading(samples.filter(kept), [rejected[name] for name in sorted(rejected)])


def _digest(row: dict) -> bytes | str:
    """A hash of the bytes of a sample's pictures, or why one of them does not decode."""
    digest = hashlib.sha256()
    for path in row["paths"]:
        try:
            data = Path(path).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except UnidentifiedImageError:
            return "the file is empty" if not data else "it is not a picture, whatever its name says"
        except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
            return str(error) or type(error).__name__
        digest.update(data)
    return digest.digest()
