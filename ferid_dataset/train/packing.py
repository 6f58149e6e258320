"""Several rows in one row of the model: batches without padding, and each sample alone with itself.

    rows = PackedRows(train_dataset, token_lengths(train_dataset, processor), max_tokens=1024)
    rows[0]                                   [{"id": "raf_db/00017", "messages": [...], ...}, {"id": ...}, ...]
    PackingCollator(processor, assistant_only_loss=True)([rows[0], rows[1]])

    input_ids     [[1, 9906, 4, ..., 2, 198, 1, 9906, 4, ..., 2, 198]]    (1, tokens): one sample after the other
    position_ids  [[0, 1, 2, ..., 70, 71, 0, 1, 2, ..., 77, 78]]          a sample begins where they are 0 again
    labels        [[-100, -100, ..., 31004, 2, -100, -100, ...]]          never a sample's first token
    cu_seq_lens_q [0, 72, 151], max_length_q 79                           the samples' bounds, for who reads them
    pixel_values, face_boxes, ...                                         as of the same rows padded

There is no attention mask: the positions tell the samples apart. Of them transformers makes a block-diagonal mask for
`eager` and `sdpa`; FlashAttention and the attention of `packed_attention.py` go by the bounds and need none.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F

from ferid_dataset.collate import FeridCollator
from ferid_dataset.errors import FeridError


class PackedRows(torch.utils.data.Dataset):
    """A map-style dataset whose items are lists of rows that together have at most `max_tokens` tokens.

    Who shares a pack is drawn once, by the seed: the rows come in random order, and each joins the fullest pack that
    has room for it. The trainer's sampler shuffles the packs anew every epoch. `SFTTrainer` takes nothing but rows of
    `datasets`: give it those, and then set its `train_dataset` to the packs.

    Args:
        rows: the rows.
        lengths: of each row, as [`token_lengths`] measures them.
        max_tokens: that a pack may have, and hence what a batch of one pack costs.
        seed: of the random order; equal seeds make equal packs.

    Raises:
        FeridError: a row alone is longer than a pack.
    """

    def __init__(self, rows: Dataset, lengths: Sequence[int], max_tokens: int, seed: int = 0):
        self.rows = rows
        longest = int(np.argmax(lengths))
        if lengths[longest] > max_tokens:
            raise FeridError(
                f"row {longest} of the dataset has {lengths[longest]} tokens, more than the {max_tokens} of a pack: "
                f"give packs at least {lengths[longest]} tokens, or leave such rows out"
            )
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        self.packs = best_fit(order, lengths, max_tokens)
        self.fill = sum(lengths) / (len(self.packs) * max_tokens)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        return self.rows.__getitems__(self.packs[index])


def best_fit(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Packs of indices: each index of `order` in turn joins the pack with the least room that suffices for it.

    `[0, 1, 2, 3]` of lengths 50, 60, 40, 30 with 100 tokens a pack -> `[[0, 2], [1, 3]]`.
    """
    packs, by_room, rooms = [], {}, []  # rooms: sorted, those that some pack has; by_room: which packs
    for index in order:
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            room, pack = max_tokens, []
            packs.append(pack)
        else:
            room = rooms[place]
            pack = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        pack.append(index)
        room -= lengths[index]
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(pack)
    return packs


class PackingCollator(FeridCollator):
    """[`FeridCollator`] whose batch is a single row without padding: all samples of all packs, one after the other.

    Packs share the row too, because only in a single row are samples told apart by their positions everywhere
    (FlashAttention asks for that, and TRL counts tokens so). Rows that are in no pack, as those of an evaluation, do
    as well.
    """

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        rows = [row for example in examples for row in (example if isinstance(example, list) else [example])]
        batch = super().torch_call(rows)
        real = batch.pop("attention_mask").bool()
        if not real[:, 0].all():
            raise ValueError("samples are padded on their left, where a pack joins them: pad on the right")
        positions = torch.arange(real.shape[1]).expand_as(real)
        batch["labels"][:, 0] = -100  # it would be predicted by the sample before it
        batch["position_ids"] = positions[real][None]
        for name in ("input_ids", "labels"):
            batch[name] = batch[name][real][None]
        lengths = real.sum(1)
        bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
        for side in "qk":
            batch[f"cu_seq_lens_{side}"], batch[f"max_length_{side}"] = bounds, int(lengths.max())
        return batch
