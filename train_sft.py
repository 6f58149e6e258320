"""Fine-tune EMO-LLaMA on FERID with TRL's SFTTrainer.

    accelerate launch train_sft.py --config configs/sft/quickstart.yaml

Any field of the recipe can be given on the command line, where it wins over the file:

    accelerate launch train_sft.py --config configs/sft/quickstart.yaml \
        --model_name_or_path runs/quickstart/checkpoint --dataset_name runs/quickstart/ferid \
        --output_dir runs/quickstart/adapter --learning_rate 3e-4

Several GPUs: `accelerate launch --config_file configs/accelerate/fsdp2.yaml train_sft.py --config ...`. Two processes
on a machine without GPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 train_sft.py --config ...

A recipe says what is trained: LoRA on the language model (`lora_target_modules`) and the new modules in full
(`lora_modules_to_save`), or without LoRA `trained_modules`. Everything else is frozen. A run that was stopped goes on
from its last saved step. All recipes, many machines, the data mix: docs/training.md.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, ScriptArguments, SFTConfig, get_peft_config, get_quantization_config

import modeling_emo_llama  # noqa: F401  registers the classes
from ferid_dataset.align import align
from ferid_dataset.collate import FeridCollator, rows_for
from ferid_dataset.errors import FeridError
from ferid_dataset.push_model import check_push
from ferid_dataset.train.arguments import StageArguments, read_recipe
from ferid_dataset.train.data import load_split, load_training_rows, load_validation_rows
from ferid_dataset.train.lengths import token_lengths
from ferid_dataset.train.packed_attention import use_packed_attention
from ferid_dataset.train.packing import PackedRows, PackingCollator
from ferid_dataset.train.record import finish, recipe_of, validation_metrics
from ferid_dataset.train.trained_parts import choose_trained, print_trained_parts
from ferid_dataset.train.trainer import FeridTrainer, score_only_answers
from ferid_dataset.train.validation import GenerationValidation

# The new modules stay out of quantisation, and so do the tower that they read and the head.
NEW_MODULES = ["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"]
UNQUANTISED = [*(f"model.{name}" for name in (*NEW_MODULES, "vision_tower")), "lm_head"]  # from the first letter on


def load_model(model_args: ModelConfig, stage_args: StageArguments):
    """Model and processor, with the switches of the run.

    Raises:
        FeridError: the name is no checkpoint that can be read.
    """
    name, settings = model_args.model_name_or_path, {}
    if quantization := get_quantization_config(model_args):
        quantization.llm_int8_skip_modules = UNQUANTISED
        settings = {"quantization_config": quantization}  # which loads to this process's GPU
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation, **settings
        )
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise FeridError(
            f"{name} is no checkpoint that can be read: make one with `emo-llama create {name}` ({reason})"
        ) from error
    processor.use_attributes = processor.use_attributes and stage_args.use_attributes
    processor.read_faces = processor.read_faces and stage_args.use_faces
    return model, processor


def set_prior_statistics(model, dataset: Dataset) -> None:
    """Standardise the face priors by the training faces; a checkpoint that has its statistics already keeps them."""
    mining = model.model.face_info_mining
    if mining is None or mining.embedding_mean.any():
        return
    faces = [face for row in dataset.select_columns("faces") for found in row["faces"] or [] for face in found[:1]]
    if len(faces) < 2:
        return
    mining.set_prior_statistics(
        torch.tensor([face["landmarks"] for face in faces]), torch.tensor([face["embedding"] for face in faces])
    )


def last_checkpoint(output_dir: str) -> str | None:
    """The last saved step that is whole: a run that was killed while it saved goes on from the one before."""
    folder = Path(output_dir)
    whole = folder.glob("checkpoint-*/trainer_state.json")  # which is written last
    steps = {int(file.parent.name.rpartition("-")[2]): file.parent for file in whole if file.stat().st_size}
    return str(steps[max(steps)]) if steps else None


def batches_of(rows: Dataset, processor, stage_args: StageArguments, args: SFTConfig) -> dict:
    """How the trainer makes batches: packed, grouped by length, or as the rows come."""
    settings = {"data_collator": FeridCollator(processor, assistant_only_loss=args.assistant_only_loss)}
    if stage_args.pack_tokens:
        settings["packs"] = PackedRows(rows, token_lengths(rows, processor), stage_args.pack_tokens, args.seed)
        settings["data_collator"] = PackingCollator(processor, assistant_only_loss=args.assistant_only_loss)
    elif args.train_sampling_strategy == "group_by_length":
        settings["lengths"] = token_lengths(rows, processor)
    return settings


def main(
    script_args: ScriptArguments, stage_args: StageArguments, training_args: SFTConfig, model_args: ModelConfig
) -> None:
    checkpoint = last_checkpoint(training_args.output_dir)
    push, training_args.push_to_hub = training_args.push_to_hub, False  # once, at the end, and by ourselves
    name = (training_args.hub_model_id or Path(training_args.output_dir).name) if push else None
    if name:  # what could not be pushed is told before the training
        base = model_args.model_name_or_path if model_args.use_peft else None
        check_push(None, name, base=base, merged=stage_args.push_merged, token=training_args.hub_token)
    first = training_args.process_index == 0

    # Load
    model, processor = load_model(model_args, stage_args)

    # Data
    rows = rows_for(processor, load_training_rows(script_args, stage_args, training_args.seed, quiet=not first))
    eval_rows = validation_rows = None
    if training_args.eval_strategy != "no":  # of the loss; what the model writes is validated below
        eval_rows = load_split(script_args.dataset_name, script_args.dataset_config, script_args.dataset_test_split)
        eval_rows = rows_for(processor, eval_rows)
    if stage_args.validate_steps:
        validation_rows = rows_for(processor, load_validation_rows(script_args, stage_args, training_args.seed))
    set_prior_statistics(model, rows)

    # Align, which a run that goes on has behind it
    if stage_args.align_epochs and checkpoint is None:
        align(
            model,
            processor,
            rows,
            training_args,
            epochs=stage_args.align_epochs,
            learning_rate=stage_args.align_learning_rate,
        )

    # Train
    if stage_args.trained_modules:
        choose_trained(model, stage_args.trained_modules)
    if training_args.use_cpu:
        score_only_answers()
    if stage_args.pack_tokens:
        use_packed_attention(model)
    trainer = FeridTrainer(
        model=model,
        args=training_args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        **batches_of(rows, processor, stage_args, training_args),
    )
    validation = None
    if validation_rows is not None:
        validation = GenerationValidation(trainer, validation_rows, stage_args.validate_steps)
        trainer.add_callback(validation)
    if first:
        print_trained_parts(trainer.model)
    recipe = recipe_of(trainer, rows, script_args, stage_args, model_args)
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save, and push
    trainer.save_model()
    metrics = []
    if validation and validation.metrics:
        metrics = [validation_metrics(validation.metrics, script_args, stage_args, validation_rows)]
    finish(trainer, recipe, metrics, push=name, merged=stage_args.push_merged)
    trainer.end()


OUT_OF_MEMORY = (
    "out of memory: halve per_device_train_batch_size (or pack_tokens) and double gradient_accumulation_steps, set "
    "activation_checkpointing true, or take a recipe that needs less (docs/training.md): LoRA, QLoRA, FSDP2"
)


def run() -> int:
    """The exit code: 2 for a mistake that the user can mend, told in a sentence."""
    try:
        main(*read_recipe())
    except FeridError as error:
        print(f"train_sft: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(error):
            raise
        print(f"train_sft: {OUT_OF_MEMORY} ({str(error).partition('. ')[0]})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
