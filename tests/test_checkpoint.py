"""A checkpoint folder loads anywhere: in a new process that has transformers and knows nothing of this project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.dynamic_module_utils import get_imports

from modeling_emo_llama import EmoLlamaForConditionalGeneration
from modeling_emo_llama.create_checkpoint import create_checkpoint

# What a stranger runs. The finder makes sure that our packages cannot be imported, installed or not.
BLOCK = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_emo_llama", "ferid_dataset"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""
LOAD = """
import numpy, os, torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline

def logits(folder, cls=AutoModelForImageTextToText):
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = cls.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    picture = {"type": "image", "image": Image.open("face.png"), "faces": json.load(open("faces.json"))}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "How does she feel?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model, processor, inputs, model(**inputs)
"""
FIRST = """
found = {}
for cls in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model, processor, inputs, outputs = logits("tiny", cls)
    numpy.save(cls.__name__, outputs.logits.numpy())
    found[cls.__name__] = type(model).__name__
found["AutoProcessor"] = type(processor).__name__
found["AutoImageProcessor"] = type(AutoImageProcessor.from_pretrained("tiny", trust_remote_code=True)).__name__
base, _, _, outputs = logits("tiny", AutoModel)
found["AutoModel"] = type(base).__name__
numpy.save("AutoModel", model.lm_head(outputs.last_hidden_state).detach().numpy())
config = AutoConfig.from_pretrained("tiny", trust_remote_code=True)
found["AutoConfig"], found["image_seq_length"] = type(config).__name__, config.image_seq_length
found["tokenizer"] = AutoTokenizer.from_pretrained("tiny", trust_remote_code=True).encode("<image>")
found["tokens"] = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)[0, -5:].tolist()
os.mkdir("frames")
Image.open("face.png").save("frames/1.png")
content = [{"type": "video", "path": "frames"}, {"type": "text", "text": "How does she feel?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"use_faces": False, "num_frames": 3},
)
found["clip"] = [*inputs["pixel_values_videos"].shape, (inputs["input_ids"] == config.video_token_id).sum().item()]
found["clip_tokens"] = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)[0, -5:].tolist()
try:
    AutoModelForImageTextToText.from_pretrained("tiny", trust_remote_code=False)
except ValueError as error:
    found["refusal"] = str(error)
model.save_pretrained("saved elsewhere")
processor.save_pretrained("saved elsewhere")
print(json.dumps(found))
"""
SECOND = """
for folder in ("saved elsewhere", "saved here"):
    model, processor, inputs, outputs = logits(folder)
    numpy.save(folder, outputs.logits.numpy())
pipe = pipeline("image-text-to-text", model="saved here", trust_remote_code=True)
content = [{"type": "image", "path": "face.png"}, {"type": "text", "text": "How does she feel?"}]
[answer] = pipe([{"role": "user", "content": content}], max_new_tokens=3, processor_kwargs={"use_faces": False})
print(json.dumps({"answer": answer["generated_text"][-1]}))
"""


def run_as_a_stranger(code: str, folder: Path) -> dict:
    """What `code` prints as its last line, run in `folder` by an isolated Python without our packages."""
    command = [sys.executable, "-I", "-c", BLOCK + LOAD + code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory) -> Path:
    """A working folder: a copy of the checkpoint, one that was loaded here and saved again, a picture and its face."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).save_pretrained(folder / "saved here")
    AutoProcessor.from_pretrained(tiny_checkpoint).save_pretrained(folder / "saved here")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(folder / "face.png")
    face = {"box": [4, 4, 36, 36], "landmarks": rng.uniform(4, 36, (68, 2)).tolist()}
    face["embedding"] = rng.normal(size=128).tolist()
    (folder / "faces.json").write_text(json.dumps([face]))
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    """The logits in this process, with the classes of the package."""
    model = AutoModelForImageTextToText.from_pretrained(folder / "tiny", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder / "tiny")
    faces = json.loads((folder / "faces.json").read_text())
    picture = {"type": "image", "image": Image.open(folder / "face.png"), "faces": faces}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "How does she feel?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**inputs).logits.numpy()


@pytest.fixture(scope="module")
def first(folder) -> dict:
    return run_as_a_stranger(FIRST, folder)


@pytest.fixture(scope="module")
def second(folder, first) -> dict:
    return run_as_a_stranger(SECOND, folder)


def test_literal_calls_elsewhere(first):
    assert first["AutoModel"] == "EmoLlamaModel"
    assert first["AutoModelForImageTextToText"] == "EmoLlamaForConditionalGeneration"
    assert first["AutoModelForMultimodalLM"] == "EmoLlamaForConditionalGeneration"
    assert first["AutoProcessor"] == "EmoLlamaProcessor"
    assert first["AutoImageProcessor"] == "EmoLlamaImageProcessor"
    assert first["AutoConfig"] == "EmoLlamaConfig" and first["image_seq_length"] == 13
    assert len(first["tokenizer"]) == 1 and len(first["tokens"]) == 5
    assert first["clip"] == [3, 3, 56, 56, 3 * 10] and len(first["clip_tokens"]) == 5
    assert "trust_remote_code" in first["refusal"]


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"])
def test_same_logits_elsewhere(name, first, folder, expected):
    np.testing.assert_allclose(np.load(folder / f"{name}.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["saved elsewhere", "saved here"])
def test_saved_again_and_loaded_elsewhere(name, second, folder, expected):
    """From the classes of the remote code, and from those of the package."""
    files = {file.name for file in (folder / name).glob("*.py")}
    assert files == {file.name for file in (folder / "tiny").glob("*.py")} >= {"modeling_emo_llama.py"}
    np.testing.assert_allclose(np.load(folder / f"{name}.npy"), expected, atol=1e-5)


def test_pipeline_elsewhere(second):
    assert second["answer"]["role"] == "assistant" and isinstance(second["answer"]["content"], str)


def test_registered_classes_need_no_remote_code(tiny_checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    assert type(model) is EmoLlamaForConditionalGeneration


def test_remote_code_files_import_only_what_they_may(tiny_checkpoint):
    """transformers imports each file by itself: a module that is not there would be asked of every user."""
    allowed = {"__future__", *sys.stdlib_module_names, "torch", "transformers", "huggingface_hub", "numpy", "PIL"}
    for file in tiny_checkpoint.glob("*.py"):
        assert set(get_imports(file)) <= allowed, file.name  # inside functions too, but not inside `try`


def test_weights_are_the_seeds(tiny_checkpoint, tmp_path):
    create_checkpoint(tmp_path / "same", preset="tiny-random")
    create_checkpoint(tmp_path / "other", preset="tiny-random", seed=1)
    weights = [(path / "model.safetensors").read_bytes() for path in (tiny_checkpoint, tmp_path / "same")]
    assert weights[0] == weights[1] != (tmp_path / "other" / "model.safetensors").read_bytes()


def test_nothing_is_loaded_at_random(tiny_checkpoint, caplog):
    _, report = EmoLlamaForConditionalGeneration.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize(("compress_type", "length"), [("mean", 10), ("grid:3", 18)])
def test_compress_type_reaches_model_and_processor(tmp_path, compress_type, length):
    create_checkpoint(tmp_path / "out", preset="tiny-random", compress_type=compress_type)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.image_seq_length == length
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_seq_length == length


def test_create_over_an_older_checkpoint(tmp_path):
    create_checkpoint(tmp_path / "out", preset="tiny-random", seed=1)
    (tmp_path / "out" / "leftover.bin").write_text("of the older one")
    create_checkpoint(tmp_path / "out", preset="tiny-random", seed=2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "leftover.bin").exists()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({}, "give --preset .*, or both --vision and --text"),
        ({"vision": "somewhere"}, "both --vision and --text"),
        ({"preset": "huge"}, "unknown preset 'huge': choose one of quickstart, tiny-random"),
        ({"preset": "tiny-random", "compress_type": "grid:0"}, "compress_type='grid:0': use 'mean' or 'grid:n'"),
    ],
)
def test_wrong_requests_write_nothing(tmp_path, kwargs, words):
    with pytest.raises(ValueError, match=words):
        create_checkpoint(tmp_path / "out", **kwargs)
    assert not list(tmp_path.iterdir())


def test_create_spares_what_is_no_checkpoint(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"precious")
    for out in (tmp_path / "photos", tmp_path / "photos" / "mine.jpg"):
        with pytest.raises(FileExistsError, match="exists and is not a checkpoint"):
            create_checkpoint(out, preset="tiny-random")
    assert (tmp_path / "photos" / "mine.jpg").read_bytes() == b"precious"
    create_checkpoint(tmp_path / "new" / "parents" / "out", preset="tiny-random")
    (tmp_path / "empty").mkdir()
    create_checkpoint(tmp_path / "empty", preset="tiny-random")
    assert (tmp_path / "empty" / "config.json").exists()
