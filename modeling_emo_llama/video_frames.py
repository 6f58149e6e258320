"""The frames of a clip at the centres of N equal bins: from a video file, or from a folder of pictures.

    read_frames("MAFW/data/clips/00025.mp4", 8) ->
    Frames(pixels=uint8[8, 720, 1280, 3], indices=[6, 18, 31, 43, 56, 68, 81, 93], num_frames_in_clip=100, ...)

Two readers, of which a clip gets the same frames and, at its own size, the same RGB bit for bit: PyAV where it is
installed (`pip install 'emo-llama[fast]'`), which decodes no more than it must, else decord. Frames are upright:
rotation metadata are applied. A reader lives no longer than its call, so that worker processes may be forked.
"""

import os
import re
from collections.abc import Container, Iterable, Iterator
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


class Frames(NamedTuple):
    pixels: np.ndarray  # uint8 [N, H, W, 3], RGB
    indices: list[int]  # N, which frames of the clip they are; a clip of fewer frames gives some more than once
    num_frames_in_clip: int  # that can be decoded
    truncated: bool  # the clip ends before it should, and the bins are those of what is there


def bin_centres(num_frames_in_clip: int, num_frames: int) -> list[int]:
    """The indices `int((i + 0.5) * T / N)` of the frames at the centres of N equal bins of a clip of T frames.

    Raises:
        ValueError: either number is less than 1.
    """
    if num_frames_in_clip < 1 or num_frames < 1:
        raise ValueError(f"cannot choose {num_frames} of {num_frames_in_clip} frames: both must be 1 or more")
    return [(2 * i + 1) * num_frames_in_clip // (2 * num_frames) for i in range(num_frames)]


def frame_files(names: Iterable[str]) -> list[str]:
    """Those of the names in a folder that are pictures, by the numbers in them: 2.jpg before 10.jpg."""
    pictures = [name for name in names if name.lower().endswith(PICTURES) and not name.startswith(".")]
    return sorted(pictures, key=lambda name: ([int(number) for number in re.findall(r"\d+", name)], name))


def read_frames(
    path: str | os.PathLike, num_frames: int, size: tuple[int, int] | None = None, reader: str | None = None
) -> Frames:
    """Reads the frames of a clip at the centres of `num_frames` equal bins.

    Args:
        path: a video file, or a folder whose pictures are the frames in the order of their numbers.
        num_frames: how many; more than the clip has repeats some.
        size: (height, width) in pixels, to which the decoder resizes; the clip's own size by default. Resized frames
            are the same of both readers, their pixels differ by about 2 of 255.
        reader: "pyav" or "decord"; PyAV where it is installed by default.

    Of a file that was cut short the frames that are there are taken, and `truncated` tells it. With decord a cut mp4
    is mostly an error, and other cut files go unnoticed; a cut webm does so with PyAV, too.

    Raises:
        ValueError: `num_frames` is less than 1, or there is no such reader.
        OSError: the clip is missing, empty, no video, or no frame of it can be decoded.
        ImportError: no reader is installed.
    """
    path = os.path.abspath(path)  # FFmpeg takes "take:1.mp4" for a protocol
    if num_frames < 1:
        raise ValueError(f"num_frames must be 1 or more, not {num_frames}")
    if reader not in (None, "pyav", "decord"):
        raise ValueError(f'there is no reader {reader!r}: choose "pyav" or "decord"')
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no clip {path}")
    if os.path.isdir(path):
        read = _read_folder
    elif not os.path.getsize(path):
        raise OSError(f"{path} is empty")
    else:
        reader = reader or ("pyav" if find_spec("av") else "decord")
        read = _read_with_pyav if reader == "pyav" else _read_with_decord
    found, num_frames_in_clip, truncated = read(path, num_frames, size)
    indices = bin_centres(num_frames_in_clip, num_frames)
    return Frames(np.stack([found[index] for index in indices]), indices, num_frames_in_clip, truncated)


# What a reader returns: pixels of the wanted frames by index, how many frames the clip has, whether it was cut short.
Found = tuple[dict[int, np.ndarray], int, bool]


def _pyav():
    """The package, imported inside `try` alone: what remote code imports elsewhere is asked of every user."""
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise ImportError("the reader pyav needs: pip install 'emo-llama[fast]'") from error
    return av


def _read_with_pyav(path: str, num_frames: int, size: tuple[int, int] | None) -> Found:
    """Decodes only what the wanted frames need; everything, if the file is damaged or does not tell what that is."""
    av = _pyav()
    try:
        # Opening would decode a picture to describe it. The decoder proper, which is another one, skips nothing.
        with av.open(path, options={"skip_frame": "all"}, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise OSError(f"{path} has no video stream, or one that FFmpeg does not know")
            frames, total, truncated = _decode(container, stream, num_frames)
            if not frames:
                raise OSError(f"no frame of {path} can be decoded")
    except av.FFmpegError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    if not (size or truncated or _same_rgb_everywhere(frames)) and find_spec("decord"):
        return _read_with_decord(path, num_frames, size)
    return _upright_rgb(frames, size), total, truncated


def _decode(container, stream, num_frames: int) -> tuple[dict, int, bool]:
    """The wanted frames by index, how many frames there are, and whether the clip was cut short."""
    av = _pyav()
    packets, truncated = _demux(container, stream)
    codec = stream.codec_context
    codec.thread_count = 1
    codec.open(strict=False)  # now, since AV1's looks at `skip_frame` but once
    shown = [packet.pts for packet in packets if not packet.is_discard]
    if shown and not truncated and _times_tell_order(container, codec, packets):
        times = sorted(shown)
        index_of = {times[index]: index for index in bin_centres(len(times), num_frames)}
        try:
            decoded = _decode_wanted(codec, packets, index_of)
            frames = {index_of[frame.pts]: frame for frame in decoded if frame.pts in index_of}
        except av.FFmpegError:
            frames, truncated = {}, True
        if len(frames) == len(index_of):
            return frames, len(times), False
    total = sum(1 for _ in _decode_all(codec, packets))
    wanted = set(bin_centres(total, num_frames)) if total else ()
    return {i: frame for i, frame in enumerate(_decode_all(codec, packets)) if i in wanted}, total, truncated


def _demux(container, stream) -> tuple[list, bool]:
    """The packets of the stream in decoding order, and whether the file ends within one, be it of sound, or early."""
    av = _pyav()
    packets, cut = [], False
    try:
        for packet in container.demux():
            cut = cut or packet.is_corrupt
            if packet.size and packet.stream_index == stream.index:
                packets.append(packet)
    except av.FFmpegError:
        cut = True
    if stream.duration:  # webm and flv do not say
        end = max(((packet.pts or 0) + (packet.duration or 0) for packet in packets), default=0)
        cut = cut or end - (stream.start_time or 0) < 0.95 * stream.duration
    return packets, cut


def _times_tell_order(container, codec, packets: list) -> bool:
    """Whether the order of the presentation times is that of the frames.

    AVI stores no times. Those that FFmpeg makes up are right for MPEG-4 Part 2, unless B-frames are packed together
    with other frames, which leaves nearly empty packets behind.
    """
    times = {packet.pts for packet in packets}
    if None in times or len(times) < len(packets):
        return False
    if codec.name == "mpeg4":
        return all(packet.size > 19 for packet in packets)
    return container.format.name != "avi"


def _decode_wanted(codec, packets: list, times: Container[int]) -> Iterator:
    """Yields the frames shown at `times`, and few others.

    Decoding starts at the last keyframe that is both decoded and shown before a wanted frame (the first frames after a
    keyframe may need the group of pictures before it), ends at the frame, and leaves out frames that no other needs.
    """
    keyframes = [i for i, packet in enumerate(packets) if packet.is_keyframe]
    done = 0
    for wanted in [i for i, packet in enumerate(packets) if packet.pts in times]:
        shown = packets[wanted].pts
        start = max((i for i in keyframes if i <= wanted and packets[i].pts <= shown), default=0)
        if start > done:
            yield from codec.decode(None)
            codec.flush_buffers()
            done = start
        for packet in packets[done : wanted + 1]:
            codec.skip_frame = "DEFAULT" if packet.pts in times else "NONREF"
            yield from codec.decode(packet)
        done = wanted + 1
    yield from codec.decode(None)


def _decode_all(codec, packets: list) -> Iterator:
    """Yields every frame that can be decoded."""
    av = _pyav()
    codec.flush_buffers()
    codec.skip_frame = "DEFAULT"
    for packet in (*packets, None):
        try:
            yield from codec.decode(packet)
        except av.FFmpegError:
            continue


def _same_rgb_everywhere(frames: dict) -> bool:
    """Whether the FFmpeg 4 in decord and that in PyAV make the same RGB of such frames.

    They blend differently where a row of colours belongs to a lone row of brightness, and above 8 bits.
    """
    frame = next(iter(frames.values()))
    return frame.width % 2 == frame.height % 2 == 0 and frame.format.components[0].bits == 8


def _upright_rgb(frames: dict, size: tuple[int, int] | None) -> dict[int, np.ndarray]:
    """RGB by index, [H, W, 3], all of one size even if the clip changes its own."""
    first = next(iter(frames.values()))
    swscale = _pyav().video.reformatter.VideoReformatter()  # one for all: setting it up is dear
    found = {}
    for index, frame in frames.items():
        quarter_turns = round(frame.rotation / 90)  # counterclockwise
        height, width = size or (first.height, first.width)
        if size and quarter_turns % 2:
            height, width = width, height
        rgb = swscale.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        found[index] = np.rot90(rgb.to_ndarray(), quarter_turns)
    return found


def _read_with_decord(path: str, num_frames: int, size: tuple[int, int] | None) -> Found:
    """Decodes frame after frame: decord's own seeking finds wrong frames where groups of pictures are open."""
    try:
        import decord
    except ImportError as error:
        raise ImportError("reading clips needs: pip install decord, or 'emo-llama[fast]' for PyAV") from error
    height, width = size or (-1, -1)
    found = {}
    try:
        # By default decord repeats a frame in place of one that it cannot decode.
        reader = decord.VideoReader(path, width=width, height=height, num_threads=1, fault_tol=1e-6)
        starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]  # seconds; about -1e17 where there is none
        total = len(reader) - int(((starts < 0) & (starts > -1e9)).sum())  # those before the start are not shown
        wanted = set(bin_centres(total, num_frames))
        for index in range(max(wanted) + 1):
            frame = reader.next()
            if index in wanted:
                rows = frame.asnumpy().reshape(frame.shape[0], -1)  # of narrow clips they come with padding
                found[index] = rows[:, : 3 * frame.shape[1]].reshape(*frame.shape[:2], 3)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, AssertionError, StopIteration) as error:
        raise OSError(
            f"{path} is not a video, or damaged: decord cannot read it (PyAV may: pip install 'emo-llama[fast]')"
        ) from error
    return found, total, False


def _read_folder(path: str, num_frames: int, size: tuple[int, int] | None) -> Found:
    from PIL import Image

    files = frame_files(os.listdir(path))
    if not files:
        raise OSError(f"{path} holds no picture ({', '.join(PICTURES)})")
    found = {}
    for index in set(bin_centres(len(files), num_frames)):
        file = os.path.join(path, files[index])
        try:
            with Image.open(file) as image:
                image = image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
            raise OSError(f"{file} cannot be read: {error}") from error
        found[index] = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image)
    if len({pixels.shape for pixels in found.values()}) > 1:
        raise OSError(f"the frames in {path} are not of one size: give the size to resize them to")
    return found, len(files), False
