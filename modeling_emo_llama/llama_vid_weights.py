"""Where the tensors of a LLaMA-VID checkpoint lie, and where each of them goes.

    model.vlm_att_encoder.bert.encoder.layer.0.crossattention.self.key.weight              [768, 1408]
    model.context_attention.qformer.encoder.layer.0.crossattention.attention.key.weight    the same tensor

LLaMA-VID (Li et al., arXiv 2311.17043) is published as shards without its vision tower, which is LAVIS's file
`eva_vit_g.pth`; where a checkpoint lacks the Q-Former too, InstructBLIP's file has the one that it started from.
"""

import json
import pickle
import re
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

EVA_FILE, INSTRUCTBLIP_FILE = "eva_vit_g.pth", "instruct_blip_vicuna7b_trimmed.pth"
EVA_BLOCKS = 39  # LLaMA-VID leaves out the last of EVA-g's 40 blocks
VISION, QFORMER = "model.vision_tower.vision_tower.", "model.vlm_att_encoder.bert."

# The parts of LLaMA-VID by the beginning of their names, and what to do about one that is not there.
COPY, GIVE = "copy the checkpoint again or choose another one", f"give {INSTRUCTBLIP_FILE} with --qformer"
PARTS = {
    "model.embed_tokens.": COPY,
    "lm_head.": COPY,
    "model.mm_projector.": COPY,
    "model.vlm_att_projector.": COPY,
    "model.vlm_att_key_projector.": COPY,
    "model.vlm_att_val_projector.": COPY,
    "model.vlm_att_query": GIVE,
    "model.vlm_att_ln.": GIVE,
    QFORMER: GIVE,
    VISION: f"give {EVA_FILE} with --vision",
}

# Names in the other two files -> LLaMA-VID's names -> ours. The first expression that fits the beginning of a name
# replaces it.
LLAMA_VID_NAMES = {r"": ""}
EVA_NAMES = {r"": VISION}
INSTRUCTBLIP_NAMES = {
    r"query_tokens$": "model.vlm_att_query",
    r"Qformer\.": "model.vlm_att_encoder.",
    r"ln_vision\.": "model.vlm_att_ln.",
    r"": "",
}
OUR_NAMES = {
    r"model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"lm_head\.": r"lm_head.",
    r"model\.mm_projector\.0\.": r"model.multi_modal_projector.linear_1.",
    r"model\.mm_projector\.2\.": r"model.multi_modal_projector.linear_2.",
    r"model\.vlm_att_projector\.": r"model.context_attention.query_projector.",
    r"model\.vlm_att_key_projector\.": r"model.context_attention.key_projector.",
    r"model\.vlm_att_val_projector\.": r"model.context_attention.value_projector.",
    r"model\.vlm_att_query$": r"model.context_attention.query_tokens",
    r"model\.vlm_att_ln\.": r"model.context_attention.vision_norm.",
    QFORMER + r"embeddings\.LayerNorm\.": r"model.context_attention.qformer.embeddings.layernorm.",
    QFORMER + r"(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.": r"model.context_attention.qformer.\1.attention.",
    QFORMER + r"(embeddings|encoder)\.": r"model.context_attention.qformer.\1.",
    VISION + r"cls_token$": r"model.vision_tower.embeddings.class_embedding",
    VISION + r"pos_embed$": r"model.vision_tower.embeddings.position_embedding",
    VISION + r"patch_embed\.proj\.": r"model.vision_tower.embeddings.patch_embedding.",
    VISION + r"blocks\.(\d+)\.norm([12])\.": r"model.vision_tower.encoder.layers.\1.layer_norm\2.",
    VISION + r"blocks\.(\d+)\.attn\.[qv]_bias$": r"model.vision_tower.encoder.layers.\1.self_attn.qkv.bias",
    VISION + r"blocks\.(\d+)\.attn\.qkv\.weight$": r"model.vision_tower.encoder.layers.\1.self_attn.qkv.weight",
    VISION + r"blocks\.(\d+)\.attn\.proj\.": r"model.vision_tower.encoder.layers.\1.self_attn.projection.",
    VISION + r"blocks\.(\d+)\.mlp\.": r"model.vision_tower.encoder.layers.\1.mlp.",
}
POSITIONS = "model.vision_tower.embeddings.position_embedding"
VOCABULARIES = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# What may lie in the files and has no place here, and why.
DROPPED = {
    r".*\.rotary_emb\.inv_freq$": "computed from the config",
    r".*\.position_ids$": "the numbers 0, 1, 2, ...",
    VISION + rf"blocks\.{EVA_BLOCKS}\.": f"LLaMA-VID reads the first {EVA_BLOCKS} blocks",
    VISION + r"(norm|fc_norm|head|lm_head|mask_token)\b": "follows the blocks that LLaMA-VID reads",
    r"model\.vlm_att_encoder\.(cls|bert\.pooler)\.": "follows the layers that LLaMA-VID reads",
    r"(llm_proj|t5_proj|opt_proj|text_proj|vision_proj|itm_head|temp)\b": "InstructBLIP's way to its language model",
    r"(visual_encoder|llm_model|t5_model|opt_model)\.": "InstructBLIP's tower or language model",
}


class Source(NamedTuple):
    """A tensor in a file: `Source(Path("eva_vit_g.pth"), "cls_token", (1, 1, 1408), torch.float16)`."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Sources(dict[str, Source]):
    """Tensors by LLaMA-VID's names; one that is asked for and is not there is a user's mistake."""

    def __missing__(self, name: str):
        raise ValueError(f"the weights lack {name}: copy the checkpoint again or choose another one")


class Outcome(NamedTuple):
    """A line of the report: `Outcome("eva_vit_g.pth", "norm.weight", (1408,), "dropped", "follows the ...")`."""

    file: str  # empty where `status` is "new"
    key: str
    shape: tuple[int, ...]
    status: str  # "used", "dropped", "unknown" or "new"
    note: str  # our name of it, or why it was dropped


def read_headers(folder: Path, vision: str | Path | None, qformer: str | Path | None) -> tuple[Sources, list[Outcome]]:
    """Where each tensor lies, by LLaMA-VID's name for it, and which lie there twice.

    Raises:
        ValueError: a file is missing or is none of tensors, or a whole part of LLaMA-VID is missing.
    """
    files = [(file, LLAMA_VID_NAMES) for file in weight_files(folder)]
    for given, default, names in ((vision, EVA_FILE, EVA_NAMES), (qformer, INSTRUCTBLIP_FILE, INSTRUCTBLIP_NAMES)):
        if given or (folder / default).exists():
            files.append((Path(given or folder / default), names))
    tensors, twice = Sources(), []
    for file, names in files:
        for key, tensor in open_tensors(file).items():
            name, shape = renamed(key, names), tuple(tensor.shape)
            if name in tensors:
                twice.append(Outcome(file.name, key, shape, "dropped", f"{tensors[name].file.name} has it"))
            else:
                tensors[name] = Source(file, key, shape, tensor.dtype)
    lacking = defaultdict(list)
    for part, remedy in PARTS.items():
        if not any(name.startswith(part) for name in tensors):
            lacking[remedy].append(part.rstrip("."))
    if lacking:
        parts = "; ".join(f"{', '.join(names)} ({remedy})" for remedy, names in lacking.items())
        raise ValueError(f"the weights in {folder} lack {parts}")
    return tensors, twice


def weight_files(folder: Path) -> list[Path]:
    """The shards that the index names, or the one file."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if index.exists():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).exists()]
            if missing:
                raise ValueError(f"{folder} lacks {listed(missing)}, named in {index.name}: copy the checkpoint again")
            return [folder / name for name in names]
        if (folder / single).exists():
            return [folder / single]
    raise ValueError(f"{folder} holds neither model*.safetensors nor pytorch_model*.bin: copy the checkpoint again")


def open_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped into memory: each is read when it is used."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}
        # A file from before PyTorch 1.6 is no zip archive and cannot be mapped.
        tensors = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {file}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"{file} is no file of tensors, or is not whole: copy it again") from error
    if isinstance(tensors, dict) and isinstance(tensors.get("model"), dict):  # InstructBLIP's file
        tensors = tensors["model"]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file} does not hold tensors by their names: it is no file of weights")
    return tensors


def renamed(name: str, names: dict[str, str]) -> str | None:
    """The name that the first fitting expression makes of it."""
    for expression, replacement in names.items():
        if re.match(expression, name):
            return re.sub("^" + expression, replacement, name, count=1)
    return None


def assign(tensors: Sources, shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, list[Source]], list[Outcome]]:
    """What each of our parameters is made of, and what becomes of each tensor.

    Args:
        shapes: our parameters that LLaMA-VID has too.

    Raises:
        ValueError: parameters are missing, or a tensor has another shape than its place.
    """
    plan, outcomes, misshapen = defaultdict(list), [], []
    for name, source in tensors.items():
        target = renamed(name, OUR_NAMES)
        status, note = "unknown", ""
        for expression, why in DROPPED.items():
            if re.match(expression, name):
                status, note = "dropped", why
        if status != "dropped" and target in shapes:
            status, note = "used", target
            plan[target].append(source)
            wanted = shape_of_source(target, shapes[target], tensors)
            if source.shape != wanted:
                misshapen.append(f"{source.key} of {source.file.name} is {list(source.shape)} and not {list(wanted)}")
        outcomes.append(Outcome(source.file.name, source.key, source.shape, status, note))
    missing = [name for name in shapes if len(plan[name]) != 1 + name.endswith(".qkv.bias")]  # of q_bias and v_bias
    if missing:
        raise ValueError(f"the weights lack what these parameters are made of: {listed(missing)}")
    if misshapen:
        raise ValueError(f"shapes do not fit the other tensors and config.json: {listed(misshapen)}")
    return plan, outcomes


def shape_of_source(target: str, shape: tuple[int, ...], tensors: Sources) -> tuple[int, ...]:
    """The shape that a tensor must have to become our parameter `target` of `shape`."""
    if target.endswith(".qkv.bias"):  # of q and of v
        return (shape[0] // 3,)
    if target == POSITIONS:  # any grid is interpolated
        return (1, tensors[VISION + "pos_embed"].shape[1], shape[2])
    if target in VOCABULARIES:  # rows are added
        return (tensors["model.embed_tokens.weight"].shape[0], shape[1])
    return shape


def listed(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
