"""Pictures and clips on disk: which of the names in a list are there, found by listing folders, not name by name.

    stills("/data/RAF-DB/basic/Image/aligned", ["train_00001_aligned.jpg"])
    -> paths [["/data/RAF-DB/basic/Image/aligned/train_00001_aligned.jpg"]] · problems [None]

A file that is missing, or that a symbolic link leads out of the folder, is a problem told in words. The folder itself
may be a link: where a user keeps a dataset is their business, where a list leads to is ours. Files are not asked their
size, which adds half to the time of a build: that one is empty or broken is found by `verify.py`, which opens it.
"""

import os
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.clip_frames import frame_paths
from ferid_dataset.sources.base import Media

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
OUTSIDE = "a symbolic link leads out of the folder of the media"


def stills(folder: str, names: pa.Array) -> Media:
    """Pictures `folder`/name. Names may hold folders: `689/737db2.jpg`."""
    problems = _problems(folder, names, os.DirEntry.is_file, "file")
    paths = pc.if_else(problems.is_null(), _join(folder, names), pa.scalar(None, pa.string()))
    return Media(pa.ListArray.from_arrays(pa.array(range(len(paths) + 1), pa.int32()), paths), problems)


def videos(folder: str, names: pa.Array, frames: int) -> Media:
    """Clips that are video files: the paths of `frames` frames each, which are decoded when they are read."""
    return Media(frame_paths(_join(folder, names), frames), _problems(folder, names, os.DirEntry.is_file, "file"))


def frame_folders(folder: str, names: pa.Array, frames: int) -> Media:
    """Clips that are folders of pictures: the files at the centres of `frames` equal bins."""
    choose = lru_cache(choose_frames)  # most clips of as many frames name them alike
    problems = _problems(folder, names, os.DirEntry.is_dir, "folder").to_pylist()
    files: list[str | None] = []
    for index, name in enumerate(names.to_pylist()):
        chosen: list[str] = []
        if problems[index] is None:
            try:
                chosen = choose(tuple(os.listdir(f"{folder}/{name}")), frames)
                problems[index] = None if chosen else "the folder of the clip holds no picture"
            except OSError as error:
                problems[index] = f"the clip cannot be read: {error.strerror}"
        files += chosen or [None] * frames
    clips = names.take(pa.array(np.repeat(np.arange(len(names)), frames)))
    paths = pc.binary_join_element_wise(folder, clips, pa.array(files, pa.string()), "/")
    paths = pa.FixedSizeListArray.from_arrays(paths, frames).cast(pa.list_(pa.string()))
    return Media(paths, pa.array(problems, pa.string()))


def choose_frames(files: tuple[str, ...], frames: int) -> list[str]:
    """The pictures at the centres of `frames` equal bins, by the numbers in their names: 2.jpg before 10.jpg.

    As `video_frames.py` of the model does, which would bring torch. A folder of fewer pictures gives some of them more
    than once; one without any gives none.
    """
    pictures = [file for file in files if file.lower().endswith(PICTURES) and file[0] != "." and _is_utf8(file)]
    pictures.sort(key=lambda file: ([int(number) for number in re.findall(r"\d+", file)], file))
    return [pictures[(2 * i + 1) * len(pictures) // (2 * frames)] for i in range(frames)] if pictures else []


def _problems(folder: str, names: pa.Array, is_kind: Callable[..., bool], kind: str) -> pa.Array:
    """What is wrong with each file or folder, null where nothing is."""
    inside = os.path.realpath(folder)
    present: list[str] = []
    odd: dict[str, str] = {}
    for parent in _parents(names):
        prefix = f"{parent}/" if parent else ""
        outside = not _is_inside(os.path.join(folder, parent), inside)
        try:
            with os.scandir(os.path.join(folder, parent)) as found:
                entries = list(found)
        except OSError:  # what it should hold is missing
            continue
        others = entries if outside else [entry for entry in entries if not is_kind(entry, follow_symlinks=False)]
        present += [prefix + entry.name for entry in (set(entries) - set(others) if others else entries)]
        for entry in others:
            name = prefix + entry.name
            if outside or (entry.is_symlink() and not _is_inside(entry.path, inside)):
                odd[name] = OUTSIDE
            elif is_kind(entry):
                present.append(name)
            elif os.path.exists(entry.path):
                odd[name] = f"it is no {kind}"
    absent = pc.invert(pc.is_in(names, _texts(present)))
    reasons = pa.repeat(f"the {kind} is missing", len(names))
    if odd:
        known = _texts(list(odd))
        found = pc.index_in(names, known)
        reasons = pc.coalesce(pa.array([odd[name] for name in known.to_pylist()], pa.string()).take(found), reasons)
    return pc.if_else(absent, reasons, pa.scalar(None, pa.string()))


def _texts(names: list[str]) -> pa.Array:
    """As a column, without those that are not UTF-8: no list can name them."""
    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array(filter(_is_utf8, names), pa.string())


def _parents(names: pa.Array) -> list[str]:
    """The folders that the names are in, relative; "" is the folder itself."""
    return pc.unique(pc.replace_substring_regex(names, r"/?[^/]*$", "")).to_pylist()


def _is_utf8(name: str) -> bool:
    return name.isascii() or name == name.encode(errors="ignore").decode()


def _is_inside(path: str, folder: str) -> bool:
    real = os.path.realpath(path)
    return real == folder or real.startswith(folder.rstrip("/") + "/")


def _join(folder: str, names: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(folder.rstrip("/"), names, "/")
