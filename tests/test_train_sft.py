"""`accelerate launch train_sft.py`: what moves, what stays, what is saved; in one process and in two."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import load_dataset
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer import utils as trl_utils

import train_sft
from ferid_dataset.build import build_ferid
from ferid_dataset.collate import FeridCollator, to_chat
from ferid_dataset.drawn_faces import draw_face
from ferid_dataset.labels import LABELS
from ferid_dataset.train.arguments import read_recipe

ROOT = Path(train_sft.__file__).parent
NEW_MODULES = ("context_attention", "multi_modal_projector", "face_info_mining", "token_gain")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNREAD = re.compile("qformer.encoder.layer.1.(intermediate|output)[.]")  # the last block's words, which nobody reads


@pytest.fixture(scope="module")
def ferid(tmp_path_factory) -> Path:
    """21 drawn faces, three of each expression, all for training."""
    folder = tmp_path_factory.mktemp("data")
    for index, expression in enumerate(3 * LABELS[:7]):
        file = folder / "drawn" / "train" / expression / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_face(expression, np.random.default_rng(index), size=112).save(file)
    build_ferid(folder / "ferid", folder=folder / "drawn", faces="dlib", num_proc=1)
    return folder / "ferid"


@pytest.fixture(scope="module")
def rows(ferid):
    return load_dataset(str(ferid), "category", split="train")


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


def recipe(checkpoint: Path, ferid: Path, output: Path, **changes) -> list[str]:
    changes = {"max_steps": 3, "align_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 1} | changes
    words = ["--config", str(ROOT / "configs/sft/quickstart.yaml"), "--model_name_or_path", str(checkpoint)]
    words += ["--dataset_name", str(ferid), "--output_dir", str(output)]
    return words + [word for name, value in changes.items() for word in (f"--{name}", str(value))]


def launch(words: list[str], *options: str, **environment: str) -> None:
    """The documented command, from a folder that is not the checkout's."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    environment["PYTHONPATH"] = str(ROOT)  # in a checkout that is not installed
    command = ["accelerate", "launch", *options, str(ROOT / "train_sft.py"), *words]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]


def trainer_state(output: Path, step: int) -> dict:
    return json.loads((output / f"checkpoint-{step}" / "trainer_state.json").read_text())


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, ferid, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("launched") / "adapter"
    launch(recipe(tiny_checkpoint, ferid, output))
    return output


@pytest.fixture(scope="module")
def saved(adapter) -> dict[str, torch.Tensor]:
    weights = load_file(adapter / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in weights.items()}


@pytest.fixture(scope="module")
def before(tiny_checkpoint) -> dict[str, torch.Tensor]:
    return load_file(tiny_checkpoint / "model.safetensors")


def test_adapter_holds_lora_and_the_new_modules_and_nothing_else(saved, before):
    lora = {
        f"model.language_model.layers.{layer}.{part}.{name}.lora_{matrix}.weight"
        for layer in range(2)
        for name in PROJECTIONS
        for part in ["mlp" if name in PROJECTIONS[4:] else "self_attn"]
        for matrix in "AB"
    }
    new = {name for name in before if name.split(".")[1] in NEW_MODULES}
    assert {name.split(".")[1] for name in new} == set(NEW_MODULES)
    assert set(saved) == lora | new


def test_every_trained_tensor_moved(saved, before):
    still = [
        name
        for name, tensor in saved.items()
        if not tensor.isfinite().all()
        or (torch.equal(tensor, before[name]) if name in before else "lora_B" in name and not tensor.any())
    ]
    assert [name for name in still if not UNREAD.search(name)] == []


def test_adapter_loads_with_its_face_statistics(adapter, saved, rows):
    """By the folder alone; the priors are standardised by the training faces."""
    model = AutoModelForImageTextToText.from_pretrained(adapter).eval()
    processor = AutoProcessor.from_pretrained(adapter)
    mining = model.model.face_info_mining
    embeddings = torch.tensor([faces[0][0]["embedding"] for faces in rows["faces"] if faces[0]])
    assert len(embeddings) > 15
    torch.testing.assert_close(mining.embedding_mean, embeddings.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(mining.embedding_std, embeddings.std(0), atol=1e-5, rtol=0)
    assert (mining.shape_mean[36:42].mean(0) - torch.tensor([-0.5, 0])).abs().max() < 1e-3
    loaded = {re.sub(r"\.(modules_to_save\.)?default", "", name): value for name, value in model.state_dict().items()}
    for name, tensor in saved.items():
        digits = 8e-3 if ".lora_" in name else 0  # LoRA takes the base model's bfloat16, the new modules stay float32
        torch.testing.assert_close(loaded[name].float(), tensor, atol=0, rtol=digits)
    inputs = processor.apply_chat_template(
        to_chat(rows[0], answers=False),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3


def test_merged_and_in_bfloat16_it_answers_as_the_adapter(adapter, rows, tmp_path):
    """The adapter merged into its base, saved in shards and loaded from there, in full and in half precision."""
    processor = AutoProcessor.from_pretrained(adapter)
    inputs = processor.apply_chat_template(
        to_chat(rows[0], answers=False), tokenize=True, return_dict=True, return_tensors="pt"
    )
    checkpoint = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()
    with torch.inference_mode():
        expected = tuned(**inputs).logits
        tuned.merge_and_unload().save_pretrained(tmp_path / "merged", max_shard_size="200KB")
        assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
            merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype=dtype).eval()
            torch.testing.assert_close(merged(**inputs).logits.float(), expected, atol=tolerance, rtol=tolerance)


def test_two_processes_really_run(adapter, tiny_checkpoint, ferid, tmp_path):
    """Two processes with batches of 2 see what one with batches of 4 sees, and learn the same."""
    words = recipe(tiny_checkpoint, ferid, tmp_path / "adapter", per_device_train_batch_size=2)
    launch(words, "--multi_gpu", "--num_processes", "2", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    assert {f.name for f in (tmp_path / "adapter" / "checkpoint-3").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    alone, together = trainer_state(adapter, 3), trainer_state(tmp_path / "adapter", 3)
    assert alone["epoch"] == together["epoch"] == 3 / 6  # of steps with 4 of 21 rows; 3 / 11 if each ran alone
    for one, two in zip(alone["log_history"][:3], together["log_history"][:3], strict=True):
        assert one["num_tokens"] == two["num_tokens"], "the same rows"
        assert one["loss"] == pytest.approx(two["loss"], rel=0.05)


@pytest.fixture(scope="module")
def run_here(tiny_checkpoint, ferid, tmp_path_factory):
    """`train_sft.main` in this process, as a function of changes to the recipe; returns its trainer."""
    output = tmp_path_factory.mktemp("here") / "adapter"
    trainers = []

    class Recorded(train_sft.FeridTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            trainers.append(self)

    def run(**changes):
        arguments = read_recipe(recipe(tiny_checkpoint, ferid, output, **changes))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_sft, "FeridTrainer", Recorded)
            patch.setattr(trl_utils, "_use_triton", trl_utils._use_triton)  # is put back
            train_sft.main(*arguments)
        return trainers[-1]

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def test_frozen_weights_stay_and_a_stopped_run_goes_on(run_here, tiny_checkpoint, monkeypatch):
    begun = run_here(max_steps=1).state.log_history[0]
    monkeypatch.setattr(train_sft, "align", lambda *args, **kwargs: pytest.fail("aligned again"))
    trainer = run_here(max_steps=3)
    assert trainer.state.global_step == 3 and trainer.state.log_history[0] == begun

    learns = {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()}
    assert all(learns[name] == (".lora_" in name or ".modules_to_save." in name) for name in learns)
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in trainer.model.state_dict().items()
    }
    before = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).state_dict()
    frozen = [name for name in before if name.split(".")[1] not in NEW_MODULES]
    assert {name.split(".")[1] for name in frozen} == {"vision_tower", "language_model", "weight"}  # of lm_head
    for name in frozen:
        assert torch.equal(after[name], before[name]), name


def test_loss_of_the_answers_alone_is_trls_own(tiny_checkpoint, processor, rows, monkeypatch):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    trl_utils.add_fused_lm_head(model)
    batch = FeridCollator(processor, assistant_only_loss=True)([rows[i] for i in range(4)])
    batch["labels"][1] = -100  # a row without an answer

    def loss_and_gradient():
        model.zero_grad()
        loss = model(**batch, fused_lm_head=True).loss
        loss.backward()
        return loss, model.model.multi_modal_projector.linear_1.weight.grad.clone()

    monkeypatch.setattr(trl_utils, "_use_triton", trl_utils._use_triton)  # is put back
    assert not trl_utils._use_triton(torch.device("cpu"))
    loss, gradient = loss_and_gradient()
    train_sft.score_only_answers()
    assert trl_utils._use_triton(torch.device("cpu"))
    quick_loss, quick_gradient = loss_and_gradient()
    torch.testing.assert_close(quick_loss, loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(quick_gradient, gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(quick_loss, model(**batch).loss, atol=1e-5, rtol=0)  # transformers' own


def test_labels_are_the_answer_and_its_end(processor, rows):
    examples = [rows[i] for i in range(len(rows))][::5]
    batch = FeridCollator(processor, assistant_only_loss=True)(examples)
    for row, labels, ids in zip(examples, batch["labels"], batch["input_ids"], strict=True):
        learned = labels[labels != -100]
        assert processor.decode(learned) == row["label"] + "<|im_end|>"
        assert torch.equal(learned, ids[labels != -100])
    everything = FeridCollator(processor)(examples)["labels"]
    assert torch.equal(everything != -100, batch["attention_mask"].bool())


def test_labels_of_several_turns(processor, rows):
    turns = [("user", "Sad?"), ("assistant", "No."), ("user", "Why?"), ("assistant", "A smile.")]
    row = rows[0] | {"messages": [{"role": role, "content": content} for role, content in turns]}
    [labels] = FeridCollator(processor, assistant_only_loss=True)([row])["labels"]
    assert processor.decode(labels[labels != -100]) == "No.<|im_end|>A smile.<|im_end|>"


def test_collator_makes_the_processors_tensors(processor, rows):
    """The faces of the rows reach the model; rows whose faces are null are looked at."""
    examples = [rows[0], rows[1] | {"faces": None}, rows[2] | {"faces": [[]]}]
    batch = FeridCollator(processor, assistant_only_loss=True)(examples)
    pictures = [row["images"][0] for row in examples]
    inputs = processor(images=pictures, faces=[rows[0]["faces"][0], None, []], return_tensors="pt")
    assert set(batch) == {*processor.model_input_names, "labels"} - {"pixel_values_videos"}
    for name in inputs:
        assert torch.equal(batch[name], inputs[name]), name
    assert batch["face_mask"].flatten().tolist() == [True, True, False]
    stored = FeridCollator(processor)([rows[1]])
    torch.testing.assert_close(batch["face_landmarks"][1], stored["face_landmarks"][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(batch["face_embeddings"][1], stored["face_embeddings"][0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_name_or_path": "EMPTY"}, "is no checkpoint that can be read: make one with `emo-llama create"),
        ({"dataset_name": "EMPTY"}, "is no FERID with the config category: make one with `ferid build"),
        ({"dataset_config": "conversation"}, "is no FERID with the config conversation: build it with the conversat"),
        ({"dataset_train_split": "test"}, "has no split test, only train"),
        ({"validate_steps": 1}, "has no split validation, only train; --validate_split names another"),
        (
            {"data_mix": "category=0.7,conversations=0.3"},
            "'conversations' is no config of FERID; write it as category",
        ),
        ({"data_mix": "category=1,category=2"}, "'category' comes twice"),
        ({"data_mix": "category=-1"}, "the weight '-1' of category is no number above 0"),
        ({"balance": 2}, "--balance 2 is out of range"),
        ({"dtype": "bloat16"}, "argument --dtype: invalid choice: 'bloat16'"),
        ({"lerning_rate": 1}, "there is no setting 'lerning_rate': did you mean learning_rate?"),
        ({"learning_rate": "fast"}, "argument --learning_rate"),
        ({"use_cpu": "false", "bf16": "false"}, "this recipe wants a GPU, and torch sees none here"),
        ({"use_cpu": "false"}, "this recipe wants a GPU, and torch sees none here"),
        ({"load_in_4bit": "true"}, "this recipe wants a GPU, and torch sees none here"),
        ({"lora_modules_to_save": "token_gain"}, "align_epochs trains context_attention, face_info_mining"),
        (
            {"use_peft": "false", "align_epochs": 0, "trained_modules": "projector"},
            "the model has no part 'projector'",
        ),
        ({"pack_tokens": 16}, "tokens, more than the 16 of a pack"),
    ],
)
def test_a_mistake_is_one_sentence(changes, sentence, tiny_checkpoint, ferid, tmp_path, capsys, monkeypatch):
    if torch.accelerator.is_available() and "wants a GPU" in sentence:
        pytest.skip("there is a GPU")
    changes = {name: tmp_path if value == "EMPTY" else value for name, value in changes.items()}
    words = recipe(tiny_checkpoint, ferid, tmp_path / "adapter", **changes)
    monkeypatch.setattr("sys.argv", ["train_sft.py", *words])
    assert train_sft.run() == 2
    words = capsys.readouterr().err.strip().splitlines()[-1]
    assert words.startswith("train_sft: ") and sentence in words
