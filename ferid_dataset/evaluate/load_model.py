"""Loads the model that is to be evaluated: EMO-LLaMA, or any other image-text-to-text model, or an adapter on one.

model, processor = load_model("runs/quickstart/adapter")
model, processor = load_model("llava-hf/llava-1.5-7b-hf", device="cuda:1", dtype="bfloat16")
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ferid_dataset.errors import FeridError
from modeling_emo_llama.load_checkpoint import base_checkpoint, load_checkpoint

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
):
    """
    Args:
        name (`str` or `Path`):
            A checkpoint folder, an adapter folder, or the Hub id of either.
        device (`str` or `torch.device`, *optional*):
            The GPU if there is one, else the CPU.
        dtype (`str`, *optional*):
            "bfloat16" on a GPU, else "auto", which is as it was saved.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that lies beside the weights of a model that transformers does not know may run.

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: the model in eval mode, and its processor with a padding token.

    Raises:
        [`FeridError`]: there is no such model, device or dtype, it takes no pictures, or its files are not whole.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "auto")
    if dtype not in DTYPES:
        raise FeridError(f"there is no dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    try:
        if _is_another(name, trust_remote_code):
            model, processor = _load_another(name, device, dtype, trust_remote_code)
        else:
            model, processor = load_checkpoint(name, device, dtype)
    except ValueError as error:
        raise FeridError(str(error)) from error
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), processor


def _is_another(name: str | Path, trust_remote_code: bool) -> bool:
    """Whether it is an image-text-to-text model, but no EMO-LLaMA."""
    try:
        config = AutoConfig.from_pretrained(base_checkpoint(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # load_checkpoint has a sentence for it
        return False
    known = type(config) in AutoModelForImageTextToText._model_mapping
    brought = "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
    return config.model_type != "emo_llama" and (known or brought)


def _load_another(name: str | Path, device: torch.device, dtype: str, trust_remote_code: bool):
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=trust_remote_code)
        return model.to(device), _processor(name, trust_remote_code)
    except (ValueError, OSError, ImportError, AttributeError, SafetensorError) as error:
        # transformers raises each of these for a file that is missing or not whole, a package that it lacks, ...
        raise ValueError(f"{name} cannot be loaded: {' '.join(str(error).split())[:500]}") from error


def _processor(name: str | Path, trust_remote_code: bool):
    """That of the adapter if it has one, else that of the checkpoint below it."""
    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ValueError, OSError):
        if (base := base_checkpoint(name)) == str(name):
            raise
        return AutoProcessor.from_pretrained(base, trust_remote_code=trust_remote_code)
