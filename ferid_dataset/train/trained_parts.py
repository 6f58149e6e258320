"""What of a model is trained: chosen by name, and printed as a table before training.

    part                      parameters   trained      dtype      how
    vision_tower              21,665,280         0   bfloat16      frozen
    multi_modal_projector        554,112   554,112   float32       in full
    language_model           134,515,008   4,884,480 bfloat16      LoRA

Parts are the children of `EmoLlamaModel`, and `lm_head`.
"""

import math
import re
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from torch import nn

from ferid_dataset.errors import FeridError

# PEFT and FSDP put their own names between those of the model.
_WRAPPERS = re.compile(r"base_model\.model\.|_checkpoint_wrapped_module\.|base_layer\.|^module\.")


@dataclass
class Part:
    """Parameters of a part, numbers of scalars."""

    name: str
    total: int = 0
    trained: int = 0
    lora: int = 0  # of `trained`
    dtypes: set[str] = field(default_factory=set)

    @property
    def how(self) -> str:
        if not self.trained:
            return "frozen"
        if self.lora == self.trained:
            return "LoRA"
        return ("LoRA and " if self.lora else "") + (
            "in full" if self.trained - self.lora == self.total else "in part"
        )


def choose_trained(model: nn.Module, parts: list[str]) -> None:
    """Freeze all of an [`EmoLlamaForConditionalGeneration`] but these parts.

    Raises:
        FeridError: the model has no such part; says which it has.
    """
    known = [name for name, _ in model.model.named_children()] + ["lm_head"]
    if unknown := [part for part in parts if part not in known]:
        raise FeridError(f"--trained_modules: the model has no part {unknown[0]!r}: choose from {', '.join(known)}")
    model.requires_grad_(False)
    for part in parts:
        (model.lm_head if part == "lm_head" else getattr(model.model, part)).requires_grad_(True)


def trained_parts(model: nn.Module) -> list[Part]:
    """The parts in the order of the model; weights that two parts share (a tied `lm_head`) count for the first."""
    parts: dict[str, Part] = {}
    for name, parameter in model.named_parameters():
        words = _WRAPPERS.sub("", name).split(".")
        key = words[1] if words[0] == "model" else words[0]
        part = parts.setdefault(key, Part(key))
        lora = any(word.startswith("lora_") for word in words)
        size = _size(parameter)
        if not lora and "original_module" not in words:  # PEFT trains a copy and keeps the original
            part.total += size
        if parameter.requires_grad:
            part.trained += size
            part.lora += lora * size
        part.dtypes.add(str(parameter.dtype).removeprefix("torch."))
    return list(parts.values())


def _size(parameter) -> int:
    """Scalars of a parameter, also of one that is quantised or that DeepSpeed has taken apart."""
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else getattr(parameter, "ds_numel", parameter.numel())


def print_trained_parts(model: nn.Module, console: Console | None = None) -> None:
    parts = trained_parts(model)
    table = Table("part", title="What is trained")
    for column in ("parameters", "trained"):
        table.add_column(column, justify="right")
    table.add_column("dtype")
    table.add_column("how")
    for part in parts:
        table.add_row(part.name, f"{part.total:,}", f"{part.trained:,}", ", ".join(sorted(part.dtypes)), part.how)
    total, trained = sum(part.total for part in parts), sum(part.trained for part in parts)
    table.add_section()
    table.add_row("all", f"{total:,}", f"{trained:,}", "", f"{trained / total:.2%}")
    (console or Console()).print(table)
