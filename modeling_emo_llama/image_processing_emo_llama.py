"""From a picture to what the vision tower sees: padded to a square, scaled, normalised.

    image_processor = EmoLlamaImageProcessor(do_pad=True, size={"shortest_edge": 224}, fast_jpeg=True)
    image_processor(["face.jpg"], return_tensors="pt")["pixel_values"]        # float32 of shape (1, 3, 224, 224)

The parity path gives the pixels of transformers' LLaVA processor, bit by bit. The fast path (`fast_jpeg`) is for JPEGs
that are given as paths or bytes: 3 to 4 times as fast as Pillow and NumPy, and nearly the same pixels.
"""

import io
import os
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image
from torch.nn import functional as F
from transformers import BatchFeature, LlavaImageProcessorPil
from transformers.image_utils import PILImageResampling, load_image
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

try:
    import simplejpeg
except ModuleNotFoundError:
    simplejpeg = None

logger = logging.get_logger(__name__)


class EmoLlamaImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    fast_jpeg (`bool`, *optional*, defaults to `False`):
        Decode JPEGs with simplejpeg and scale them with PyTorch. It is saved with the checkpoint, so that training and
        evaluation see the same pixels.
    """

    fast_jpeg: bool


class EmoLlamaImageProcessor(LlavaImageProcessorPil):
    r"""
    [`LlavaImageProcessorPil`] that takes encoded pictures (paths and bytes) too, and has a fast path for JPEGs.

    Up to four times the size that is needed, the fast path differs from the other by rounding (PSNR of 70 dB and more
    on photographs). A larger JPEG is decoded at a half, a quarter or an eighth of its size, where that divides its
    sides and its padding evenly and leaves twice what is needed: 51 to 57 dB at 224 pixels.

    The parity path takes all else: pictures that are decoded already, other formats, CMYK, JPEGs that EXIF turns or
    that are broken (Pillow's error is raised), and any other steps than pad, bicubic resize, rescale and normalise.
    """

    valid_kwargs = EmoLlamaImageProcessorKwargs
    fast_jpeg = False

    def fetch_images(self, images):
        """Pictures from paths, URLs, base64 or bytes, upright; a plain JPEG is opened and not yet decoded."""
        if isinstance(images, (str, os.PathLike)) and os.path.isfile(images):
            images = Path(images).read_bytes()
        if not isinstance(images, bytes):
            return super().fetch_images(images)
        picture = Image.open(io.BytesIO(images))
        turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if picture.format != "JPEG" or picture.mode not in ("L", "RGB") or turned:
            return load_image(picture)
        picture.encoded = images
        return picture

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        pictures = self._prepare_images_structure(images)
        if not self._may_be_fast(**kwargs):
            return super()._preprocess_image_like_inputs(pictures, *args, **kwargs)
        side = kwargs["size"].shortest_edge
        mean, std = (torch.tensor(kwargs[name]) for name in ("image_mean", "image_std"))
        scale, shift = ((term / std).repeat(side) for term in (kwargs["rescale_factor"], mean))  # for a row of pixels
        padding = (255 * mean).to(torch.uint8)
        rows = torch.empty(len(pictures), side, side * 3)  # colours last, as decoders write them: nothing is reordered
        pixel_values = rows.view(-1, side, side, 3).permute(0, 3, 1, 2)
        for index, picture in enumerate(pictures):
            square = self._decode(picture, side, padding)
            if square is None:
                slow = super()._preprocess_image_like_inputs([picture], *args, **kwargs | {"return_tensors": "pt"})
                pixel_values[index] = slow["pixel_values"][0]
            else:  # in place, while the picture is in the CPU's cache
                rows[index].copy_(square.view(side, -1)).mul_(scale).sub_(shift)
        return BatchFeature({"pixel_values": pixel_values.numpy()}, tensor_type=kwargs["return_tensors"])

    def _may_be_fast(self, fast_jpeg: bool, size, crop_size, resample, **kwargs: Any) -> bool:
        steps = ("do_pad", "do_resize", "do_rescale", "do_normalize")
        same = all(kwargs[step] for step in steps) and resample == PILImageResampling.BICUBIC
        if not fast_jpeg or not same or not size.shortest_edge == crop_size.height == crop_size.width:
            return False
        if simplejpeg is None:
            logger.warning_once(
                "This checkpoint reads JPEGs with simplejpeg, which is not installed: Pillow reads them, slower and "
                "to slightly different pixels. To have it: pip install simplejpeg"
            )
        return simplejpeg is not None

    def _decode(self, picture, side: int, padding: torch.Tensor) -> torch.Tensor | None:
        """A JPEG as `uint8` of shape `(side, side, 3)`; `None` for what is no JPEG or is broken."""
        if not hasattr(picture, "encoded"):
            return None
        longest = max(picture.size)
        frame = (*picture.size, *((longest - length) // 2 for length in picture.size), longest)
        exact = (n for n in (2, 4, 8) if longest >= 2 * n * side and not any(length % n for length in frame))
        shrink = max(exact, default=1)
        width, height, left, top, longest = (length // shrink for length in frame)
        try:
            pixels = torch.from_numpy(simplejpeg.decode_jpeg(picture.encoded, min_height=height, min_width=width))
        except ValueError:
            return None
        if width != height:
            square = padding.repeat(longest).repeat(longest, 1).view(longest, longest, 3)
            square[top : top + height, left : left + width] = pixels
            pixels = square
        if longest == side:
            return pixels
        pixels = pixels[None].permute(0, 3, 1, 2)  # "channels last" in memory, which PyTorch scales twice as fast
        return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0].permute(1, 2, 0)


__all__ = ["EmoLlamaImageProcessor"]
