"""Convert a LLaMA-VID checkpoint (Li et al., arXiv 2311.17043) into an EMO-LLaMA checkpoint.

    emo-llama convert-llama-vid llama-vid-7b-full-224-video-fps-1 OUT --vision eva_vit_g.pth --qformer-tokenizer BERT

LLaMA-VID's weights are taken over as they are, so context and content tokens stay the same; Face Info Mining is new
and random, from `seed`. Files are mapped into memory and OUT is written shard by shard: no more than one shard of OUT
is in memory at a time. `OUT/conversion.json` tells what became of each tensor:

    {"file": "eva_vit_g.pth", "key": "norm.weight", "shape": [1408], "status": "dropped", "note": "follows the ..."}
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.utils import tqdm
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import (
    BertTokenizer,
    Blip2VisionConfig,
    GenerationConfig,
    InstructBlipQFormerConfig,
    LlamaConfig,
    LlamaTokenizer,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from . import EmoLlamaConfig, EmoLlamaFaceConfig, EmoLlamaForConditionalGeneration, EmoLlamaProcessor
from .chat_templates import VICUNA
from .create_checkpoint import square_image_processor
from .face_analysis import analyzer_class
from .llama_vid_weights import (
    EVA_BLOCKS,
    POSITIONS,
    QFORMER,
    VISION,
    VOCABULARIES,
    Outcome,
    Source,
    Sources,
    assign,
    listed,
    open_tensors,
    read_headers,
)

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
MAX_SHARD_BYTES = 2 * 10**9
NEW = "model.face_info_mining."
# As LLaMA-VID writes a chat: with a system prompt, and without a space before the answer that is to come.
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CHAT_TEMPLATE = VICUNA.template.replace(
    "{{- bos_token -}}",
    '{{- bos_token -}}{%- if messages[0]["role"] != "system" -%}{{ "' + SYSTEM_PROMPT + '" }}{%- endif -%}',
).replace("add_generation_prompt -%}{{ 'ASSISTANT: ' }}", "add_generation_prompt -%}{{ 'ASSISTANT:' }}")
# What config.json must say: the kinds of LLaMA-VID that were published.
SETTINGS = {"mm_projector_type": "mlp2x_gelu", "bert_type": "qformer_pretrain.*", "mm_vision_select_feature": "patch"}


def convert_llama_vid(
    source: str | Path,
    out: str | Path,
    *,
    vision: str | Path | None = None,
    qformer: str | Path | None = None,
    qformer_tokenizer: str | Path | None = None,
    image_size: int | None = None,
    face_backend: str = "dlib",
    drop_unknown: bool = False,
    seed: int = 0,
) -> list[Outcome]:
    """Write a checkpoint folder that `from_pretrained(..., trust_remote_code=True)` loads anywhere.

    Args:
        source: LLaMA-VID's folder: `config.json`, the tokenizer's files, `pytorch_model*.bin` or `model*.safetensors`.
        out: the folder to write. It appears only when it is complete; one that exists already is replaced if it is
            a checkpoint.
        vision, qformer: EVA's `eva_vit_g.pth` and InstructBLIP's `instruct_blip_vicuna7b_trimmed.pth`, where `source`
            does not hold them. They fill what is absent from the checkpoint's own weights.
        qformer_tokenizer: folder of the tokenizer of bert-base-uncased, where `source` has no `bert-base-uncased/`.
        image_size: pixels a side. Default: the number that ends the config's `image_processor`, else the size of the
            stored position embedding. An embedding of another size is interpolated, as LLaMA-VID does.
        face_backend: whose face priors the checkpoint is made for, as [`load_face_analyzer`] names it.
        drop_unknown: leave out tensors that have no place, instead of refusing.
        seed: of the weights of Face Info Mining.

    Returns:
        What became of each tensor.

    Raises:
        ValueError: something is missing, unknown, misshapen or not what its place needs.
        FileExistsError: `out` exists and is no checkpoint.
    """
    source, out = Path(source), Path(out)
    settings = read_settings(source)
    tensors, report = read_headers(source, vision, qformer)
    words = tensors[QFORMER + "embeddings.word_embeddings.weight"].shape[0]
    tokenizers = load_tokenizer(source), load_qformer_tokenizer(source, qformer_tokenizer, words)
    config = emo_llama_config(settings, tensors, tokenizers[0], image_size, face_backend)
    with torch.device("meta"):
        model = EmoLlamaForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if not name.startswith(NEW)}
    plan, outcomes = assign(tensors, shapes)
    unknown = [line.key for line in outcomes if line.status == "unknown"]
    if unknown and not drop_unknown:
        raise ValueError(f"{source} has tensors without a place: {listed(unknown)} (--drop-unknown leaves them out)")

    with complete_or_absent(out) as folder:
        new = new_parameters(model, seed)
        write_model(folder, model, plan, new)
        build_processor(config, *tokenizers, face_backend).save_pretrained(folder)
        report += outcomes + [Outcome("", name, tuple(tensor.shape), "new", name) for name, tensor in new.items()]
        rows = ",\n".join(json.dumps(line._asdict()) for line in report)
        (folder / "conversion.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    return report


def read_settings(source: Path) -> dict:
    """LLaMA-VID's `config.json`."""
    try:
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{source} holds no config.json: name the folder of a LLaMA-VID checkpoint") from error
    except ValueError as error:
        raise ValueError(f"{source / 'config.json'} is not whole: copy it again ({error})") from error
    for name, wanted in SETTINGS.items():
        if name not in settings:
            raise ValueError(
                f"{source} is a {settings.get('model_type')!r} and no LLaMA-VID: its config has no {name}"
            )
        if not re.fullmatch(wanted, str(settings[name])):
            raise ValueError(f"{source} has the {name} {settings[name]!r}: only {wanted!r} can be converted")
    return settings


def load_tokenizer(source: Path) -> LlamaTokenizer:
    """LLaMA-VID's tokenizer, with the placeholders of a picture and of a clip."""
    if not (source / "tokenizer.json").exists():
        if not (source / "tokenizer.model").exists():
            raise ValueError(f"{source} holds neither tokenizer.model nor tokenizer.json: copy the checkpoint again")
        if not is_sentencepiece_available() or not is_protobuf_available():
            raise ValueError(f"{source / 'tokenizer.model'} needs two packages: pip install sentencepiece protobuf")
    tokenizer = LlamaTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"  # only `init_kwargs` are saved
    return tokenizer


def load_qformer_tokenizer(source: Path, folder: str | Path | None, words: int) -> BertTokenizer:
    """BERT's tokenizer, with the token that LLaMA-VID adds to it."""
    folder = Path(folder or source / "bert-base-uncased")
    if not any((folder / name).exists() for name in ("vocab.txt", "tokenizer.json")):
        raise ValueError(
            f"{folder} holds no tokenizer (vocab.txt or tokenizer.json): "
            "give the folder of the tokenizer of bert-base-uncased with --qformer-tokenizer"
        )
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    if len(tokenizer) != words:
        raise ValueError(
            f"{folder} has {len(tokenizer)} words with [DEC], and the Q-Former knows {words}: give its own"
        )
    tokenizer.init_kwargs["truncation_side"] = tokenizer.truncation_side = "left"
    return tokenizer


def emo_llama_config(
    settings: dict, tensors: Sources, tokenizer: LlamaTokenizer, image_size: int | None, face_backend: str
) -> EmoLlamaConfig:
    """The sizes: the language model's from LLaMA-VID's config, all others from the tensors."""
    names = (*LlamaConfig.__annotations__, "rope_theta", "rope_scaling")
    text = LlamaConfig(**{name: settings[name] for name in names if name in settings})
    text.vocab_size = -(-max(len(tokenizer), tensors["model.embed_tokens.weight"].shape[0]) // 64) * 64

    positions, width = tensors[VISION + "pos_embed"].shape[1:]
    patch = tensors[VISION + "patch_embed.proj.weight"].shape[-1]
    named = re.search(r"\d+$", str(settings.get("image_processor")).rstrip("/"))
    stored = round((positions - 1) ** 0.5) * patch
    side = (image_size or (int(named[0]) if named else stored)) // patch
    compress_type = settings.get("compress_type") or "none"
    if compress_type.startswith("grid:") and side % int(compress_type.removeprefix("grid:")):
        raise ValueError(f"compress_type {compress_type!r} does not divide the {side} x {side} patches")

    layer = QFORMER + r"encoder\.layer\.(\d+)\."
    words, qformer_width = tensors[QFORMER + "embeddings.word_embeddings.weight"].shape
    analyzer = analyzer_class(face_backend)
    config = EmoLlamaConfig(
        text_config=text,
        vision_config=Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=tensors[VISION + "blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=EVA_BLOCKS,
            image_size=side * patch,
            patch_size=patch,
        ),
        vision_final_norm=False,
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=words,
            hidden_size=qformer_width,
            intermediate_size=tensors[QFORMER + "encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=1 + max(int(found[1]) for found in map(re.compile(layer).match, tensors) if found),
            max_position_embeddings=tensors[QFORMER + "embeddings.position_embeddings.weight"].shape[0],
            encoder_hidden_size=width,
        ),
        face_config=EmoLlamaFaceConfig(num_landmarks=analyzer.num_landmarks, embedding_size=analyzer.embedding_size),
        num_query_tokens=settings.get("num_query", 32),
        compress_type=compress_type,
        clip_compress_type=compress_type,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=tensors["model.embed_tokens.weight"].dtype,
    )
    config.auto_map = {
        "AutoModel": "modeling_emo_llama.EmoLlamaModel",
        "AutoModelForMultimodalLM": "modeling_emo_llama.EmoLlamaForConditionalGeneration",
    }
    return config


def build_processor(
    config: EmoLlamaConfig, tokenizer: LlamaTokenizer, qformer_tokenizer: BertTokenizer, face_backend: str
) -> EmoLlamaProcessor:
    """Pictures are padded to a square, as the stills that LLaMA-VID was trained on."""
    return EmoLlamaProcessor(
        square_image_processor(config.vision_config.image_size, CLIP_MEAN, CLIP_STD),
        tokenizer,
        qformer_tokenizer,
        image_seq_length=config.image_seq_length,
        frame_seq_length=config.frame_seq_length,
        num_landmarks=config.face_config.num_landmarks,
        embedding_size=config.face_config.embedding_size,
        max_faces=config.face_config.max_faces,
        face_backend=face_backend,
        user_turn=VICUNA.user_turn,
        chat_template=CHAT_TEMPLATE,
    )


def new_parameters(model: EmoLlamaForConditionalGeneration, seed: int) -> dict[str, torch.Tensor]:
    """What LLaMA-VID does not have, from `seed`."""
    torch.manual_seed(seed)
    module = model.model.face_info_mining.to_empty(device="cpu").apply(model._init_weights)
    return {NEW + name: tensor for name, tensor in module.state_dict().items()}


def write_model(
    folder: Path, model: EmoLlamaForConditionalGeneration, plan: dict[str, list[Source]], new: dict[str, torch.Tensor]
) -> None:
    """The config, the generation config, the remote code, and the weights in shards."""
    config, ours = model.config, dict(model.named_parameters())
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        # They stand for pictures: no model writes them.
        suppress_tokens=[config.image_token_id, config.video_token_id],
    )
    model.to(config.dtype)  # `save_pretrained` writes it down
    model.save_pretrained(folder, state_dict=dict(new))  # it empties what it is given
    (folder / "model.safetensors").unlink()

    in_fp32 = re.compile(rf"model\.({'|'.join(model._keep_in_fp32_modules_strict)})\.")
    wanted = dict(new)  # of LLaMA-VID's parameters only the shape and the type, without memory
    for name, sources in plan.items():
        dtype = torch.float32 if in_fp32.match(name) else sources[0].dtype
        wanted[name] = torch.empty(ours[name].shape, dtype=dtype, device="meta")
    split = split_torch_state_dict_into_shards(wanted, max_shard_size=MAX_SHARD_BYTES)
    with tqdm(desc="convert", total=split.metadata["total_size"], unit="B", unit_scale=True) as bar:
        for file, names in split.filename_to_tensors.items():
            save_file(read_shard({name: wanted[name] for name in names}, plan), folder / file, {"format": "pt"})
            bar.update(sum(wanted[name].nbytes for name in names))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def read_shard(wanted: dict[str, torch.Tensor], plan: dict[str, list[Source]]) -> dict[str, torch.Tensor]:
    """`wanted`, made of LLaMA-VID's tensors where `plan` says so; most of these stay in their files until written."""
    opened = {file: open_tensors(file) for file in {source.file for name in wanted for source in plan.get(name, ())}}
    shard = {}
    for name, tensor in wanted.items():
        sources = sorted(plan.get(name, ()), key=lambda source: source.key)
        if sources:
            parts = [opened[source.file][source.key] for source in sources]
            tensor = our_parameter(name, parts, tensor.shape).to(tensor.dtype).contiguous()
        shard[name] = tensor
    return shard


def our_parameter(name: str, parts: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Our parameter from LLaMA-VID's tensors."""
    if name.endswith(".qkv.bias"):  # EVA's keys have no bias
        q, v = parts
        return torch.cat([q, torch.zeros_like(q), v])
    [tensor] = parts
    if name == POSITIONS and tensor.shape != shape:
        old, new = (round((positions - 1) ** 0.5) for positions in (tensor.shape[1], shape[1]))
        grid = tensor[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        return torch.cat([tensor[:, :1], grid.flatten(2).transpose(1, 2).to(tensor)], 1)
    if name in VOCABULARIES and tensor.shape != shape:  # words that LLaMA-VID does not have
        mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor)
        return torch.cat([tensor, mean.expand(shape[0] - len(tensor), -1)])
    return tensor


@contextmanager
def complete_or_absent(out: Path) -> Iterator[Path]:
    """A folder to write in that becomes `out` when all went well, and is gone when not."""
    if out.exists() and not (out / "config.json").exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not a checkpoint: choose another folder")
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
