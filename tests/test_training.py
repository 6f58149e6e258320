"""Trainings of a tiny model in this process: equal losses however batches are made, exact counts, what moved."""

import json
from io import StringIO

import pytest
import torch
from datasets import load_dataset
from rich.console import Console
from safetensors.torch import load_file
from training_runs import launch, losses, make_training_ferid, recipe, train_here, without_dropout
from transformers import AutoModelForImageTextToText, AutoProcessor

import train_sft
from ferid_dataset.collate import FeridCollator
from ferid_dataset.train.lengths import token_lengths
from ferid_dataset.train.trained_parts import choose_trained, print_trained_parts, trained_parts
from ferid_dataset.train.trainer import LengthGroups
from ferid_dataset.train.validation import fixed_sample, share_of

ALIGNED = ["context_attention", "multi_modal_projector", "face_info_mining"]
UNREAD = (
    "mask_token",
    "qformer.encoder.layer.1.intermediate.",
    "qformer.encoder.layer.1.output.",
)  # as in test_train_sft


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    return make_training_ferid(tmp_path_factory.mktemp("data") / "ferid", rows=13)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    return without_dropout(tiny_checkpoint, tmp_path_factory.mktemp("data") / "checkpoint")


BOTH = {"data_mix": "category=1,conversation=1", "lr_scheduler_type": "constant", "warmup_steps": 0}  # 13 and 7 rows


@pytest.fixture(scope="module")
def eight(checkpoint, ferid, tmp_path_factory):
    """Batches of 8 rows of different lengths, the last of an epoch of 4; two steps into the second epoch."""
    output = tmp_path_factory.mktemp("eight") / "adapter"
    return train_here(*recipe(checkpoint, ferid, output, per_device_train_batch_size=8, max_steps=5, **BOTH))


def test_one_row_at_a_time_and_eight_give_the_same_losses(eight, checkpoint, ferid, tmp_path):
    """A loss is the mean over the tokens of all eight, not the mean of eight means."""
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "max_steps": 3}
    trainer = train_here(*recipe(checkpoint, ferid, tmp_path, **changes, **BOTH))
    assert losses(trainer.state) == pytest.approx(losses(eight.state)[:3], rel=1e-5)
    tokens = [[line["num_tokens"] for line in t.state.log_history if "loss" in line][:3] for t in (eight, trainer)]
    assert tokens[0] == tokens[1]


def test_packs_of_all_rows_give_the_same_loss_and_true_counts(checkpoint, ferid, tmp_path):
    """An epoch that is one step: whatever the batches are, the loss is that of all rows."""
    mix, rows = {"max_steps": 1, **BOTH}, 20
    padded = train_here(*recipe(checkpoint, ferid, tmp_path / "a", per_device_train_batch_size=rows, **mix))
    few = {
        "pack_tokens": 400,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 20,
        "validate_steps": 1,
    }
    packed = train_here(*recipe(checkpoint, ferid, tmp_path / "b", **few, **mix))
    assert packed.state.global_step == 1 and 1 < len(packed.train_dataset) < rows / 2
    assert losses(packed.state) == pytest.approx(losses(padded.state), rel=1e-5)
    assert packed.samples_seen == padded.samples_seen == rows
    lines = [[line for line in t.state.log_history if "loss" in line][0] for t in (padded, packed)]
    assert lines[0]["num_tokens"] == lines[1]["num_tokens"] == sum(padded.lengths)
    assert json.loads((tmp_path / "b" / "model_card.json").read_text())["metrics"][0]["n"] == 6
    last = packed.state.log_history[-1]
    assert last["train_samples_per_second"] * last["train_runtime"] > rows / 2, "of rows, not of packs"


def test_rows_of_a_batch_have_like_lengths(eight):
    lengths = token_lengths(eight.train_dataset, eight.processing_class)
    assert eight.lengths == lengths and len(lengths) == 20
    ordered = [lengths[index] for index in LengthGroups(lengths, 8, seed=0, epoch=lambda: 0)]
    fills = [
        [sum(some) / 4 / max(some) for some in zip(*[iter(order)] * 4, strict=True)] for order in (lengths, ordered)
    ]
    assert sum(fills[1]) > sum(fills[0]) + 0.3


def test_the_order_is_of_the_seed_and_the_epoch_alone():
    lengths, orders = list(range(100)), []
    for epoch in (0, 1, 0):
        torch.manual_seed(len(orders))
        orders.append(list(LengthGroups(lengths, 8, seed=3, epoch=lambda epoch=epoch: epoch)))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[1]) == lengths


def test_a_stopped_run_goes_on_with_the_same_losses(eight, checkpoint, ferid, tmp_path, monkeypatch):
    """Stopped in the second epoch, after a save and a step that was not saved; align is not run again."""
    changes = {"per_device_train_batch_size": 8, "max_steps": 5, "save_strategy": "steps", "save_steps": 4}
    words = recipe(checkpoint, ferid, tmp_path, **changes, **BOTH)
    steps = []

    def stop_at_the_fifth(self, *args, step=train_sft.FeridTrainer.training_step, **kwargs):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train_sft.FeridTrainer, "training_step", stop_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            train_here(*words)
    (tmp_path / "checkpoint-5").mkdir()  # a save that was cut short
    resumed = train_here(*words)
    assert losses(resumed.state) == losses(eight.state)
    for name, tensor in eight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_validation_is_by_what_the_model_writes(checkpoint, ferid, tmp_path, capsys):
    trainer = train_here(*recipe(checkpoint, ferid, tmp_path, validate_steps=2, validate_rows=5))
    history = trainer.state.log_history
    assert [line["step"] for line in history if "eval_war" in line] == [2, 3]
    assert [line["step"] for line in history if "loss" in line] == [1, 2, 3], "none is lost to the validation"
    assert trainer.model.training
    record = json.loads((tmp_path / "model_card.json").read_text())
    [metrics] = record["metrics"]
    assert (
        metrics["n"] == 5
        and metrics["split"] == "validation"
        and metrics["measured_on"] == "5 rows of ferid validation"
    )
    assert record["recipe"]["data"] == [{"config": "category", "source": "raf_db", "split": "train", "rows": 13}]
    assert set(record["recipe"]["trained"]) == {*train_sft.NEW_MODULES, "language_model"}
    assert "What is trained" in capsys.readouterr().out
    assert "# " in (tmp_path / "README.md").read_text()


def test_at_the_end_it_is_pushed_once(checkpoint, ferid, tmp_path, monkeypatch):
    """By `push_model`, which test_push_model tries against a Hub; never by TRL at every save."""
    pushed = []
    monkeypatch.setattr("ferid_dataset.push_model.push_model", lambda *args, **kwargs: pushed.append((args, kwargs)))
    changes = {"push_to_hub": "true", "hub_model_id": "me/emo", "push_merged": "true", "hub_token": "hf_0"}
    changes |= {"hub_private_repo": "true"}
    train_here(*recipe(checkpoint, ferid, tmp_path, max_steps=1, save_steps=1, **changes))
    [((folder, name), settings)] = pushed
    assert (str(folder), name) == (str(tmp_path), "me/emo") and settings["merged"] and settings["private"]
    assert "me/emo" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "model_card.json").read_text())["metrics"] == []  # nothing was validated


def test_the_sample_is_fixed_and_shared_evenly(ferid):
    rows = load_dataset(str(ferid), "category", split="train")
    options = [["anger", "fear"] if i % 3 else ["sadness"] for i in range(len(rows))]
    rows = rows.remove_columns("options").add_column("options", options)
    sample = fixed_sample(rows, 10, seed=1)
    assert sample["id"][:] == fixed_sample(rows, 10, seed=1)["id"][:] != fixed_sample(rows, 10, seed=2)["id"][:]
    shares = [share_of(sample, process, 4) for process in range(4)]
    assert {name for share in shares for name in share["id"]} == set(sample["id"])
    assert len({str(share["options"][:]) for share in shares}) == 1, "so all make the same batches"


def part_of(name: str) -> str:
    return name.split(".")[1 if name.startswith("model.") else 0]


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"trained_modules": ALIGNED}, set(ALIGNED)),
        (
            {"trained_modules": [*train_sft.NEW_MODULES, "language_model", "lm_head"]},
            {*train_sft.NEW_MODULES, "language_model", "lm_head"},
        ),
    ],
    ids=["align", "full"],
)
def test_exactly_what_is_named_moves(changes, moved, checkpoint, ferid, tmp_path):
    """The stage instruct (LoRA) is in test_train_sft."""
    changes = {"use_peft": "false", "warmup_steps": 0, "learning_rate": 1e-3, "max_steps": 2, **changes}
    trainer = train_here(*recipe(checkpoint, ferid, tmp_path, **changes))
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path))
    statistics = ("_mean", "_std")  # of the faces: computed, not trained
    changed = {
        n for n in before if not torch.equal(before[n].float(), after[n].float()) and not n.endswith(statistics)
    }
    assert {part_of(name) for name in changed} == moved
    still = [n for n in before if part_of(n) in moved and n not in changed and not n.endswith(statistics)]
    assert [n for n in still if not any(unread in n for unread in UNREAD)] == []

    table = {part.name: part for part in trained_parts(trainer.model)}
    assert {name for name, part in table.items() if part.trained} == moved
    for name, part in table.items():
        sizes = sum(p.numel() for n, p in trainer.model.named_parameters() if part_of(n) == name)
        assert part.total == sizes and part.trained == (sizes if name in moved else 0)
        assert part.how == ("in full" if name in moved else "frozen")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)  # a checkpoint that instruct can start from
    assert model.model.face_info_mining.embedding_mean.any()
    assert AutoProcessor.from_pretrained(tmp_path).read_faces


def test_table_of_trained_parts(eight, checkpoint):
    text = StringIO()
    print_trained_parts(eight.model, Console(file=text, width=100))
    rows = {line.split()[1]: line.replace("│", " ").split() for line in text.getvalue().splitlines() if "│" in line}
    assert rows["language_model"][-1] == "LoRA" and rows["vision_tower"][-1] == "frozen"
    assert rows["face_info_mining"][-2:] == ["in", "full"]
    plain = AutoModelForImageTextToText.from_pretrained(checkpoint)
    choose_trained(plain, [])
    assert rows["all"][1] == f"{sum(p.numel() for p in plain.parameters()):,}", (
        "LoRA and PEFT's copies are not counted"
    )
    trained = sum(p.numel() for p in eight.model.parameters() if p.requires_grad)
    assert rows["all"][2] == f"{trained:,}"


def test_without_faces_and_attributes(checkpoint, ferid, tmp_path):
    changes = {"use_faces": "false", "use_attributes": "false", "max_steps": 1}
    changes |= {"eval_strategy": "epoch", "dataset_test_split": "validation"}  # and with the loss on other rows
    trainer = train_here(*recipe(checkpoint, ferid, tmp_path, **changes))
    assert [line["step"] for line in trainer.state.log_history if "eval_loss" in line] == [1]
    saved = AutoProcessor.from_pretrained(tmp_path)
    assert not saved.read_faces and not saved.use_attributes, "so that it is evaluated as it was trained"
    rows = [trainer.train_dataset[i] for i in range(4)]
    assert rows[1]["attributes"]["gender"] == "female" and rows[1]["faces"][0]
    batch = FeridCollator(saved)(rows)
    assert not batch["face_mask"].any() and not batch["face_embeddings"].any()
    assert "female" not in saved.decode(batch["input_ids"][1])
    usual = FeridCollator(AutoProcessor.from_pretrained(checkpoint))(rows)
    assert usual["face_mask"].all() and "female" in saved.decode(usual["input_ids"][1])
    assert trainer.lengths == token_lengths(trainer.train_dataset, saved)


def test_new_modules_of_a_quantised_model_stay_in_float32(checkpoint, ferid, tmp_path, monkeypatch):
    """TRL turns all that is trained on a quantised model to bfloat16. (No 4-bit weights here: they want a GPU.)"""
    load_model = train_sft.load_model

    def as_if_quantised(*args):
        model, processor = load_model(*args)
        model.is_loaded_in_8bit = True
        return model, processor

    monkeypatch.setattr(train_sft, "load_model", as_if_quantised)
    trainer = train_here(*recipe(checkpoint, ferid, tmp_path, max_steps=1, dtype="bfloat16"))
    kinds = {
        n.split(".")[3] if "lora_" not in n else "lora": p.dtype
        for n, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    assert kinds == {"lora": torch.bfloat16} | {name: torch.float32 for name in train_sft.NEW_MODULES}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_out_of_memory_is_a_sentence(error, monkeypatch, capsys):
    def train(*args):
        raise error

    monkeypatch.setattr(train_sft, "main", train)
    monkeypatch.setattr(train_sft, "read_recipe", lambda: ())
    assert train_sft.run() == 2
    words = capsys.readouterr().err
    assert words.startswith("train_sft: out of memory: halve per_device_train_batch_size") and words.count("\n") == 1


def test_tensorboard_gets_the_validation(checkpoint, ferid, tmp_path):
    pytest.importorskip("tensorboard")
    train_here(*recipe(checkpoint, ferid, tmp_path, validate_steps=3, report_to="tensorboard"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = [file.parent for file in tmp_path.rglob("events.*")]
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert {"eval/uar", "eval/war", "train/loss", "train/samples_per_second"} <= set(accumulator.Tags()["scalars"])


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(eight, checkpoint, ferid, tmp_path):
    """With the real launcher, and validation shared between them."""
    words = recipe(checkpoint, ferid, tmp_path, per_device_train_batch_size=4, max_steps=5, validate_steps=5, **BOTH)
    launch(words, "--multi_gpu", "--num_processes", "2", ACCELERATE_USE_CPU="true")
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    # The fourth step has 4 rows, which one process takes; the other one begins again with the first rows.
    assert losses(state)[:2] == pytest.approx(losses(eight.state)[:2], rel=1e-5)
    assert losses(state)[2] == pytest.approx(losses(eight.state)[2], rel=1e-3)  # Adam divides rounding by rounding
    record = json.loads((tmp_path / "model_card.json").read_text())
    assert record["metrics"][0]["n"] == 6 and record["recipe"]["hyperparameters"]["processes"] == 2
