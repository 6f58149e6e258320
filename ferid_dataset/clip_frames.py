"""The frames of video files as pictures with paths, so that a row of a clip holds paths alone, as that of a still.

    frame://3of8::/data/MAFW/data/clips/00025.mp4

is frame 3, counted from 0, of the 8 at the centres of equal bins of that clip, at its own size: a binary PPM picture,
which loses nothing and costs next to nothing. `datasets.Image` opens such a path through fsspec, which finds
[`ClipFrames`] by the entry point in pyproject.toml. `frame_paths` makes the paths.
"""

import io
import os
import re
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from ferid_dataset.errors import FeridError


def frame_paths(clips: pa.Array, num_frames: int) -> pa.ListArray:
    """The paths of the `num_frames` frames of each clip, a list of strings a clip.

    Args:
        clips: absolute paths of video files.

    Raises:
        FeridError: a path holds "::", which separates the parts of a path of a frame.
    """
    bad = clips.filter(pc.match_substring(clips, "::"))
    if len(bad):
        raise FeridError(f"{bad[0]} has :: in its path, which frames cannot be named by: rename it")
    frames = pa.array([f"frame://{i}of{num_frames}::" for i in range(num_frames)], pa.string())
    frame = np.tile(np.arange(num_frames), len(clips))
    clip = np.repeat(np.arange(len(clips)), num_frames)
    paths = pc.binary_join_element_wise(frames.take(frame), clips.take(clip), "")
    offsets = pa.array(np.arange(0, len(paths) + 1, num_frames, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, paths)


class ClipFrames(AbstractFileSystem):
    """The read-only file system of the frames of one clip.

    Args:
        fo: path of the video file, what stands behind `::`.
    """

    protocol = "frame"
    cachable = False  # fsspec would keep an instance for each clip for good

    def __init__(self, fo: str = "", **kwargs):
        super().__init__()
        self.clip = fo

    def _open(self, path: str, mode: str = "rb", **kwargs) -> io.BytesIO:
        if mode != "rb":
            raise ValueError(f"frames of clips cannot be written: {self.clip}")
        return io.BytesIO(self._picture(path))

    def info(self, path: str, **kwargs) -> dict:
        return {"name": path, "size": len(self._picture(path)), "type": "file"}

    def _picture(self, path: str) -> bytes:
        place = re.fullmatch(r"(?:frame://)?(\d+)of(\d+)", path)
        if not self.clip or not place or int(place[1]) >= int(place[2]):
            raise ValueError(f"no frame to read: frame://{path}::{self.clip}; one is frame://3of8::/path/of/clip.mp4")
        stamp = os.stat(self.clip).st_mtime_ns
        return _pictures(self.clip, stamp, int(place[2]))[int(place[1])]


@lru_cache(maxsize=4)
def _pictures(clip: str, stamp: int, num_frames: int) -> list[bytes]:
    """The frames of the clip as PPM pictures. Consumers read all frames of a row, one after the other: decoded once.

    Kept a process; `lru_cache` holds no lock while it calls, so it neither hinders threads nor breaks forks.
    """
    from modeling_emo_llama.video_frames import read_frames  # brings torch, which pictures do without

    pixels = read_frames(clip, num_frames).pixels
    header = b"P6 %d %d 255\n" % (pixels.shape[2], pixels.shape[1])
    return [header + frame.tobytes() for frame in pixels]
