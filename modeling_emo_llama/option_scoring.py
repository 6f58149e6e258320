"""Closed-set answers without generating: the exact log-probability that a model gives each of the options.

A batch of 2 prompts and the options ["anger", "fear", "happiness"] give

    tensor([[-0.21, -2.31, -3.05],
            [-4.10, -3.92, -0.08]])

One forward pass does it. Behind each prompt stand the tokens of all options as a tree, in which options that begin
alike share a node, and the attention mask lets a node see the prompt and the nodes on the way to it:

    ... <|im_start|>assistant\n   anger   sad   ness      ness is at the position after that of sad, and anger and sad
                                                          are both at the one after the prompt

Where a model's attention cannot be told so (`sees_trees`), the prompts run once and then every option of every prompt
as one row of a second pass, which exploits the cache: as exact, but slower.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
    options: Sequence[str | Sequence[int]],
    prefill: GenerateDecoderOnlyOutput | None = None,
    ends: Sequence[int] | None = None,
) -> torch.FloatTensor:
    """
    Log-probability that the model answers exactly each option and then ends its turn.

    The end of the turn counts as a token of the answer. Without it an option that begins another one ("sad",
    "sadness") would always score at least as high as the longer one.

    Args:
        model ([`PreTrainedModel`]):
            A causal or image-text-to-text model in eval mode. An adapter by PEFT may be around it.
        tokenizer ([`PreTrainedTokenizerBase`]):
            The tokenizer of the model.
        inputs (`Mapping[str, torch.Tensor]`):
            What the processor returned for LEFT-padded prompts that end where the answer begins: `input_ids` and
            `attention_mask` of shape `(batch_size, prompt_length)`, and the tensors of the pictures, if any.
        options (`Sequence[str | Sequence[int]]`):
            The answers, each written as it follows the prompt (with its leading space, if the answer has one), or as
            the tokens of it.
        prefill ([`GenerateDecoderOnlyOutput`], *optional*):
            What `model.generate(**inputs, return_dict_in_generate=True, output_logits=True)` returned. The prompts,
            which are most of the work, are then not run again. Its cache is used up.
        ends (`Sequence[int]`, *optional*):
            The tokens of which each ends the turn; `tokenizer.eos_token_id` by default.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_options)`: natural logarithms, at most 0, in float32.

    Raises:
        `ValueError`: the model is in training mode, a prompt is not padded on the left, the tokenizer has no
            `eos_token`, there is no option, or one has no token.
    """
    if model.training:
        raise ValueError("score_options needs a model in eval mode; call model.eval() first")
    if not inputs["attention_mask"][:, -1].all():
        raise ValueError("score_options needs left-padded prompts; pass padding_side='left' to the processor")
    if ends is None and tokenizer.eos_token_id is None:
        raise ValueError("score_options needs a tokenizer with an eos_token, the one that ends the model's turn")
    answers = _answer_tokens(tokenizer, options)
    ends = torch.tensor([tokenizer.eos_token_id] if ends is None else list(ends), device=inputs["input_ids"].device)
    # generate()'s own positions: they skip the padding, and are 3-dimensional for models such as Qwen2-VL
    positions = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))  # [..., batch, prompt]
    longest = inputs["input_ids"].shape[1] + max(map(len, answers))
    if prefill is None and positions.ndim == 2 and not _tells_of_tokens(inputs) and sees_trees(model, longest):
        return _score_tree(model, inputs, positions, answers, ends)
    return _score_rows(model, inputs, positions, answers, ends, prefill)


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


def sees_trees(model: PreTrainedModel, length: int) -> bool:
    """
    Whether the model's attention follows any mask and any positions that it is given, in sequences of this length.

    That needs full attention in every layer (no state-space or linear layers, no window that is shorter than the
    sequence), one of transformers' own attention functions, and one that takes a dense mask (not flash attention).
    """
    decoder = model.get_decoder()
    config = decoder.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds == {"full_attention"} and getattr(config, "layer_types", None):
        window = None  # some configurations name a window that no layer uses
    return (
        kinds <= {"full_attention", "sliding_attention"}
        and (window is None or length <= window)
        and getattr(decoder, "_supports_attention_backend", False)
        and config._attn_implementation in ("eager", "sdpa")
    )


def _tells_of_tokens(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether there is more to each token than what it is and whether it is padding, such as its kind.

    Models make masks or positions of that (Gemma3: a picture sees all of itself), so the tree would need it, too.
    """
    shape = inputs["input_ids"].shape
    others = [tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")]
    return any(isinstance(tensor, torch.Tensor) and tensor.shape[:2] == shape for tensor in others)


class Tree(NamedTuple):
    """The options' tokens, those that options share at their beginning once. A place is a node's number plus 1; the
    last token of the prompt is place 0.
    """

    tokens: list[int]  # of each node
    parents: list[int]  # the place before it
    places: list[list[int]]  # of each option: the one before its first token, then those of its tokens


def make_tree(answers: Sequence[Sequence[int]]) -> Tree:
    """[[5, 7], [5, 8], [6]] -> Tree([5, 7, 8, 6], parents=[0, 1, 1, 0], places=[[0, 1, 2], [0, 1, 3], [0, 4]])"""
    tree, found = Tree([], [], []), {}
    for answer in answers:
        path = [0]
        for token in answer:
            step = (path[-1], token)
            if step not in found:
                tree.parents.append(path[-1])
                tree.tokens.append(token)
                found[step] = len(tree.tokens)
            path.append(found[step])
        tree.places.append(path)
    return tree


def _score_tree(model, inputs, positions, answers: list[list[int]], ends: torch.Tensor) -> torch.FloatTensor:
    """One forward pass over prompts and tree."""
    tree, device = make_tree(answers), ends.device
    ids, nodes = inputs["input_ids"], torch.tensor(tree.tokens, device=device)
    sees = _sees(tree).to(device)
    # Indices rather than a slice: the output layer gets rows that are adjacent, and of the prompt's only the last
    kept = torch.arange(ids.shape[1] - 1, ids.shape[1] + len(nodes), device=device)
    keeps = model._supports_logits_to_keep()
    extended = {
        "input_ids": torch.cat([ids, nodes.expand(len(ids), -1)], 1),
        "position_ids": torch.cat([positions, positions[:, -1:] + sees.sum(-1)], 1),
        "attention_mask": _additive_mask(inputs["attention_mask"].bool(), sees, model.get_input_embeddings().weight),
    }
    logits = model(**{**inputs, **extended}, use_cache=False, **({"logits_to_keep": kept} if keeps else {})).logits
    logits = logits if keeps else logits[:, kept]
    logs = logits.log_softmax(-1, dtype=torch.float32)  # [batch, 1 + nodes, vocabulary]

    # Of each token of each option: where it is predicted, what it is, and whose it is
    steps = [
        (place, token, option)
        for option, (path, answer) in enumerate(zip(tree.places, answers, strict=True))
        for place, token in zip(path, answer, strict=False)  # at the last place of a path the turn ends
    ]
    places, targets, owners = torch.tensor(steps, device=device).T
    leaves = torch.tensor([path[-1] for path in tree.places], device=device)
    scores = logs[:, leaves[:, None], ends].logsumexp(-1)  # [batch, options]
    return scores.index_add(1, owners, logs[:, places, targets])


def _sees(tree: Tree) -> torch.BoolTensor:
    """`(nodes, nodes)`: a node sees itself and its ancestors, of which there are as many as it is deep."""
    sees = torch.eye(len(tree.tokens), dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent:
            sees[node] |= sees[parent - 1]
    return sees


def _additive_mask(prompt_mask: torch.BoolTensor, sees: torch.BoolTensor, like: torch.Tensor) -> torch.Tensor:
    """`(batch, 1, all, all)` of zeros and lowest numbers, as both of transformers' dense attentions take it."""
    (batch, prompt), nodes = prompt_mask.shape, len(sees)
    mask = torch.zeros(batch, 1, prompt + nodes, prompt + nodes, dtype=torch.bool, device=sees.device)
    mask[..., :prompt] = prompt_mask[:, None, None]
    mask[..., :prompt, :prompt] &= torch.ones(prompt, prompt, dtype=torch.bool, device=sees.device).tril()
    mask[..., prompt:, prompt:] = sees
    return like.new_zeros(mask.shape).masked_fill_(~mask, torch.finfo(like.dtype).min)


def _score_rows(model, inputs, positions, answers, ends: torch.Tensor, prefill) -> torch.FloatTensor:
    """A pass over the prompts, or what `generate` has left of it, and one over every option of every prompt."""
    prompt_mask = inputs["attention_mask"]
    batch_size, num_options = len(prompt_mask), len(answers)
    lengths = torch.tensor([len(answer) for answer in answers], device=ends.device)
    answers = pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True, padding_value=IGNORED)
    answers = answers.to(ends.device)  # [options, longest]
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
    tokens = answers.repeat(batch_size, 1)  # [batch * options, longest]
    is_token = tokens != IGNORED
    logits = model(
        input_ids=tokens.masked_fill(~is_token, int(ends[0])),
        attention_mask=torch.cat([prompt_mask.repeat_interleave(num_options, dim=0), is_token.to(prompt_mask)], dim=1),
        position_ids=positions[..., -1:].repeat_interleave(num_options, dim=-2)
        + torch.arange(1, answers.shape[1] + 1, device=ends.device),
        past_key_values=cache,
        use_cache=True,
    ).logits.float()  # [batch * options, longest, vocabulary]
    rest = -cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], ignore_index=IGNORED, reduction="none").sum(
        -1
    )
    last = logits[
        torch.arange(len(logits), device=ends.device), lengths.repeat(batch_size) - 1
    ]  # after the last token
    ended = last[:, ends].logsumexp(-1) - last.logsumexp(-1)
    return first + (rest + ended).view(batch_size, num_options)


def _answer_tokens(tokenizer: PreTrainedTokenizerBase, options: Sequence[str | Sequence[int]]) -> list[list[int]]:
    """The tokens of each option."""
    if not options:
        raise ValueError("score_options needs at least one option")
    rows = [
        tokenizer(option, add_special_tokens=False)["input_ids"] if isinstance(option, str) else list(option)
        for option in options
    ]
    for option, row in zip(options, rows, strict=True):
        if not row:
            raise ValueError(f"the option {option!r} has no token; leave it out or write it differently")
    return rows
