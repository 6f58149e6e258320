"""Speed of supervised fine-tuning on one GPU: ours, packed, beside TRL's stock `sft_vlm` with LLaVA of equal sizes.

    CUDA_VISIBLE_DEVICES=0 python benchmarks/train_gpu.py --size 8b
    OMP_NUM_THREADS=1 python benchmarks/train_gpu.py                without a GPU: the same, small, on one CPU thread

Both train on the same conversations about a still each (53 % full in a padded batch of 8), with the same ViT, frozen,
and the same Llama, all of random weights in bfloat16; pictures of 336 pixels (on a CPU 224), of which LLaVA makes 576
(256) tokens and we 13. Trained are LoRA of rank 16 and the projector (ours: the new modules), or all but the ViT. Both
run their trainer's own loop with AdamW and the same settings, the loss of the answers' tokens alone in both:

    ours      FeridTrainer, rows packed to --pack-tokens, packed attention
    stock     SFTTrainer with its own collator: padded batches of --batch, sdpa; what is recomputed is chosen as for us

Each way runs in processes of its own, in turn, --rounds times; what does not fit into memory runs again with
activation checkpointing. MFU is useful arithmetic by seconds and the peak rate: 6 N a token where all is trained, 4 N
with LoRA, causal attention within each sample, the head for learned tokens only, and the ViT forward. Padding,
masked attention and what is computed again are of no use. The peak is 989 TFLOP/s for an H100 or H200, 312 for an
A100, and elsewhere, as on a CPU, what a bfloat16 matrix product of the same run reaches.
The aim on an H200 is 40 % MFU and 1.3 times the samples a second of stock; expected on a CPU are 3 to 4 times.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from packing import conversations, number_tokenizer
from peft import LoraConfig
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    InstructBlipQFormerConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from ferid_dataset.train.lengths import token_lengths
from ferid_dataset.train.packed_attention import use_packed_attention
from ferid_dataset.train.packing import PackedRows, PackingCollator
from ferid_dataset.train.trainer import FeridTrainer, score_only_answers
from modeling_emo_llama import EmoLlamaConfig, EmoLlamaFaceConfig, EmoLlamaForConditionalGeneration, EmoLlamaProcessor
from modeling_emo_llama.chat_templates import CHATML
from modeling_emo_llama.create_checkpoint import IMAGENET_MEAN, IMAGENET_STD, square_image_processor

VOCABULARY, OUT_OF_MEMORY = 32000, 3
# Width, MLP width, layers, heads and key heads of the ViT and of the Llama; pixels.
SIZES = {
    "small": ((384, 1536, 6, 6, 6), (576, 1536, 30, 9, 3), 224),
    "1b": ((1024, 4096, 24, 16, 16), (2048, 8192, 16, 32, 8), 336),
    "3b": ((1024, 4096, 24, 16, 16), (3072, 8192, 28, 24, 8), 336),
    "8b": ((1024, 4096, 24, 16, 16), (4096, 14336, 32, 32, 8), 336),
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in bfloat16, without sparsity
LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NEW_MODULES = ["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"]


def shape(width: int, mlp: int, layers: int, heads: int, key_heads: int) -> dict[str, int]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, (width, mlp, layers, heads, key_heads), strict=True))


def make(way: str, size: str):
    """Model and processor."""
    *shapes, side = SIZES[size]
    vision, text = (shape(*numbers) for numbers in shapes)
    del vision["num_key_value_heads"]
    tokenizer = number_tokenizer(VOCABULARY)
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision_config = CLIPVisionConfig(image_size=side, patch_size=14, **vision)
    text_config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=None, eos_token_id=2, **text)
    if way == "stock":
        config = LlavaConfig(vision_config=vision_config, text_config=text_config, image_token_id=image)
        pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        processor = LlavaProcessor(
            pictures,
            tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=CHATML.template,
        )
        return on_device(LlavaForConditionalGeneration, config), processor
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
            pad_token_id=0,
        ),
        face_config=EmoLlamaFaceConfig(),
        image_token_id=image,
        video_token_id=video,
    )
    pictures = square_image_processor(side, IMAGENET_MEAN, IMAGENET_STD)
    processor = EmoLlamaProcessor(
        pictures, tokenizer, tokenizer, image_seq_length=config.image_seq_length, chat_template=CHATML.template
    )
    model = on_device(EmoLlamaForConditionalGeneration, config)
    for name in NEW_MODULES:
        model.model.get_submodule(name).float()  # as `from_pretrained` keeps them
    return model, processor


def on_device(make_model, config):
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return make_model._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def useful_operations(config, method: str, lengths: torch.Tensor, learned: int, pictures: int) -> float:
    """Of forward and backward passes over samples of `lengths` tokens, `learned` of which have labels."""
    text, vision = config.text_config, config.vision_config
    width, kv_width = text.hidden_size, text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    weights = text.num_hidden_layers * (2 * width * (width + kv_width) + 3 * width * text.intermediate_size)
    a_weight = 6 if method == "full" else 4  # operations a token: without the gradients of frozen weights
    lengths = lengths.double()
    linear = a_weight * (weights * lengths.sum().item() + width * text.vocab_size * learned)
    attention = 6 * text.num_hidden_layers * width * lengths.square().sum().item()  # half of all pairs are masked
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    of_vision = vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size) * 2 * patches
    of_vision += 4 * patches**2 * vision.hidden_size
    return linear + attention + pictures * vision.num_hidden_layers * of_vision


class Counted:
    """Mixed into a trainer: notes what each batch holds, without waiting for the GPU."""

    def training_step(self, model, inputs, *args, **kwargs):
        if "attention_mask" in inputs:
            lengths = inputs["attention_mask"].sum(1)
        else:
            lengths = inputs["cu_seq_lens_q"].diff()
        self.batches.append((lengths, (inputs["labels"] != -100).sum(), inputs["input_ids"].numel()))
        return super().training_step(model, inputs, *args, **kwargs)


class Clock(TrainerCallback):
    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() if torch.cuda.is_available() else time.process_time())


def make_trainer(arguments, folder: str, clock: Clock) -> SFTTrainer:
    gpu = torch.cuda.is_available()
    model, processor = make(arguments.way, arguments.size)
    modules = NEW_MODULES if arguments.way == "ours" else ["multi_modal_projector"]
    model.requires_grad_(arguments.method == "full")
    model.model.vision_tower.requires_grad_(False)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, modules_to_save=modules)
    steps = arguments.warmup + arguments.steps
    settings = {
        "per_device_train_batch_size": arguments.batch if arguments.way == "stock" else 1,
        "activation_checkpointing": arguments.checkpointing,
        "dataloader_num_workers": 8 if gpu else 0,
        "max_steps": steps,
        "logging_steps": steps,
    }
    settings |= {"bf16": True, "use_cpu": not gpu, "assistant_only_loss": True, "max_length": None}
    settings |= {"save_strategy": "no", "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    common = {
        "model": model,
        "args": SFTConfig(folder, **settings),
        "processing_class": processor,
        "peft_config": lora if arguments.method == "lora" else None,
        "callbacks": [clock],
    }
    if not gpu:
        score_only_answers()  # as TRL itself does on a GPU
    if arguments.way == "stock":
        rows = conversations(arguments.batch * steps).select_columns(["images", "messages"])
        trainer = type("Stock", (Counted, SFTTrainer), {})(train_dataset=rows, **common)
    else:
        rows = conversations(max(16, arguments.pack_tokens // 100) * steps)
        packs = PackedRows(rows, token_lengths(rows, processor), arguments.pack_tokens)
        use_packed_attention(model)
        collator = PackingCollator(processor, assistant_only_loss=True)
        trainer = type("Ours", (Counted, FeridTrainer), {})(
            train_dataset=rows, packs=packs, data_collator=collator, **common
        )
    trainer.batches = []
    return trainer


def gemm_rate() -> float:
    """Operations a second of bfloat16 matrix products."""
    gpu = torch.cuda.is_available()
    side, clock = (8192, time.perf_counter) if gpu else (2048, time.process_time)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda" if gpu else "cpu") for _ in range(2))
    times = []
    for _ in range(12):
        start = clock()
        a @ b
        if gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return 2 * side**3 / statistics.median(times[2:])


def work(arguments) -> dict:
    """One way in this process: figures of its measured steps."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    clock, memory = Clock(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(arguments, folder, clock)
        trainer.train()
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**30
    seconds = clock.ends[-1] - clock.ends[arguments.warmup - 1]
    lengths, learned, places = zip(*trainer.batches[arguments.warmup :], strict=True)
    lengths, learned = torch.cat([one.cpu() for one in lengths]), sum(int(one) for one in learned)
    config = trainer.accelerator.unwrap_model(trainer.model).config
    return {
        "samples": len(lengths) / seconds,
        "tokens": lengths.sum().item() / seconds,
        "rate": useful_operations(config, arguments.method, lengths, learned, len(lengths)) / seconds,
        "gemm": gemm_rate(),
        "fill": lengths.sum().item() / sum(places),
        "memory": memory,
        "step": seconds / arguments.steps,
    }


def start(arguments, way: str, method: str) -> dict:
    """The figures of one way, from a process of its own; with activation checkpointing if it must."""
    for checkpointing in [True] if arguments.checkpointing else [False, True]:
        command = [sys.executable, __file__, "--way", way, "--method", method]
        for name in ("size", "batch", "pack_tokens", "steps", "warmup"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        done = subprocess.run(
            [*command, *(["--checkpointing"] if checkpointing else [])], capture_output=True, text=True
        )
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"checkpointing": checkpointing}
        if done.returncode != OUT_OF_MEMORY:
            sys.exit(done.stderr[-3000:])
    sys.exit(f"{way}, {method}: out of memory; give a smaller --batch and --pack-tokens")


def report(found: dict[tuple[str, str], list[dict]], peak: float | None) -> None:
    for (method, way), rounds in found.items():
        middle = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        mfu = [one["rate"] / (peak or one["gemm"]) for one in rounds]
        line = f"{method:4} {way:5}  {middle['samples']:7.2f} samples/s  {middle['tokens']:8.0f} tokens/s"
        line += f"  MFU {statistics.median(mfu):.1%} ({min(mfu):.1%} to {max(mfu):.1%})  {middle['fill']:.0%} full"
        line += f"  {middle['step']:.2f} s a step" + (f"  {middle['memory']:.0f} GiB" if middle["memory"] else "")
        print(line + ("  with activation checkpointing" if middle["checkpointing"] else ""))
    for method in dict.fromkeys(method for method, _ in found):
        pairs = zip(found[method, "ours"], found[method, "stock"], strict=True)
        ratios = [ours["samples"] / stock["samples"] for ours, stock in pairs]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{method:4} ours trains on {statistics.median(ratios):.2f} times as many samples a second ({spread})")


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="8b" if gpu else "small")
    parser.add_argument("--method", choices=("lora", "full"), help="one of the two alone")
    parser.add_argument("--batch", type=int, default=16 if gpu else 4, help="samples of a padded batch")
    parser.add_argument("--pack-tokens", type=int, default=8192 if gpu else 512)
    parser.add_argument("--steps", type=int, default=10 if gpu else 2, help="that are measured")
    parser.add_argument("--warmup", type=int, default=4 if gpu else 1, help="steps before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in any case")
    parser.add_argument("--way", choices=("ours", "stock"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        try:
            print(json.dumps(work(arguments)))
        except torch.OutOfMemoryError:
            sys.exit(OUT_OF_MEMORY)
        return
    name = torch.cuda.get_device_name() if gpu else f"one {torch.backends.cpu.get_cpu_capability()} core"
    peak = next((rate for card, rate in PEAKS.items() if card in name), None)
    print(f"{name}, model {arguments.size}" if gpu else f"no GPU is here: {name}, model {arguments.size}, CPU seconds")
    methods = [arguments.method] if arguments.method else ["lora", "full"]
    found = {(method, way): [] for method in methods for way in ("ours", "stock")}
    for _ in range(arguments.rounds):
        for (method, way), rounds in found.items():
            rounds.append(start(arguments, way, method))
    rates = [one["gemm"] / 1e12 for rounds in found.values() for one in rounds]
    print(f"peak {peak / 1e12:.0f} TFLOP/s; " if peak else "peak: ", end="")
    print(f"measured matrix products {statistics.median(rates):.3g} TFLOP/s ({min(rates):.3g} to {max(rates):.3g})")
    report(found, peak)


if __name__ == "__main__":
    main()
