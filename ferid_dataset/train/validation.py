"""Validation by what the model really writes: every N steps it answers a fixed sample of questions.

    {"eval_war": 0.584, "eval_uar": 0.531, "eval_invalid_rate": 0.004, "step": 500}      a line of the log

The questions, the greedy answers and their reading are those of `ferid evaluate --method generate`. The sample is
drawn once, by the seed of the run; every process answers its share.
"""

from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl.models import unwrap_model_for_generation

from ferid_dataset.evaluate.metrics import compute_metrics
from ferid_dataset.evaluate.predict import predict

LOGGED = ("war", "uar", "invalid_rate")


def fixed_sample(rows: Dataset, size: int, seed: int) -> Dataset:
    """`size` rows by lot, or all if there are fewer, those with the same options one after the other."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:size])
    options = rows.select_columns("options").select(chosen)["options"][:]
    order = sorted(range(len(chosen)), key=lambda i: tuple(options[i]))
    return rows.select(chosen[order])


def share_of(rows: Dataset, process: int, processes: int) -> Dataset:
    """The rows of one process. All get equally many of each list of options, hence make equally many batches.

    A model whose layers are spread over the processes (FSDP, ZeRO-3) runs in step, or hangs. What does not divide is
    filled up with the last row of the list, which is then answered more than once.
    """
    groups: dict[tuple, list[int]] = {}
    for index, options in enumerate(rows.select_columns("options")["options"][:]):
        groups.setdefault(tuple(options), []).append(index)
    own = []
    for group in groups.values():
        group = group + group[-1:] * (-len(group) % processes)
        own += group[process::processes]
    return rows.select(own)


class GenerationValidation(TrainerCallback):
    """
    Args:
        trainer ([`Trainer`]): whose model answers, and whose log gets WAR and UAR.
        rows (`Dataset`): what [`fixed_sample`] returned, of the config `category`.
        steps (`int`): optimizer steps between two validations; there is one after the last step, too.
        batch_size (`int`, *optional*, defaults to 16): rows that a process answers together.

    Attributes:
        metrics (`dict` or `None`): all figures of the last validation, as `compute_metrics` returns them.
    """

    def __init__(self, trainer, rows: Dataset, steps: int, batch_size: int = 16):
        self.trainer, self.rows, self.steps, self.batch_size = trainer, rows, steps, batch_size
        self.metrics: dict[str, Any] | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or state.global_step >= state.max_steps:
            should_log = control.should_log
            self.validate()
            control.should_log = should_log  # which a line of the log unsets, and the loss of this step has none yet

    def validate(self) -> None:
        model, accelerator = self.trainer.model_wrapped, self.trainer.accelerator
        was_training = model.training
        model.eval()
        own = share_of(self.rows, accelerator.process_index, accelerator.num_processes)
        with unwrap_model_for_generation(model, accelerator) as unwrapped:
            lines = predict(
                unwrapped, self.trainer.processing_class, own, method="generate", batch_size=self.batch_size
            )
            answered = gather_object(list(lines))
        self.metrics = compute_metrics(list({line["id"]: line for line in answered}.values()))
        self.trainer.log({f"eval_{name}": self.metrics[name] for name in LOGGED})  # in eval mode, or TRL adds its own
        model.train(was_training)
