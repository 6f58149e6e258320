"""Closed-set evaluation: scoring all options at once, against what else a user would do.

    OMP_NUM_THREADS=1 python benchmarks/option_scoring.py                                 random weights, two lengths
    OMP_NUM_THREADS=1 python benchmarks/option_scoring.py --checkpoint runs/quickstart/checkpoint    its own prompts
    python benchmarks/option_scoring.py --device cuda --batches 1 16 64

Opponents: `generate` at batch 1, as the published evaluations run, and at the same batch, and one forward pass for
each option of each prompt. `generate` makes as many tokens as the longest option has, and the one that ends the turn:
a batch is not done before. The model has the shape of SmolLM2-135M and random weights in bfloat16; 7 options of 1 to 3
tokens. All run in turn in one process on one thread; a ratio is the median over the rounds of CPU time (on a GPU: of
time) to that of `score_options`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_emo_llama.option_scoring import score_options

OPTIONS = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
ALONE = 2  # prompts that are scored option by option, which is slow


def smollm2_135m() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    """As many merges as give the options 13 tokens; under SmolLM2's own tokenizer they have 14."""
    backend = Tokenizer(models.BPE(unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        OPTIONS, trainers.BpeTrainer(vocab_size=44, special_tokens=["<eos>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def random_prompts(length: int, device: str) -> Callable[[int], dict]:
    """A function from a batch size to the tensors of so many prompts."""

    def make(batch: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(100, 49152, (batch, length), device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return make


def category_prompts(processor, device: str) -> Callable[[int], dict]:
    """The prompts that `ferid evaluate` makes of drawn faces."""
    import numpy as np

    from ferid_dataset.drawn_faces import draw_face
    from ferid_dataset.evaluate.predict import ask
    from ferid_dataset.prompts import category_question

    question = [{"role": "user", "content": category_question(OPTIONS)}]
    pictures = [draw_face(label, np.random.default_rng(i)) for i, label in enumerate(OPTIONS)]
    rows = [{"images": [picture], "messages": question, "faces": [[]]} for picture in pictures]

    def make(batch: int) -> dict[str, torch.Tensor]:
        return ask(processor, [rows[i % len(rows)] for i in range(batch)]).to(device)

    return make


@torch.inference_mode()
def score_separately(model, tokenizer, inputs: dict) -> torch.Tensor:
    """One forward pass for each prompt and option, of text alone."""
    scores = torch.empty(len(inputs["input_ids"]), len(OPTIONS))
    for i, prompt in enumerate(inputs["input_ids"]):
        for j, option in enumerate(OPTIONS):
            answer = [*tokenizer(option, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids = torch.cat([prompt, torch.tensor(answer, device=prompt.device)])[None]
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
            scores[i, j] = logits.float().log_softmax(-1)[range(len(answer)), answer].sum()
    return scores


def clock(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(model, tokenizer, prompts: Callable[[int], dict], batch: int, rounds: int, device: str) -> None:
    """Prints one table: prompts a second of each way, and how many times as many ours does."""
    longest = max(map(len, tokenizer(OPTIONS, add_special_tokens=False)["input_ids"])) + 1
    length = {"min_new_tokens": longest, "max_new_tokens": longest, "do_sample": False}
    whole, single = prompts(batch), prompts(1)
    textual = "pixel_values" not in whole
    few = {name: tensor[:ALONE] for name, tensor in whole.items()}
    ways = {  # what runs, and how many prompts it answers
        f"score_options, batch {batch}": (lambda: score_options(model, tokenizer, whole, OPTIONS), batch),
        f"generate, batch {batch}": (lambda: model.generate(**whole, **length), batch),
        "generate, batch 1": (lambda: model.generate(**single, **length), 1),
    }
    if textual:
        ways["a pass an option"] = (lambda: score_separately(model, tokenizer, few), min(batch, ALONE))
    seconds = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, (run, count) in ways.items():
            start = clock(device)
            run()
            if round_:  # the first one warms up
                seconds[name].append((clock(device) - start) / count)

    print(f"\nprompts of {whole['input_ids'].shape[1]} tokens, batches of {batch}, {rounds} rounds")
    if textual:
        ours = score_options(model, tokenizer, few, OPTIONS).cpu()
        difference = (ours - score_separately(model, tokenizer, few)).abs().max()
        print(f"largest difference to a pass an option: {difference:.2g} nats, in {model.dtype}")
    ours, *others = seconds.items()
    print(f"  {ours[0]:28}{1 / statistics.median(ours[1]):8.2f} prompts a second")
    for name, times in others:
        ratio = statistics.median(other / own for other, own in zip(times, ours[1], strict=True))
        print(f"  {name:28}{1 / statistics.median(times):8.2f} prompts a second   ours is {ratio:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpoint", help="an EMO-LLaMA, asked its own prompts, instead of random weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability()
    print(f"on {'one GPU, ' if args.device == 'cuda' else 'one core, '}{where}")
    if args.checkpoint:
        from modeling_emo_llama.load_checkpoint import load_checkpoint

        model, processor = load_checkpoint(args.checkpoint)
        runs = [(processor.tokenizer, category_prompts(processor, args.device))]
    else:
        model, tokenizer = smollm2_135m().to(args.device), small_tokenizer()
        runs = [(tokenizer, random_prompts(length, args.device)) for length in args.lengths]
    for tokenizer, prompts in runs:
        for batch in args.batches:
            measure(model, tokenizer, prompts, batch, args.rounds, args.device)


if __name__ == "__main__":
    main()
