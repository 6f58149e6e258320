"""A picture gives LLaVA's pixels bit by bit, or nearly the same ones faster, however it arrives."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, List
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from skimage.data import astronaut
from transformers import AutoImageProcessor, AutoProcessor, LlavaImageProcessorPil
from transformers.image_utils import load_image

from ferid_dataset.collate import FeridCollator, rows_for
from modeling_emo_llama import EmoLlamaImageProcessor, image_processing_emo_llama
from modeling_emo_llama.create_checkpoint import create_checkpoint

SIDE = 56
SETTINGS = {
    "do_pad": True,
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
llava = LlavaImageProcessorPil(**SETTINGS)
parity = EmoLlamaImageProcessor(**SETTINGS)
fast = EmoLlamaImageProcessor(**SETTINGS, fast_jpeg=True)


@pytest.fixture(scope="module")
def fast_checkpoint(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "fast"
    create_checkpoint(out, preset="tiny-random", fast_jpeg=True)
    return out


def photo(width: int, height: int) -> PILImage.Image:
    return PILImage.fromarray(astronaut()).resize((width, height), PILImage.Resampling.LANCZOS)


def encode(picture: PILImage.Image, form: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def decoded(encoded: bytes) -> PILImage.Image:
    return PILImage.open(io.BytesIO(encoded))


def pixels(processor, *pictures) -> torch.Tensor:
    return processor(list(pictures), return_tensors="pt")["pixel_values"]


def psnr(left: torch.Tensor, right: torch.Tensor) -> float:
    error = (left - right) * torch.tensor(SETTINGS["image_std"]).view(3, 1, 1)
    return -10 * math.log10(error.square().mean().item() + 1e-15)


@pytest.mark.parametrize("size", [(56, 56), (300, 200), (33, 71), (512, 512), (7, 5)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_parity_path_is_llavas(size, mode, tmp_path):
    picture = photo(*size).convert(mode)
    assert torch.equal(pixels(parity, picture), pixels(llava, picture))
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture, "PNG"))
    for form in (str(path), path, path.read_bytes()):
        assert torch.equal(pixels(parity, form), pixels(llava, str(path))), "as LLaVA's processor reads the path"
    if mode == "RGB":
        for form in (np.asarray(picture), torch.from_numpy(np.array(picture)).permute(2, 0, 1)):
            assert torch.equal(pixels(parity, form), pixels(llava, form))
        jpeg = tmp_path / "picture.jpg"
        jpeg.write_bytes(encode(picture))
        for form in (str(jpeg), jpeg, jpeg.read_bytes()):
            assert torch.equal(pixels(parity, form), pixels(llava, str(jpeg)))


@pytest.mark.parametrize("processor", [parity, fast], ids=["parity", "fast"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(processor, orientation):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    encoded = encode(photo(SIDE, 40), exif=exif)
    upright = load_image(decoded(encoded))
    assert upright.size == ((SIDE, 40) if orientation < 5 else (40, SIDE))
    torch.testing.assert_close(pixels(processor, encoded), pixels(llava, upright), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "decibels", "scale"),
    [
        ((SIDE, SIDE), 120, (SIDE, SIDE)),  # the decoder's own pixels
        ((SIDE, 20), 120, (20, SIDE)),
        ((100, 100), 65, (100, 100)),
        ((40, 31), 65, (31, 40)),
        ((223, 180), 65, (180, 223)),
        ((224, 160), 45, (80, 112)),
        ((512, 512), 45, (128, 128)),
        ((1280, 960), 45, (120, 160)),
        ((1270, 960), 45, (960, 1270)),  # 155 rows of padding: no half of it
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_path_is_close_to_parity(size, decibels, scale, mode, monkeypatch):
    shapes, decode = [], image_processing_emo_llama.simplejpeg.decode_jpeg

    def decode_jpeg(*args, **kwargs):
        array = decode(*args, **kwargs)
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(image_processing_emo_llama.simplejpeg, "decode_jpeg", decode_jpeg)
    encoded = encode(photo(*size).convert(mode), quality=90)
    made = pixels(fast, encoded)
    assert made.dtype == torch.float32 and made.shape == (1, 3, SIDE, SIDE)
    assert psnr(made, pixels(parity, encoded)) > decibels
    assert shapes == [(*scale, 3)]


def test_fast_path_alone_decodes_jpeg_files(tmp_path):
    """In one batch: what is no JPEG file gives the parity path's pixels, each in its place."""
    (tmp_path / "photo.jpg").write_bytes(encode(photo(300, 200)))
    cmyk = encode(photo(300, 200).convert("CMYK"))
    others = [encode(photo(90, 60), "PNG"), photo(300, 200), np.asarray(photo(300, 201)), cmyk]
    batch = pixels(fast, others[0], tmp_path / "photo.jpg", others[3], encode(photo(64, 64)))
    assert torch.equal(batch[[0, 2]], pixels(parity, others[0], others[3]))
    assert torch.equal(batch[1:2], pixels(fast, str(tmp_path / "photo.jpg")))
    assert torch.equal(batch[3:], pixels(fast, encode(photo(64, 64))))
    for other in others:
        assert torch.equal(pixels(fast, other), pixels(parity, other))
    jpeg = encode(photo(300, 200))
    assert not torch.equal(pixels(fast, jpeg), pixels(parity, jpeg)), "or this test shows nothing"


def test_other_steps_take_the_parity_path():
    jpeg = encode(photo(300, 200))
    for change in ({"do_normalize": False}, {"do_rescale": False}, {"resample": 2}, {"fast_jpeg": False}):
        same = [processor(jpeg, return_tensors="pt", **change)["pixel_values"] for processor in (fast, parity)]
        assert torch.equal(*same), change
    assert torch.equal(parity(jpeg, return_tensors="pt", fast_jpeg=True)["pixel_values"], pixels(fast, jpeg))


@pytest.mark.parametrize("processor", [parity, fast], ids=["parity", "fast"])
def test_broken_jpegs_raise_pillows_error(processor):
    jpeg = encode(photo(300, 200))
    with pytest.raises(OSError, match="image file is truncated"):
        pixels(processor, jpeg[: len(jpeg) // 2])
    with pytest.raises(OSError, match="Truncated File Read"):
        pixels(processor, jpeg[:50])
    for broken in (b"", b"no picture"):
        with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
            pixels(processor, broken)


def test_without_simplejpeg_a_warning_and_the_parity_path(monkeypatch):
    warnings = []
    monkeypatch.setattr(image_processing_emo_llama, "simplejpeg", None)
    monkeypatch.setattr(image_processing_emo_llama.logger, "warning_once", warnings.append)
    jpeg = encode(photo(300, 200))
    assert torch.equal(pixels(fast, jpeg), pixels(llava, decoded(jpeg)))
    assert len(warnings) == 1 and "pip install simplejpeg" in warnings[0]
    pixels(parity, jpeg)
    assert len(warnings) == 1


def test_other_returns():
    jpeg = encode(photo(300, 200))
    for kind in ("np", None):
        np.testing.assert_array_equal(fast([jpeg], return_tensors=kind)["pixel_values"], pixels(fast, jpeg).numpy())


def test_the_processor_reads_the_file_once(fast_checkpoint, tmp_path, monkeypatch):
    """The face's place needs the picture's size, which the header tells: Pillow decodes nothing."""
    processor = AutoProcessor.from_pretrained(fast_checkpoint)
    path = tmp_path / "wide.jpg"
    path.write_bytes(encode(photo(400, 200)))
    face = {"box": [100, 0, 300, 200], "landmarks": [[200.0, 100.0]] * 68, "embedding": [0.5] * 128}
    content = [{"type": "image", "path": str(path), "faces": [face]}, {"type": "text", "text": "How does she feel?"}]
    monkeypatch.setattr(JpegImageFile, "load", lambda self: pytest.fail("Pillow decodes"))
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values"], pixels(fast, str(path)))
    torch.testing.assert_close(inputs["face_boxes"][0, 0], torch.tensor([0.25, 0.25, 0.75, 0.75]))
    torch.testing.assert_close(inputs["face_landmarks"][0, 0, 0], torch.tensor([0.5, 0.5]))


def test_faces_are_found_in_a_picture_that_is_still_encoded(fast_checkpoint):
    processor = AutoProcessor.from_pretrained(fast_checkpoint)
    encoded = encode(photo(512, 512))
    from_bytes = processor(images=encoded, return_tensors="pt")
    from_pixels = processor(images=decoded(encoded), return_tensors="pt")
    assert from_bytes["face_mask"].all()
    for name in ("face_boxes", "face_landmarks", "face_embeddings"):
        assert torch.equal(from_bytes[name], from_pixels[name])


def test_the_choice_is_saved(fast_checkpoint, tiny_checkpoint, tmp_path):
    assert AutoProcessor.from_pretrained(tiny_checkpoint).image_processor.fast_jpeg is False
    processor = AutoProcessor.from_pretrained(fast_checkpoint)
    assert type(processor.image_processor) is EmoLlamaImageProcessor and processor.image_processor.fast_jpeg is True
    changed = AutoProcessor.from_pretrained(tiny_checkpoint, fast_jpeg=True)
    changed.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).fast_jpeg is True


def test_rows_reach_a_fast_checkpoint_encoded(fast_checkpoint, tiny_checkpoint, tmp_path):
    """A JPEG by its path, one inside the row, a PNG, and a picture that only `datasets` can open."""
    jpeg, png = encode(photo(300, 200)), encode(photo(90, 60), "PNG")
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "photo.png").write_bytes(png)
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("inside.jpg", jpeg)
    paths = [
        str(tmp_path / "photo.jpg"),
        None,
        str(tmp_path / "photo.png"),
        f"zip://inside.jpg::{tmp_path}/photos.zip",
    ]
    turns = [{"role": "user", "content": "How does she feel?"}, {"role": "assistant", "content": "happiness"}]
    table = {
        "images": [[{"path": path, "bytes": None if path else jpeg}] for path in paths],
        "messages": [turns] * len(paths),
        "faces": [[[]]] * len(paths),
    }
    rows = Dataset.from_dict(table).cast_column("images", List(Image()))

    slow_processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    assert rows_for(slow_processor, rows) is rows
    processor = AutoProcessor.from_pretrained(fast_checkpoint)
    encoded = rows_for(processor, rows)
    assert encoded[0]["images"] == [{"bytes": None, "path": paths[0]}]
    batch = FeridCollator(processor)([encoded[i] for i in range(len(paths))])
    known = FeridCollator(slow_processor)([rows[i] for i in range(len(paths))])
    expected = [pixels(fast, jpeg), pixels(fast, jpeg), pixels(parity, png), pixels(parity, decoded(jpeg))]
    assert torch.equal(batch.pop("pixel_values"), torch.cat(expected))
    assert torch.equal(
        known.pop("pixel_values"), torch.cat([pixels(parity, form) for form in (jpeg, jpeg, png, jpeg)])
    )
    assert batch.keys() == known.keys() and all(torch.equal(batch[name], known[name]) for name in batch)
