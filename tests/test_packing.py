"""Packed rows: the lengths they are planned by, and that no sample notices the others it shares a row with."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset, load_dataset
from made_ferid import make_ferid
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import SFTConfig

from ferid_dataset.collate import FeridCollator
from ferid_dataset.errors import FeridError
from ferid_dataset.ferid import FEATURES
from ferid_dataset.train.lengths import token_lengths
from ferid_dataset.train.packed_attention import NAME, packed_attention, use_packed_attention
from ferid_dataset.train.packing import PackedRows, PackingCollator, best_fit
from ferid_dataset.train.trainer import FeridTrainer

FACE = {"box": [4.0, 4.0, 20.0, 20.0], "score": 1.0, "landmarks": [[8.0, 8.0]] * 68, "embedding": [0.1] * 128}
PEOPLE = [  # attributes, and the faces of each frame: age and gender as a face backend would add them
    (None, lambda n: [[]] * n),
    ({"age": "20-39", "gender": "female", "race": "Asian"}, lambda n: [[]] * n),
    (
        {"age": None, "gender": None, "race": "Black"},
        lambda n: [[]] + [[FACE | {"age": 31.4, "gender": "male"}]] * (n - 1),
    ),
    (None, lambda n: [[FACE | {"age": 8.0, "gender": None}, FACE | {"age": 70.0, "gender": "male"}]] * n),
]
TURNS = [
    ("user", "What does the person feel?"),
    ("assistant", "Joy."),
    ("user", "Why?"),
    ("assistant", "They may have won."),
]


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Dataset:
    """Eight stills and four clips; some with attributes, some with faces of known age, some with two turns."""
    made = load_dataset(
        str(make_ferid(tmp_path_factory.mktemp("packing") / "ferid", stills=8, clips=4)), split="train"
    )

    def vary(row: dict, index: int) -> dict:
        attributes, faces = PEOPLE[index % len(PEOPLE)]
        nobody = {"age": None, "gender": None, "race": None}
        changed = {"attributes": attributes or nobody, "faces": faces(len(row["images"]))}
        if index % 3 == 0:
            changed["messages"] = [{"role": role, "content": words} for role, words in TURNS]
        return changed

    return made.map(vary, with_indices=True, features=FEATURES)


def padded_lengths(rows, processor) -> list[int]:
    collate = FeridCollator(processor)
    return [collate([row])["input_ids"].shape[1] for row in rows]


def model_of(checkpoint, attention: str):
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="sdpa" if attention == NAME else attention
    ).eval()
    if attention == NAME:
        use_packed_attention(model)
    return model


# Lengths


def test_lengths_are_those_of_the_collator(rows, processor):
    lengths = token_lengths(rows, processor)
    assert lengths == padded_lengths(rows, processor)
    assert len(set(lengths)) > 8
    shuffled = rows.shuffle(seed=1).select(range(2, 9))
    assert token_lengths(shuffled, processor) == padded_lengths(shuffled, processor)


@pytest.mark.parametrize("setting", [{"use_attributes": False}, {"read_faces": False}])
def test_lengths_follow_the_processors_settings(rows, tiny_checkpoint, setting):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    for name, value in setting.items():
        setattr(processor, name, value)
    assert token_lengths(rows, processor) == padded_lengths(rows, processor)


def test_lengths_of_pictures_that_are_not_there(rows, processor):
    """Nothing is opened."""
    gone = [[{"bytes": None, "path": "/nowhere.jpg"}] * len(row["images"]) for row in rows]
    absent = rows.remove_columns("images").add_column("images", gone)
    assert token_lengths(absent, processor) == token_lengths(rows, processor)


def test_lengths_without_faces(rows, tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    unseen = rows.map(lambda row: {"faces": None}, features=FEATURES)
    assert token_lengths(unseen, processor) == padded_lengths(unseen, processor)  # dlib knows no ages
    processor.face_backend = "insightface"
    with pytest.raises(FeridError, match="ferid add-faces"):
        token_lengths(unseen, processor)
    assert len(token_lengths(unseen.select([1]), processor)) == 1  # age and gender are annotated


# Packs


def test_packs_hold_every_row_once_and_are_full():
    lengths = np.random.default_rng(0).integers(20, 300, 2000).tolist()
    packs = PackedRows(Dataset.from_dict({"n": range(2000)}), lengths, 1024, seed=3)
    assert sorted(itertools.chain(*packs.packs)) == list(range(2000))
    assert max(sum(lengths[i] for i in pack) for pack in packs.packs) <= 1024
    assert packs.fill == sum(lengths) / (len(packs) * 1024) > 0.97
    assert [row["n"] for row in packs[0]] == packs.packs[0]
    again, other = (PackedRows(packs.rows, lengths, 1024, seed=seed) for seed in (3, 4))
    assert again.packs == packs.packs != other.packs


def test_best_fit():
    assert best_fit([0, 1, 2, 3, 4], [50, 60, 40, 30, 10], 100) == [[0, 3, 4], [1, 2]]
    assert best_fit([1, 0], [10, 10], 10) == [[1], [0]]


def test_a_row_longer_than_a_pack_is_told():
    with pytest.raises(FeridError, match="row 1 of the dataset has 30 tokens, more than the 20 of a pack"):
        PackedRows(Dataset.from_dict({"n": [1, 2]}), [10, 30], 20)


# Exactness


@pytest.mark.parametrize("attention", ["eager", "sdpa", NAME])
@pytest.mark.parametrize("chosen", [range(4), range(8, 12), (9, 0, 3, 11, 8, 1)], ids=["stills", "clips", "mixed"])
def test_logits_loss_and_gradients_are_those_of_the_padded_batch(rows, processor, tiny_checkpoint, attention, chosen):
    examples = [rows[i] for i in chosen]
    padded = FeridCollator(processor, assistant_only_loss=True)(examples)
    packed = PackingCollator(processor, assistant_only_loss=True)([examples[:2], examples[2:]])
    assert "attention_mask" not in packed
    lengths = [packed["input_ids"].shape, packed["labels"].shape, packed["position_ids"].shape]
    assert lengths == 3 * [(1, sum(padded_lengths(examples, processor)))]
    assert (packed["labels"][packed["position_ids"] == 0] == -100).all()

    model, real = model_of(tiny_checkpoint, attention), padded["attention_mask"].bool()
    results = []
    for batch in (padded, packed):
        model.zero_grad()
        outputs = model(**batch, use_cache=False)
        outputs.loss.backward()
        logits = outputs.logits[real] if batch is padded else outputs.logits[0]
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        results.append((logits.detach(), outputs.loss.detach(), gradients))
    (logits, loss, gradients), (packed_logits, packed_loss, packed_gradients) = results
    torch.testing.assert_close(packed_logits, logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=0)
    assert gradients.keys() == packed_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("cache", [{"use_cache": False}, {"use_cache": True}, {}], ids=["off", "on", "default"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", NAME])
def test_no_sample_sees_another(rows, processor, tiny_checkpoint, attention, cache):
    """Another first sample of the same length changes nothing behind it, not in the last bit; also with a cache."""
    model = model_of(tiny_checkpoint, attention)
    batch = PackingCollator(processor)([rows[1], rows[9], rows[2]])
    own = batch["cu_seq_lens_q"][1]
    other = batch | {"input_ids": batch["input_ids"].clone(), "pixel_values": batch["pixel_values"].clone()}
    other["pixel_values"][0] += 1
    words = other["input_ids"][0, :own]
    words[words != processor.image_token_id] = 50
    with torch.no_grad():
        before, after = (model(**inputs, **cache).logits[0] for inputs in (batch, other))
    assert not torch.equal(before[:own], after[:own])
    assert torch.equal(before[own:], after[own:])


def test_a_mask_beside_packed_positions_is_refused(rows, processor, tiny_checkpoint):
    """It would join the samples, silently."""
    batch = PackingCollator(processor)([rows[0], rows[1]])
    with pytest.raises(ValueError, match="leave attention_mask out"):
        model_of(tiny_checkpoint, "sdpa")(**batch, attention_mask=torch.ones_like(batch["input_ids"]))


def test_first_tokens_are_never_learned(rows, processor):
    """Nor are they in a padded batch, where nothing stands before them."""
    packed = PackingCollator(processor)([rows[0], rows[1], rows[8]])
    begins = packed["position_ids"] == 0
    assert begins.sum() == 3
    assert torch.equal(packed["labels"] == -100, begins)


def test_packed_attention_pads_and_generates_as_any_other(rows, processor, tiny_checkpoint):
    model, usual = (model_of(tiny_checkpoint, attention) for attention in (NAME, "sdpa"))
    batch = FeridCollator(processor)([rows[0], rows[1], rows[8]])
    torch.testing.assert_close(model(**batch).logits, usual(**batch).logits, atol=1e-5, rtol=0)
    del batch["labels"]
    batch["input_ids"], batch["attention_mask"] = (batch[name].flip(1) for name in ("input_ids", "attention_mask"))
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**batch, **settings), usual.generate(**batch, **settings))
    assert torch.equal(
        model.generate(torch.tensor([[5, 6, 7]]), **settings), usual.generate(torch.tensor([[5, 6, 7]]), **settings)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_attention_on_a_gpu_is_that_of_the_cpu(dtype):
    torch.manual_seed(0)
    lengths = [70, 1, 129, 40]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    module, results = torch.nn.Module(), []
    states = [torch.randn(1, heads, sum(lengths), 64) for heads in (8, 2, 2)]
    for device in ("cpu", "cuda"):
        inputs = [one.detach().to(device, dtype if device == "cuda" else torch.float32) for one in states]
        for one in inputs:
            one.requires_grad_()
        output, _ = packed_attention(
            module, *inputs, None, scaling=0.125, cu_seq_lens_q=bounds.to(device), max_length_q=max(lengths)
        )
        output.float().square().sum().backward()
        results.append([output, *(one.grad for one in inputs)])
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.float().cpu(), one, atol=tolerance, rtol=tolerance)


# Training


def train(model, processor, dataset, collator, folder, resume=None, peft_config=None, **changes):
    """The lines of the log of a run on rows or on packs."""
    settings = {"per_device_train_batch_size": 1, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    settings |= {"activation_checkpointing": False, "report_to": "none", "bf16": False, "use_cpu": True} | changes
    settings |= {"max_length": None, "remove_unused_columns": False, "output_dir": str(folder)}
    set_seed(0)
    packs = dataset if isinstance(dataset, PackedRows) else None
    trainer = FeridTrainer(
        model=model,
        args=SFTConfig(**settings),
        data_collator=collator(processor, assistant_only_loss=True),
        train_dataset=packs.rows if packs else dataset,
        processing_class=processor,
        peft_config=peft_config,
        packs=packs,
    )
    trainer.train(resume_from_checkpoint=resume)
    return [line for line in trainer.state.log_history if "loss" in line]


LORA = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["face_info_mining"])


@pytest.mark.parametrize(("peft", "recomputed"), [(None, False), (LORA, True)], ids=["full", "lora, recomputed"])
def test_it_trains_as_the_padded_run(rows, processor, tiny_checkpoint, tmp_path, peft, recomputed):
    """Two packs of two rows a step; the padded run has the same rows, by two too: the Q-Former draws its dropout."""
    lengths = token_lengths(rows, processor)
    packs = PackedRows(rows, lengths, max_tokens=2 * max(lengths))
    packs.packs = [[0, 9], [4, 2], [8, 7], [10, 3]]
    seen = []

    class Watched(PackingCollator):
        def torch_call(self, examples):
            seen.append([row["id"] for row in examples[0]])
            return super().torch_call(examples)

    settings = {"activation_checkpointing": recomputed, "peft_config": peft, "max_steps": 2}
    settings |= {"gradient_accumulation_steps": 2}
    after = train(model_of(tiny_checkpoint, NAME), processor, packs, Watched, tmp_path, **settings)
    order = [rows["id"].index(one) for one in itertools.chain(*seen)]
    settings |= {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2}
    before = train(
        model_of(tiny_checkpoint, "eager"), processor, rows.select(order), FeridCollator, tmp_path, **settings
    )
    assert [line["num_tokens"] for line in before] == [line["num_tokens"] for line in after]
    for name in ("loss", "grad_norm"):  # TRL averages its other figures over packs, not over tokens
        assert [line[name] for line in before] == pytest.approx([line[name] for line in after], rel=1e-3), name


def test_epochs_are_shuffled_and_a_resumed_run_goes_on(rows, processor, tiny_checkpoint, tmp_path):
    lengths = token_lengths(rows, processor)
    packs = PackedRows(rows, lengths, max_tokens=2 * max(lengths))
    assert len(packs) > 4
    seen = []

    class Watched(PackingCollator):
        def torch_call(self, examples):
            seen.append(examples[0][0]["id"])
            return super().torch_call(examples)

    settings = {"max_steps": 2 * len(packs), "save_strategy": "steps", "save_steps": len(packs) + 1}
    settings |= {"peft_config": LORA, "gradient_accumulation_steps": 1}
    whole = train(model_of(tiny_checkpoint, NAME), processor, packs, Watched, tmp_path, **settings)
    first, second = seen[: len(packs)], seen[len(packs) : 2 * len(packs)]
    assert sorted(first) == sorted(second) and first != second
    settings |= {"resume": str(tmp_path / f"checkpoint-{len(packs) + 1}"), "save_strategy": "no"}
    resumed = train(model_of(tiny_checkpoint, NAME), processor, packs, PackingCollator, tmp_path, **settings)
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in whole], rel=1e-5)
