"""Attention of packed samples, each with itself alone: no mask of all tokens against all.

    use_packed_attention(model)               the language model's attention, for training and all else

    cu_seq_lens_q [0, 72, 150, 221]           query (1, heads, 221, head_dim) falls into samples of 72, 78, 71 tokens

By a dense mask a row of T tokens costs T * T, where samples of n tokens need n * n. On a CPU that is a tenth of a
training step of rows of 900 tokens, and of the language model's part of it up to 40 %.
On a GPU the samples go by their bounds to the FlashAttention that is part of PyTorch; no package is needed.
"""

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch calls it a prototype
    varlen_attn = None

NAME = "ferid_packed"


def use_packed_attention(model: PreTrainedModel) -> None:
    """Have the language model of `model` attend sample by sample in packed rows, and elsewhere as by `sdpa`.

    It stays as it is if it has FlashAttention, which does the same, or cannot do with `sdpa` (Gemma 2, gpt-oss): then
    packed rows are as exact, by a dense mask.
    """
    text = model.config.get_text_config()
    if "flash" in (text._attn_implementation or "") or not model.get_decoder()._supports_sdpa:
        return
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, packed_mask)
    model.set_attn_implementation({"text_config": NAME})


def packed_mask(batch_size: int, q_length: int, kv_length: int, attention_mask=None, **kwargs) -> torch.Tensor | None:
    """No mask for a single row without padding and cache, of which the positions tell all; else that of `sdpa`."""
    if batch_size == 1 and attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, attention_mask=attention_mask, **kwargs)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: torch.LongTensor | None = None,
    cu_seq_lens_q: torch.IntTensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of a packed row, as one of transformers' attention functions.

    Args:
        query: `(batch, heads, tokens, head_dim)`; key and value may have fewer heads.
        position_ids: `(1, tokens)`; a sample begins where they do not go on. They count if no bounds are given.
        cu_seq_lens_q: `(samples + 1)`, the bounds of the samples.
        max_length_q: tokens of the longest sample.

    Returns:
        `(batch, tokens, heads, head_dim)`, and no weights.

    Raises:
        ValueError: the language model hands over no positions, or its window is shorter than a sample.
    """
    if len(query) > 1 or attention_mask is not None or query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if cu_seq_lens_q is None:
        if position_ids is None:
            raise ValueError(f"{type(module).__name__} hands no positions to its attention: train it without packing")
        positions = position_ids[0]
        starts = (positions.diff(prepend=positions[:1] - 2) != 1).nonzero().flatten()
        cu_seq_lens_q = F.pad(starts, (0, 1), value=query.shape[2]).int()
        max_length_q = int(cu_seq_lens_q.diff().max())
    if sliding_window is not None and max_length_q > sliding_window:
        raise ValueError(f"a sample of {max_length_q} tokens exceeds the window of {sliding_window}: use sdpa")

    if torch.is_autocast_enabled(query.device.type):  # rotation leaves query and key in float32
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if flash_takes(query) and not dropout:
        tokens_first = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
        bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        output = varlen_attn(*tokens_first, *bounds, scale=scaling, window_size=(-1, 0), enable_gqa=True)
        return output.unsqueeze(0), None
    key, value = (repeat_kv(states, query.shape[1] // states.shape[1]) for states in (key, value))
    lengths = cu_seq_lens_q.diff().tolist()
    samples = zip(*(states.split(lengths, 2) for states in (query, key, value)), strict=True)
    outputs = [attend(*sample, scaling, dropout) for sample in samples]
    return torch.cat(outputs, 2).transpose(1, 2), None


def flash_takes(query: torch.Tensor) -> bool:
    """Whether PyTorch's own FlashAttention can: on Ampere and newer, in half precision, heads of 8 to 256."""
    if varlen_attn is None or not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    size = query.shape[-1]
    return size % 8 == 0 and size <= 256 and torch.cuda.get_device_capability(query.device)[0] >= 8


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float):
    """One sample's causal attention, `(1, heads, tokens, head_dim)`."""
    if query.is_cuda:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, dropout_p=dropout)
    # On a CPU the backward pass of `scaled_dot_product_attention` is slower than these.
    later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(later, torch.finfo(query.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value
