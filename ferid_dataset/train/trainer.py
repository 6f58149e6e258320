"""TRL's `SFTTrainer` with our batches: grouped by length or packed, counted as they are, the same after a restart.

FeridTrainer(model=model, args=args, data_collator=FeridCollator(processor), train_dataset=rows,
             processing_class=processor, lengths=token_lengths(rows, processor))
"""

import time
from collections.abc import Callable, Iterator

import torch
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.utils.data import Sampler, SequentialSampler
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer
from trl.trainer import utils as trl_utils


class LengthGroups(Sampler):
    """transformers' grouping by length, in an order that depends on the seed and the epoch alone.

    transformers 5.23 draws the order from torch's global random numbers. These have gone another way by the time that
    a run is resumed, so a resumed epoch would show some rows twice and others never. And it makes the groups of as
    many rows as one process takes; here they are those of all, so that batches are the same however many take part.

    Args:
        lengths: tokens of each row.
        batch_size: rows of one optimizer step, on all processes together.
        seed: of the run.
        epoch: returns the number of the epoch that begins.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class FeridTrainer(SFTTrainer):
    """
    Args:
        lengths (`list[int]`, *optional*): tokens of each row of `train_dataset`, which are then grouped by them.
        packs ([`PackedRows`], *optional*): what is trained on instead of `train_dataset`, which SFTTrainer looks at to
            see what kind of data it is. `data_collator` is then a [`PackingCollator`].
        kwargs: as for `SFTTrainer`.

    Lines of the log have besides TRL's figures `samples_per_second`, since the start and on all processes: of rows,
    however many are packed into one.
    """

    def __init__(self, *args, lengths: list[int] | None = None, packs=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.lengths, self.samples_seen, self.started = lengths, 0, None
        if packs is not None:  # full or nearly: equal lengths, hence a random order
            self.train_dataset, self.lengths = packs, [1] * len(packs)
        if getattr(self.model, "is_loaded_in_4bit", False) or getattr(self.model, "is_loaded_in_8bit", False):
            # TRL makes bfloat16 of all that is trained there, in which the updates of new modules are rounded away.
            for name, parameter in self.model.named_parameters():
                if ".modules_to_save." in name:
                    parameter.data = parameter.data.float()

        if self.accelerator.is_fsdp2:
            # As on one GPU: weights in float32, arithmetic in bfloat16 by autocast. FSDP's own mixed precision would
            # round the inputs too, landmarks among them, to a 400th of the picture.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """accelerate 1.15 leaves autocast out under FSDP2. Its cache would keep the weights of all layers at once."""
        if not (self.accelerator.is_fsdp2 and self.args.bf16):
            return super().autocast_smart_context_manager(cache_enabled)
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, cache_enabled=False)

    def compute_loss(self, model, inputs, *args, **kwargs):
        head = self.model.get_output_embeddings()
        if isinstance(head, FSDPModule):
            # TRL 1.16 multiplies by the head's weight without calling the head, so FSDP2 does not see it used, and
            # each process would train its part of the weight by its own rows alone.
            head.unshard()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.lengths is None or train_dataset not in (None, self.train_dataset):
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        # state.epoch is the share of the epochs that is done, a float that was added up
        return LengthGroups(self.lengths, size, seed, lambda: int((self.state.epoch or 0) + 1e-6))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """In their order: transformers would group these by a column of lengths, which they have not."""
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """FSDP2 gives a model a class of its own, whose code `save_pretrained` would copy beside the weights."""
        own = type(self.model)
        if isinstance(self.model, FSDPModule):
            self.model.__class__ = own.__mro__[2]  # (FSDPEmoLlama..., FSDPModule, EmoLlama...)
        try:
            super()._save(output_dir, state_dict=state_dict)
        finally:
            self.model.__class__ = own

    def training_step(self, model, inputs, *args, **kwargs):
        if self.started is None:
            self.started = time.perf_counter()
            said = [line["num_tokens"] for line in self.state.log_history if "num_tokens" in line]
            self._total_train_tokens = int(said[-1]) if said else 0  # TRL begins anew when a run is resumed
        positions = inputs.get("position_ids")  # of packs, where each sample begins with 0
        self.samples_seen += len(inputs["input_ids"]) if positions is None else (positions == 0).sum()
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.started and ("loss" in logs or "train_samples_per_second" in logs):
            seen = torch.as_tensor(self.samples_seen, device=self.accelerator.device, dtype=torch.long)
            rate = self.accelerator.reduce(seen).item() / (time.perf_counter() - self.started)
            logs["train_samples_per_second" if "train_loss" in logs else "samples_per_second"] = round(rate, 2)
        super().log(logs, start_time)


def score_only_answers() -> None:
    """Have TRL compute the loss of the answer's few tokens only, on a CPU too.

    Where there is no Triton, TRL 1.16 projects every position onto the vocabulary and masks the result afterwards.
    With prompts of 60 tokens and answers of 3 that is 44 % of a training step of a 135M model. The loss is the same.
    """
    trl_utils._use_triton = lambda device: True  # read by the fused head to choose the positions, nowhere else there
