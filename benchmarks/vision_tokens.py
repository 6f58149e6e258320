"""What a picture and a clip cost: EMO-LLaMA against transformers' LLaVA of equal vision tower and language model.

    OMP_NUM_THREADS=1 python benchmarks/vision_tokens.py                  a ViT-S/14 and a Llama of 35M
    python benchmarks/vision_tokens.py --size 7b                          on a GPU: a ViT-L/14 and a Llama of 7B; or 1b

Random weights, pictures of 224 pixels, a question of 32 tokens, an 8-frame clip (to LLaVA, which has no clips, 8
pictures). Forward passes in turn in one process: ours and LLaVA's, still and clip; a ratio is the median over the
rounds. Seconds are of the CPU on one thread in float32, or of the GPU in bfloat16; there MFU is printed too, the
floating-point operations that PyTorch counts in the pass by seconds and --peak-tflops. Peak memory is that of the
pass beyond the weights, in a process of its own (Linux).
Expected: 13 tokens a still and 80 a clip, against 256 and 2,048; 1.6 and 2.0 times as fast on a CPU with the small
models, of which the vision tower is most of the work; a larger language model widens that.
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    InstructBlipQFormerConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
)

from modeling_emo_llama import EmoLlamaConfig, EmoLlamaFaceConfig, EmoLlamaForConditionalGeneration

WORDS, FRAMES, VOCABULARY = 32, 8, 32000
PLACEHOLDERS = {"image": VOCABULARY - 2, "video": VOCABULARY - 1}
# (width, MLP width, layers, heads) of the vision tower and of the language model
SIZES = {
    "small": ((384, 1536, 12, 6), (512, 1408, 6, 8)),
    "1b": ((1024, 4096, 24, 16), (2048, 5632, 22, 16)),
    "7b": ((1024, 4096, 24, 16), (4096, 11008, 32, 32)),
}


def shape(width: int, mlp: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def make(name: str, size: str) -> PreTrainedModel:
    vision, text = (shape(*numbers) for numbers in SIZES[size])
    vision_config = CLIPVisionConfig(image_size=224, patch_size=14, **vision)
    text_config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=4096, **text)
    if name == "LLaVA":
        config = LlavaConfig(
            vision_config=vision_config, text_config=text_config, image_token_id=PLACEHOLDERS["image"]
        )
        make_model = LlavaForConditionalGeneration
    else:
        config = EmoLlamaConfig(
            vision_config=vision_config,
            text_config=text_config,
            qformer_config=InstructBlipQFormerConfig(  # as `emo-llama create` makes it
                vocab_size=VOCABULARY,
                hidden_size=vision["hidden_size"] // 2,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=2 * vision["hidden_size"],
                encoder_hidden_size=vision["hidden_size"],
            ),
            face_config=EmoLlamaFaceConfig(),
            image_token_id=PLACEHOLDERS["image"],
            video_token_id=PLACEHOLDERS["video"],
        )
        make_model = EmoLlamaForConditionalGeneration
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    with torch.device("cuda" if gpu else "cpu"):
        return make_model(config).to(torch.bfloat16 if gpu else torch.float32).eval()


def make_inputs(model: PreTrainedModel, kind: str, batch: int) -> dict[str, torch.Tensor]:
    """A batch of stills or of clips, one a sample, with a question and a face in every picture."""
    ours, pictures = model.config.model_type == "emo_llama", FRAMES if kind == "clip" else 1
    modality = "video" if ours and kind == "clip" else "image"
    config = model.config
    tokens = {"video": config.frame_seq_length, "image": config.image_seq_length} if ours else {"image": 256}
    place = torch.full((batch, pictures * tokens[modality]), PLACEHOLDERS[modality])
    question = torch.randint(10, 1000, (batch, WORDS))
    rows = batch * pictures
    inputs = {
        "input_ids": torch.cat([place, question], 1),
        "pixel_values_videos" if modality == "video" else "pixel_values": torch.randn(rows, 3, 224, 224),
    }
    if ours:
        face = config.face_config
        inputs |= {
            "qformer_input_ids": question.repeat_interleave(pictures, 0),
            "qformer_attention_mask": torch.ones(rows, WORDS, dtype=torch.long),
            "face_boxes": torch.tensor([0.2, 0.2, 0.8, 0.8]).expand(rows, face.max_faces, 4),
            "face_landmarks": torch.rand(rows, face.max_faces, face.num_landmarks, 2),
            "face_embeddings": torch.randn(rows, face.max_faces, face.embedding_size),
            "face_mask": torch.ones(rows, face.max_faces, dtype=torch.bool),
        }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    if not ours:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


@torch.inference_mode()
def seconds(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    """Of a forward pass that answers with one token."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    model(**inputs, logits_to_keep=1, use_cache=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_mb(name: str, size: str, kind: str, batch: int) -> float:
    """The most memory in a forward pass, less what the model takes; call it in a process of its own."""
    torch.set_num_threads(1)
    model = make(name, size)
    inputs = make_inputs(model, kind, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(model, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: making the model has one of its own
    before = status_mb("VmRSS")
    seconds(model, inputs)
    return status_mb("VmHWM") - before


def status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU in bfloat16, without sparsity")
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(1)
    models = {name: make(name, args.size) for name in ("EMO-LLaMA", "LLaVA")}
    for kind in ("still", "clip"):
        spent: dict[str, list[float]] = {name: [] for name in models}
        inputs = {name: make_inputs(model, kind, args.batch) for name, model in models.items()}
        for name, model in models.items():
            seconds(model, inputs[name])  # to warm up
        for _ in range(args.rounds):
            for name, model in models.items():
                spent[name].append(seconds(model, inputs[name]))
        for name, model in models.items():
            median, length = statistics.median(spent[name]), inputs[name]["input_ids"].shape[1]
            with multiprocessing.get_context("spawn").Pool(1) as process:
                memory = process.apply(peak_mb, (name, args.size, kind, args.batch))
            line = f"{kind:5} {name:9}  {args.batch / median:8.2f} samples/s  {length:5} tokens  {memory:8.0f} MB"
            if gpu:
                with FlopCounterMode(display=False) as counter, torch.inference_mode():
                    model(**inputs[name], logits_to_keep=1)
                line += f"  MFU {counter.get_total_flops() / median / args.peak_tflops / 1e12:.1%}"
            print(line)
        ratios = [theirs / ours for ours, theirs in zip(*spent.values(), strict=True)]
        print(
            f"{kind:5} ours is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
