"""Load a model to ask it: a checkpoint, or an adapter on the checkpoint that it was trained on.

    model, processor = load_checkpoint("runs/quickstart/adapter")

What is none is told in a sentence with a remedy, where `from_pretrained` has a page of traceback.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import find_adapter_config_file

from . import EmoLlamaForConditionalGeneration, EmoLlamaProcessor


def load_checkpoint(
    name: str | Path, device: str | torch.device | None = None, dtype: str = "auto"
) -> tuple[EmoLlamaForConditionalGeneration, EmoLlamaProcessor]:
    """The model, in eval mode, and its processor.

    Args:
        name: a checkpoint folder (`config.json`), an adapter folder (`adapter_config.json`) or the Hub id of either.
        device: the GPU if there is one, else the CPU.
        dtype: "bfloat16" or the like; "auto" is as it was saved.

    Raises:
        ValueError: `name` is nothing of the kind, is another kind of model, or its files are not whole.
    """
    base = base_checkpoint(name)
    try:
        model_type = AutoConfig.from_pretrained(base).model_type
    except (OSError, ValueError) as error:  # not found; found, but it has no config.json that can be read
        raise ValueError(f"{_no_checkpoint(name, base)}: make one with `emo-llama create` ({_line(error)})") from error
    if model_type != "emo_llama":
        raise ValueError(f"{base} is a {model_type!r} and no EMO-LLaMA: make one with `emo-llama create`")
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name} is not whole, copy or make it again ({_line(error)})") from error
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


def base_checkpoint(name: str | Path) -> str:
    """The checkpoint that an adapter was trained on; a checkpoint is its own.

    Raises:
        ValueError: `name` is a folder of neither, or its `adapter_config.json` is broken.
    """
    folder = Path(name)
    if folder.exists() and not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"{folder} is no checkpoint, since it holds neither config.json nor adapter_config.json: "
            "make one with `emo-llama create`, or an adapter with train_sft.py"
        )
    try:
        adapter = find_adapter_config_file(str(name))  # in the folder or on the Hub
    except OSError:  # no name that the Hub can have
        adapter = None
    if adapter is None:
        return str(name)
    try:
        return json.loads(Path(adapter).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{adapter} is not whole, copy or make the adapter again ({_line(error)})") from error


def _no_checkpoint(name: str | Path, base: str) -> str:
    if str(name) == base:
        return f"{name} is no checkpoint that can be read, here or on the Hub"
    return f"{name} is an adapter on {base}, which is no checkpoint that can be read, here or on the Hub"


def _line(error: Exception) -> str:
    """The first line of what a library says."""
    return str(error).partition("\n")[0].rstrip(".")
