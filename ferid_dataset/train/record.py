"""What is left of a finished training beside its weights: the model card, and a repository on the Hub if asked for.

finish(trainer, recipe, [metrics], push="user/emo-llama")
"""

from dataclasses import asdict
from typing import Any

from datasets import Dataset

from ferid_dataset.drawn_faces import are_drawn
from ferid_dataset.train.data import count_by_source
from ferid_dataset.train.trained_parts import trained_parts

# The settings that decide what a model becomes; those of speed, logging and folders do not.
TOLD = (
    "num_train_epochs max_steps learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm optim "
    "per_device_train_batch_size gradient_accumulation_steps train_sampling_strategy bf16 fp16 assistant_only_loss"
).split()
TOLD_OF_MODEL = "dtype lora_r lora_alpha lora_dropout lora_target_modules load_in_4bit load_in_8bit".split()


def recipe_of(trainer, rows: Dataset, script_args, stage_args, model_args) -> dict[str, Any]:
    """What the model card tells of a training, as `ferid_dataset.model_card` wants it."""
    args = trainer.args
    model_settings = {name: getattr(model_args, name) for name in TOLD_OF_MODEL if model_args.use_peft}
    settings = {name: _plain(getattr(args, name)) for name in TOLD} | model_settings
    settings |= {name: value for name, value in asdict(stage_args).items() if value not in (None, 0, False)}
    config = stage_args.data_mix or script_args.dataset_config
    return {
        "base_model": model_args.model_name_or_path,
        "data": [{"config": config, **count} for count in count_by_source(rows, script_args.dataset_train_split)],
        "drawn": are_drawn(rows.select_columns("id")["id"][:]),
        "trained": {part.name: part.trained for part in trained_parts(trainer.model) if part.trained},
        "hyperparameters": settings | {"processes": args.world_size},
        "seed": args.seed,
    }


def validation_metrics(figures: dict[str, Any], script_args, stage_args, rows: Dataset) -> dict[str, Any]:
    """The figures of the last validation, named as `ferid evaluate` names its own."""
    drawn = " (drawn faces, no photographs)" if are_drawn(rows["id"]) else ""
    data, split = script_args.dataset_name, stage_args.validate_split
    measured_on = f"{len(rows)} rows of {data.rstrip('/').rpartition('/')[2]} {split}{drawn}"
    return {**figures, "data": data, "split": split, "source": None, "measured_on": measured_on, "method": "generate"}


def finish(trainer, recipe: dict[str, Any], metrics: list[dict[str, Any]], *, push: str | None, merged: bool) -> None:
    """Write the model card and, with `push`, the repository of that name; by the first process alone."""
    if not trainer.accelerator.is_main_process:
        return
    from ferid_dataset.push_model import push_model, write_model_card

    folder = trainer.args.output_dir
    name = push or str(folder).rstrip("/").rpartition("/")[2]
    write_model_card(folder, name, recipe, metrics)
    if push:
        private, token = bool(trainer.args.hub_private_repo), trainer.args.hub_token
        # Recipe and metrics are those that were left in the folder just now.
        url = push_model(folder, push, recipe=None, metrics=[], merged=merged, private=private, token=token)
        print(f"pushed to {url}")


def _plain(value: Any) -> Any:
    """An enumeration's value, such as that of `lr_scheduler_type`."""
    return getattr(value, "value", value)
