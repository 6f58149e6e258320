"""Closed-set answers without generating: the exact log-probability that a model gives each of the options.

It takes any Hugging Face causal or image-text-to-text model, since it uses only the forward pass and the cache. The
prompts run once, with their pictures; then every option of every prompt runs as one row of one short forward pass.

A batch of 2 prompts and the options ["anger", "fear", "happiness"] give

    tensor([[-0.21, -2.31, -3.05],
            [-4.10, -3.92, -0.08]])
"""

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import GenerateDecoderOnlyOutput

IGNORED = -100  # cross_entropy's own `ignore_index`


@torch.inference_mode()
def score_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Mapping[str, torch.Tensor],
    options: Sequence[str],
    prefill: GenerateDecoderOnlyOutput | None = None,
) -> torch.FloatTensor:
    """
    Log-probability that the model answers exactly each option and then ends its turn.

    The end of the turn (`tokenizer.eos_token`) counts as a token of the answer. Without it an option that begins
    another one ("sad", "sadness") would always score at least as high as the longer one.

    Args:
        model ([`PreTrainedModel`]):
            A decoder model in eval mode. An adapter by PEFT may be around it.
        tokenizer ([`PreTrainedTokenizerBase`]):
            The tokenizer of the model.
        inputs (`Mapping[str, torch.Tensor]`):
            What the processor returned for LEFT-padded prompts that end where the answer begins: `input_ids` and
            `attention_mask` of shape `(batch_size, prompt_length)`, and the tensors of the pictures, if any.
        options (`Sequence[str]`):
            The answers, each written as it follows the prompt (with its leading space, if the answer has one).
        prefill ([`GenerateDecoderOnlyOutput`], *optional*):
            What `model.generate(**inputs, return_dict_in_generate=True, output_logits=True)` returned. The prompts,
            which are most of the work, are then not run again. Its cache is used up.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_options)`: natural logarithms, at most 0, in float32.

    Raises:
        `ValueError`: the model is in training mode, a prompt is not padded on the left, the tokenizer has no
            `eos_token`, there is no option, or one has no token.
    """
    if model.training:
        raise ValueError("score_options needs a model in eval mode; call model.eval() first")
    prompt_mask = inputs["attention_mask"]
    if not prompt_mask[:, -1].all():
        raise ValueError("score_options needs left-padded prompts; pass padding_side='left' to the processor")
    batch_size = len(prompt_mask)
    answers = _answer_tokens(tokenizer, options).to(prompt_mask.device)  # [options, longest]
    num_options = len(answers)

    # generate()'s own positions: they skip the padding, and are 3-dimensional for models such as Qwen2-VL
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))  # [..., batch, prompt]
    if prefill is None:
        only_last = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
        outputs = model(**inputs, position_ids=positions, use_cache=True, **only_last)
        logits, cache = outputs.logits[:, -1], outputs.past_key_values
    else:
        logits, cache = prefill.logits[0], prefill.past_key_values
        cache.crop(prompt_mask.shape[1] - cache.get_seq_length())  # negative: without the answer that was generated
    first = logits.float().log_softmax(-1)[:, answers[:, 0]]  # [batch, options]

    # From here on a row is one option of one prompt: prompt 0 with every option, then prompt 1 ...
    cache.batch_repeat_interleave(num_options)
    tokens = answers[:, :-1].repeat(batch_size, 1)  # [batch * options, longest - 1]: what the model reads
    targets = answers[:, 1:].repeat(batch_size, 1)  # the same shape: what it shall say next
    is_token = tokens != IGNORED
    steps = torch.arange(1, answers.shape[1], device=answers.device)
    logits = model(
        input_ids=tokens.masked_fill(~is_token, tokenizer.eos_token_id),
        attention_mask=torch.cat([prompt_mask.repeat_interleave(num_options, dim=0), is_token.to(prompt_mask)], dim=1),
        position_ids=positions[..., -1:].repeat_interleave(num_options, dim=-2) + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits  # [batch * options, longest - 1, vocabulary]
    rest = -cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none").sum(-1)
    return first + rest.view(batch_size, num_options)


def option_probabilities(scores: torch.FloatTensor) -> torch.FloatTensor:
    """
    Probability of each option, given that the answer is one of them.

    Args:
        scores (`torch.FloatTensor` of shape `(batch_size, num_options)`):
            What [`score_options`] returned.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_options)`: every row sums to 1. (`scores.exp().sum(-1)` is the
        share of all possible answers that the options cover.)
    """
    return scores.softmax(-1)


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> torch.LongTensor:
    """`(num_options, longest)`: the tokens of each option and the end-of-turn token, filled up with `IGNORED`."""
    if tokenizer.eos_token_id is None:
        raise ValueError("score_options needs a tokenizer with an eos_token, the one that ends the model's turn")
    if not options:
        raise ValueError("score_options needs at least one option")
    rows = [tokenizer(option, add_special_tokens=False)["input_ids"] for option in options]
    for option, row in zip(options, rows, strict=True):
        if not row:
            raise ValueError(f"the option {option!r} has no token; leave it out or write it differently")
    rows = [torch.tensor([*row, tokenizer.eos_token_id]) for row in rows]
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED)
