"""Fine-tune EMO-LLaMA on FERID with TRL's SFTTrainer.

    accelerate launch train_sft.py --config configs/sft/quickstart.yaml

Any field of the recipe can be given on the command line, where it wins over the file:

    accelerate launch train_sft.py --config configs/sft/quickstart.yaml \
        --model_name_or_path runs/quickstart/checkpoint --dataset_name runs/quickstart/ferid \
        --output_dir runs/quickstart/adapter --learning_rate 3e-4

Two processes on a machine without GPU (`accelerate launch --cpu --num_processes 2` would start one):

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 train_sft.py --config ...

A recipe says what is trained: LoRA on the language model (`lora_target_modules`) and the new modules in full
(`lora_modules_to_save`). Everything else is frozen. A run that was stopped goes on from its last saved step.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, ScriptArguments, SFTConfig, SFTTrainer, TrlParser, get_peft_config
from trl.trainer import utils as trl_utils

import modeling_emo_llama  # noqa: F401  registers the classes
from ferid_dataset.align import align
from ferid_dataset.collate import FeridCollator, rows_for


@dataclass
class StageArguments:
    align_epochs: float = field(
        default=0,
        metadata={"help": "Epochs of the align stage, which opens the run: picture tokens learn the labels' words."},
    )
    align_learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of the align stage."})


class SamplesPerSecond(TrainerCallback):
    """Adds the speed since the start to every line of the log; the progress bar beside it has the ETA."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            samples = (state.global_step - self.first_step) * args.train_batch_size * args.gradient_accumulation_steps
            logs["samples_per_second"] = round(samples * args.world_size / (time.perf_counter() - self.start), 2)


def set_prior_statistics(model, dataset) -> None:
    """Standardise the face priors by the training faces; a checkpoint that has its statistics already keeps them."""
    mining = model.model.face_info_mining
    faces = [face for row in dataset.select_columns("faces") for found in row["faces"] or [] for face in found[:1]]
    if mining is None or mining.embedding_mean.any() or len(faces) < 2:
        return
    mining.set_prior_statistics(
        torch.tensor([face["landmarks"] for face in faces]), torch.tensor([face["embedding"] for face in faces])
    )


def score_only_answers() -> None:
    """Have TRL compute the loss of the answer's few tokens only, on a CPU too.

    Where there is no Triton, TRL 1.16 projects every position onto the vocabulary and masks the result afterwards.
    With prompts of 60 tokens and answers of 3 that is 44 % of a training step of a 135M model. The loss is the same.
    """
    trl_utils._use_triton = lambda device: True  # read by the fused head to choose the positions, nowhere else there


def load(script_args: ScriptArguments, model_args: ModelConfig):
    """Model, processor and dataset; what is none of these is told in a sentence and ends the run with code 2."""
    name = model_args.model_name_or_path
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation
        )
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        fail(f"{name} is no checkpoint that can be read: make one with `emo-llama create {name}`", error)
    try:
        dataset = load_dataset(script_args.dataset_name, name=script_args.dataset_config)
    except (OSError, ValueError) as error:
        what = f"{script_args.dataset_name} is no FERID with the config {script_args.dataset_config}"
        fail(f"{what}: make one with `ferid build {script_args.dataset_name} --folder ROOT`", error)
    if script_args.dataset_train_split not in dataset:
        fail(f"{script_args.dataset_name} has no split {script_args.dataset_train_split}, only {', '.join(dataset)}")
    return model, processor, dataset


def fail(sentence: str, error: Exception | None = None) -> NoReturn:
    reason = str(error or "").partition("\n")[0]
    print(f"train_sft: {sentence}" + (f" ({reason})" if reason else ""), file=sys.stderr)
    sys.exit(2)


def main(
    script_args: ScriptArguments, stage_args: StageArguments, training_args: SFTConfig, model_args: ModelConfig
) -> None:
    output_dir = Path(training_args.output_dir)
    checkpoint = get_last_checkpoint(output_dir) if output_dir.is_dir() else None
    model, processor, dataset = load(script_args, model_args)
    dataset = {split: rows_for(processor, rows) for split, rows in dataset.items()}
    train_dataset = dataset[script_args.dataset_train_split]
    set_prior_statistics(model, train_dataset)
    if stage_args.align_epochs and checkpoint is None:
        align(
            model,
            processor,
            train_dataset,
            training_args,
            epochs=stage_args.align_epochs,
            learning_rate=stage_args.align_learning_rate,
        )
    if training_args.use_cpu:
        score_only_answers()
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        data_collator=FeridCollator(processor, assistant_only_loss=training_args.assistant_only_loss),
        train_dataset=train_dataset,
        eval_dataset=dataset[script_args.dataset_test_split] if training_args.eval_strategy != "no" else None,
        processing_class=processor,
        peft_config=get_peft_config(model_args),
        callbacks=[SamplesPerSecond()],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, StageArguments, SFTConfig, ModelConfig)).parse_args_and_config())
