"""What `score_only_answers` in train_sft.py saves: the loss of the answer's tokens against TRL's own on a CPU.

    python benchmarks/answer_only_loss.py

Forward and backward of a SmolLM2-135M-shaped Llama with random weights under bfloat16, frozen but for its input
embeddings, 8 rows of 60 tokens of which the last 3 are learned. One thread, CPU time, interleaved rounds.
"""

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import utils as trl_utils

from train_sft import score_only_answers

ROWS, LENGTH, ANSWER, ROUNDS = 8, 60, 3, 5


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49216,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16, attn_implementation="eager")
    model.requires_grad_(False)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.randint(config.vocab_size, (ROWS, LENGTH))
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()

    def step() -> tuple[float, float]:
        start = time.process_time()
        loss = model(inputs_embeds=embeddings, labels=labels, fused_lm_head=True).loss
        loss.backward()
        return time.process_time() - start, loss.item()

    own = trl_utils._use_triton
    seconds, losses = {"every position (TRL)": [], "the answer alone": []}, {}
    for round_number in range(ROUNDS + 1):  # the first round warms up
        for name in seconds:
            trl_utils._use_triton = own
            if name == "the answer alone":
                score_only_answers()
            took, losses[name] = step()
            if round_number:
                seconds[name].append(took)
    for name, times in seconds.items():
        print(f"{name:22} {statistics.median(times):6.2f} CPU-s a step, loss {losses[name]:.6f}")
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} (rounds {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
