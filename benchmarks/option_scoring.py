"""Closed-set evaluation on a CPU: scoring all options at once, against what else a user would do.

    OMP_NUM_THREADS=1 python benchmarks/option_scoring.py

Opponents: one forward pass for each option of each prompt (no cache), and `generate` of 4 tokens, at batch 1 and at
the same batch. The model has the shape of SmolLM2-135M and random weights in bfloat16; 80-token prompts, 7 options.
All run in turn in one process on one thread; a ratio is the median over the rounds of CPU time to CPU time.
"""

import statistics
import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_emo_llama.option_scoring import score_options

OPTIONS = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]
PROMPT_LENGTH = 80
BATCH = 4
ROUNDS = 3


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
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def small_tokenizer() -> PreTrainedTokenizerFast:
    """Few merges, so that the options have 1 to 4 tokens, about as under a real tokenizer."""
    backend = Tokenizer(models.BPE(unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        OPTIONS, trainers.BpeTrainer(vocab_size=40, special_tokens=["<eos>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@torch.inference_mode()
def score_separately(model, tokenizer, prompts: torch.LongTensor) -> torch.Tensor:
    """One forward pass for each prompt and option."""
    scores = torch.empty(len(prompts), len(OPTIONS))
    for i, prompt in enumerate(prompts):
        for j, option in enumerate(OPTIONS):
            answer = [*tokenizer(option, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ids = torch.cat([prompt, torch.tensor(answer)])[None]
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
            scores[i, j] = logits.float().log_softmax(-1)[range(len(answer)), answer].sum()
    return scores


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = smollm2_135m(), small_tokenizer()
    prompts = torch.randint(100, 49152, (BATCH, PROMPT_LENGTH))
    mask = torch.ones_like(prompts)

    def score(rows: slice) -> torch.Tensor:
        return score_options(model, tokenizer, {"input_ids": prompts[rows], "attention_mask": mask[rows]}, OPTIONS)

    def generate(rows: slice) -> torch.Tensor:
        return model.generate(
            prompts[rows], attention_mask=mask[rows], min_new_tokens=4, max_new_tokens=4, do_sample=False
        )

    singly = [slice(i, i + 1) for i in range(BATCH)]
    whole = slice(None)
    ways = {
        f"score_options, batch {BATCH}": lambda: score(whole),
        "score_options, batch 1": lambda: [score(row) for row in singly],
        "one forward pass an option": lambda: score_separately(model, tokenizer, prompts),
        "generate, batch 1": lambda: [generate(row) for row in singly],
        f"generate, batch {BATCH}": lambda: generate(whole),
    }
    # a first pass warms up, and shows that both ways of scoring say the same
    difference = (score(singly[0]) - score_separately(model, tokenizer, prompts[:1])).abs().max()
    score(whole)
    generate(whole)
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            seconds[name].append(cpu_seconds(run))

    tokens = [len(ids) for ids in tokenizer(OPTIONS, add_special_tokens=False)["input_ids"]]
    print(f"prompts of {PROMPT_LENGTH} tokens, {len(OPTIONS)} options of {tokens} tokens, {ROUNDS} rounds")
    print(f"bfloat16 on one {torch.backends.cpu.get_cpu_capability()} core")
    print(f"largest difference between the scores of the two ways: {difference:.2g} (nats)")
    ours = seconds[f"score_options, batch {BATCH}"]
    for name, times in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(times, ours, strict=True))
        print(f"{name:28} {BATCH / statistics.median(times):6.2f} prompts per CPU-second   ours is {ratio:.2f} x")


if __name__ == "__main__":
    main()
