"""The settings of a training: a recipe, the command line over it, and what cannot work said before anything starts.

    script_args, stage_args, training_args, model_args = read_recipe(["--config", "configs/sft/lora_one_gpu.yaml"])

Four groups in one flat file: TRL's `ScriptArguments`, `SFTConfig` and `ModelConfig`, and ours below.
"""

import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from ferid_dataset.errors import FeridError

TRACKERS = ("tensorboard", "trackio", "wandb")  # whose packages have the names that report_to knows them by


@dataclass
class StageArguments:
    trained_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts of the model that are trained in full, all others frozen: vision_tower, context_attention, "
            "multi_modal_projector, face_info_mining, token_gain, language_model, lm_head. Default: all, or with "
            "use_peft what lora_target_modules and lora_modules_to_save name."
        },
    )
    align_epochs: float = field(
        default=0,
        metadata={"help": "Epochs of the align stage, which opens the run: picture tokens learn the labels' words."},
    )
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the align stage."})
    data_mix: str | None = field(
        default=None,
        metadata={
            "help": "Configs and their weights, such as category=0.7,conversation=0.3; instead of dataset_config."
        },
    )
    balance: float = field(
        default=0.0,
        metadata={"help": "Rows are sampled by the frequency of their class to the power of minus this, 0 to 1."},
    )
    use_attributes: bool = field(
        default=True, metadata={"help": "Whether the prompt tells age, gender and race where they are known."}
    )
    use_faces: bool = field(default=True, metadata={"help": "Whether the model gets face priors."})
    pack_tokens: int = field(
        default=0,
        metadata={
            "help": "Pack samples into rows of at most so many tokens; per_device_train_batch_size counts these rows."
        },
    )
    validate_steps: int = field(
        default=0, metadata={"help": "Validate by real generation every so many optimizer steps, and at the end."}
    )
    validate_rows: int = field(default=256, metadata={"help": "Rows of a validation, by lot, the same each time."})
    validate_split: str = field(default="validation", metadata={"help": "The split that they are taken from."})
    push_merged: bool = field(
        default=False, metadata={"help": "With push_to_hub: the adapter merged into its base, as a whole model."}
    )


@dataclass
class TrainingConfig(SFTConfig):
    """`SFTConfig` with the defaults that our rows need, and batches of like length."""

    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Order of the rows: 'group_by_length' (default), 'random' or 'sequential'.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the faces column."})
    assistant_only_loss: bool = field(default=True, metadata={"help": "Learn the answers, not the questions."})
    max_length: int | None = field(default=None, metadata={"help": "A cut row would lose places of its pictures."})


class RecipeParser(TrlParser):
    """TRL's parser, whose mistakes are one sentence instead of a page of usage or a traceback."""

    def __init__(self):
        super().__init__((ScriptArguments, StageArguments, TrainingConfig, ModelConfig))

    def error(self, message: str):
        raise FeridError(_first_line(message))

    def parse_args_and_config(self, args: Sequence[str] | None = None, **kwargs) -> tuple:
        words = [part for word in (sys.argv[1:] if args is None else args) for part in _split_config(word)]
        if words[-1:] == ["--config"]:
            raise FeridError("--config names no recipe: --config configs/sft/lora_one_gpu.yaml")
        try:
            parsed = super().parse_args_and_config(words, **kwargs)
        except (ValueError, TypeError, ImportError, RuntimeError, OSError, yaml.YAMLError) as error:
            raise FeridError(self.explain(error)) from error
        for action in self._actions:  # argparse checks what is typed, not what a file says
            if action.choices is not None and action.dest in self._defaults_given:
                value = self._defaults_given[action.dest]
                if value is not None and str(value) not in map(str, action.choices):
                    raise FeridError(f"{action.dest}: {value!r} is none of {', '.join(map(str, action.choices))}")
        return parsed

    _defaults_given: dict = {}

    def set_defaults_with_config(self, **kwargs) -> list[str]:
        self._defaults_given = kwargs
        return super().set_defaults_with_config(**kwargs)

    def explain(self, error: Exception) -> str:
        words = str(error)
        if isinstance(error, OSError) and getattr(error, "filename", None):
            return f"there is no recipe {error.filename}"
        if isinstance(error, yaml.YAMLError):
            return f"the recipe is no YAML: {' '.join(words.split())}"
        if unknown := re.search(r"--([\w-]+)", words) if "rguments" in words else None:
            known = [action.dest for action in self._actions]
            close = difflib.get_close_matches(unknown[1].replace("-", "_"), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "train_sft.py --help lists all"
            return f"there is no setting {unknown[1]!r}: {hint}"
        if not torch.accelerator.is_available() and "bf16" in words:
            return NO_GPU
        return _first_line(words)


NO_GPU = (
    "this recipe wants a GPU, and torch sees none here; a CPU trains small models with --use_cpu true "
    "(configs/sft/quickstart.yaml)"
)


def read_recipe(words: Sequence[str] | None = None) -> tuple:
    """The four groups, from `words` or the command line.

    Raises:
        FeridError: there is no such recipe or setting, a value is none that it can have, or what the recipe wants is
            not here: a GPU, a package.
    """
    script_args, stage_args, training_args, model_args = groups = RecipeParser().parse_args_and_config(words)
    for name, value in (
        ("model_name_or_path", model_args.model_name_or_path),
        ("dataset_name", script_args.dataset_name),
    ):
        if not value:
            raise FeridError(f"give --{name}, or name it in the recipe")
    check_machine(training_args, model_args)
    if stage_args.trained_modules and model_args.use_peft:
        raise FeridError("trained_modules is for training without LoRA: with use_peft, say lora_modules_to_save")
    check_align(stage_args, model_args)
    return groups


def sharded_by() -> list[str]:
    """Who shares the model out over the processes, as `accelerate launch` says."""
    return [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]


def check_machine(training_args: SFTConfig, model_args: ModelConfig) -> None:
    """
    Raises:
        FeridError: the recipe wants a GPU or a package that is not here.
    """
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    if not torch.accelerator.is_available() and (sharded_by() or quantised or not training_args.use_cpu):
        raise FeridError(NO_GPU)
    wanted = {name: "report_to" for name in training_args.report_to or [] if name in TRACKERS}
    if quantised:
        wanted["bitsandbytes"] = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if model_args.attn_implementation == "flash_attention_2":
        wanted["flash_attn"] = "attn_implementation"
    for package, setting in wanted.items():
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise FeridError(f"{setting} needs {name}, which is not installed: pip install {name}")


def check_align(stage_args: StageArguments, model_args: ModelConfig) -> None:
    """
    Raises:
        FeridError: what the align stage taught would not be saved with the adapter, or the model is shared out.
    """
    from ferid_dataset.align import ALIGNED_MODULES

    if stage_args.align_epochs and sharded_by():  # its own trainer would share out the model's parts, for good
        raise FeridError(f"align_epochs cannot run under {sharded_by()[0]}: run configs/sft/align.yaml before")
    saved = model_args.lora_modules_to_save or []
    if stage_args.align_epochs and model_args.use_peft and (lost := set(ALIGNED_MODULES) - set(saved)):
        raise FeridError(f"align_epochs trains {', '.join(sorted(lost))}: add them to lora_modules_to_save")


def _split_config(word: str) -> list[str]:
    """TRL knows `--config FILE` alone."""
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _first_line(words: str) -> str:
    return words.strip().partition("\n")[0].rstrip(".")
