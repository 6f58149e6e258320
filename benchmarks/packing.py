"""Training on packed rows against padded batches: the same rows, the same model, in one run.

    OMP_NUM_THREADS=1 python benchmarks/packing.py

A step is what `train_sft.py` does before the optimizer moves: collating (pictures are decoded), forward and backward
pass of TRL's trainer. The model has the shape of the quickstart's (half a ViT-S/14 and SmolLM2-135M) and random
weights in bfloat16, LoRA on the language model and the new modules in full. 16 conversations about a still each, of
lengths by which a batch of 8 is 53 % full. All ways run in turn on one thread; a ratio is the median over the rounds.
Expected on CPU time: packed 1.6 times the padded batches (1.5 with the dense mask), length-grouped 1.1 times. The
ViT and the projection of the learned tokens onto the vocabulary cost the same in all ways.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from ferid_dataset.collate import FeridCollator
from ferid_dataset.train.lengths import token_lengths
from ferid_dataset.train.packed_attention import NAME, use_packed_attention
from ferid_dataset.train.packing import PackedRows, PackingCollator
from ferid_dataset.train.trainer import score_only_answers
from modeling_emo_llama.create_checkpoint import IMAGENET_MEAN, IMAGENET_STD, compose, square_image_processor

ROWS, BATCH, LONGEST = 16, 8, 320
FACE = {"box": [20.0, 20.0, 90.0, 90.0], "landmarks": [[50.0, 50.0]] * 68, "embedding": [0.1] * 128}


def number_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Knows numbers and ChatML's tokens, and reads one token a word; so texts of any length can be made."""
    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant"]
    words += map(str, range(vocabulary - len(words) - 2))  # two places are left for the placeholders
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.add_tokens(words[1:3], special_tokens=True)
    return tokenizer


def small_emo_llama(layers: int):
    """A quickstart of random weights, and its processor."""
    vision = Dinov2Config(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, image_size=224, patch_size=14)
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    pictures = square_image_processor(224, IMAGENET_MEAN, IMAGENET_STD)
    return compose(Dinov2Model(vision), pictures, LlamaForCausalLM(text), number_tokenizer(49152))


def conversations(rows: int = ROWS) -> Dataset:
    """Rows of FERID in random order: a picture, a third of the words as a question, the rest as its answer."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (112, 112, 3), np.uint8)) for _ in range(min(rows, 64))]
    shares = (np.arange(rows) + 0.5) / rows
    lengths = random.permutation((LONGEST * np.exp(2.35 * (shares - 1) - 0.06)).astype(int))
    made = []
    for index, length in enumerate(lengths):
        words = [str(number) for number in random.integers(30000, size=length - 20)]  # beside picture and template
        asked, answered = " ".join(words[: length // 3]), " ".join(words[length // 3 :])
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        picture = pictures[index % len(pictures)]
        made.append({"id": str(index), "media_type": "image", "images": [picture], "messages": turns})
        made[-1] |= {"faces": [[FACE]], "attributes": {"age": None, "gender": None, "race": None}}
    return Dataset.from_list(made)


def make_trainer(model, processor, rows: Dataset, folder: str) -> SFTTrainer:
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        modules_to_save=["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"],
    )
    settings = {"bf16": True, "use_cpu": True, "activation_checkpointing": False, "report_to": "none"}
    args = SFTConfig(folder, max_length=None, assistant_only_loss=True, remove_unused_columns=False, **settings)
    return SFTTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=lora)


def ways_of(trainer: SFTTrainer, processor, rows: Dataset, lengths: list[int]) -> dict[str, Callable[[], float]]:
    """Each does the forward and backward passes of all rows and returns the sum of their losses."""
    model = trainer.model.train()
    padded, packed = (kind(processor, assistant_only_loss=True) for kind in (FeridCollator, PackingCollator))
    batches = [range(start, start + BATCH) for start in range(0, ROWS, BATCH)]
    by_length = np.argsort(lengths).tolist()
    grouped = [by_length[start : start + BATCH] for start in range(0, ROWS, BATCH)]
    packs = PackedRows(rows, lengths, max_tokens=max(sum(lengths) // len(batches) + 4, max(lengths))).packs

    def run(collate, groups, attention: str) -> float:
        if attention == NAME:
            use_packed_attention(model.get_base_model())
        else:
            model.set_attn_implementation(attention)
        learned = 0.0
        for group in groups:
            batch = collate([rows[int(index)] for index in group])
            count = (batch["labels"] != -100).sum()
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, batch)
            loss.backward()
            learned += loss.item() * count.item()
        model.zero_grad()
        return learned

    return {
        "padded, eager": lambda: run(padded, batches, "eager"),
        "padded, sdpa": lambda: run(padded, batches, "sdpa"),
        "length-grouped, eager": lambda: run(padded, grouped, "eager"),
        "packed, eager with its dense mask": lambda: run(packed, packs, "eager"),
        "packed, packed attention": lambda: run(packed, packs, NAME),
    }


def seconds_of(run: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds of the CPU, of the wall clock, and what it returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30, help="of the language model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, processor = small_emo_llama(arguments.layers)
    rows = conversations()
    lengths = token_lengths(rows, processor)
    score_only_answers()
    padded = sum(BATCH * max(lengths[start : start + BATCH]) for start in range(0, ROWS, BATCH))
    print(
        f"{ROWS} rows of {min(lengths)} to {max(lengths)} tokens; a padded batch is {sum(lengths) / padded:.2f} full"
    )
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(make_trainer(model, processor, rows, folder), processor, rows, lengths)
        took, losses = {name: [] for name in ways}, {}
        for round_number in range(arguments.rounds + 1):  # the first round warms up
            for name, run in ways.items():
                *seconds, losses[name] = seconds_of(run)
                if round_number:
                    took[name].append(seconds)
    first = took["padded, eager"]
    for name, rounds in took.items():
        speeds = [sum(lengths) / statistics.median(times) for times in zip(*rounds, strict=True)]
        ratios = [[b / a for a, b in zip(one, base, strict=True)] for one, base in zip(rounds, first, strict=True)]
        cpu, wall = (statistics.median(values) for values in zip(*ratios, strict=True))
        spread = f"{min(ratio[0] for ratio in ratios):.2f} to {max(ratio[0] for ratio in ratios):.2f}"
        print(
            f"{name:34} {speeds[0]:6.0f} tokens a CPU-second, {speeds[1]:5.0f} a second; "
            f"{cpu:.2f} x padded ({spread}), wall {wall:.2f} x; loss {losses[name]:.1f}"
        )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, of all ways together")


if __name__ == "__main__":
    main()
