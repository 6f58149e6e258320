"""The align stage: its batches, its loss, and that it trains the picture modules and nothing else."""

import copy

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments

import modeling_emo_llama  # noqa: F401  registers the classes
from ferid_dataset.align import (
    ALIGNED_MODULES,
    PictureAlignment,
    align,
    join,
    label_words,
    look_at_pictures,
    mirror_faces,
    mirror_order,
    set_region_statistics,
)
from ferid_dataset.drawn_faces import draw_face
from modeling_emo_llama.face_analysis import load_face_analyzer

LABELS = ["anger", "happiness"]


@pytest.fixture(scope="module")
def rows():
    import numpy as np

    pictures = [draw_face(label, np.random.default_rng(seed)) for seed in range(6) for label in LABELS]
    found = load_face_analyzer("dlib")(pictures)
    faces = [[[vars(face) | {"age": None, "gender": None} for face in one]] for one in found]
    for one in faces:
        for face in one[0]:
            face["box"], face["landmarks"] = face["box"].tolist(), face["landmarks"].tolist()
            face["embedding"] = face["embedding"].tolist()
    question = {"role": "user", "content": "What is the facial expression of the person in the image?"}
    messages = [[question, {"role": "assistant", "content": label}] for _ in range(6) for label in LABELS]
    return Dataset.from_dict(
        {"images": [[p] for p in pictures], "faces": faces, "messages": messages, "label": LABELS * 6}
    )


@pytest.fixture
def parts(tiny_checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    return model, AutoProcessor.from_pretrained(tiny_checkpoint)


def test_a_picture_is_looked_at_with_its_question_and_faces_and_so_is_its_mirror_image(parts, rows):
    model, processor = parts
    looked = look_at_pictures(model, processor, rows, LABELS, batch_size=5)
    assert [int(one["labels"]) for one in looked] == [0, 1] * 12
    assert all(one["face_mask"].item() for one in looked)
    pixels = processor.image_processor([rows[7]["images"][0]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        alone = model.model.vision_tower(pixels.to(model.dtype)).last_hidden_state[0]
        mirrored = model.model.vision_tower(pixels.to(model.dtype).flip(-1)).last_hidden_state[0]
    torch.testing.assert_close(looked[7]["vision_tokens"], alone, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(looked[12 + 7]["vision_tokens"], mirrored, atol=2e-2, rtol=2e-2)
    assert not torch.allclose(alone, mirrored, atol=2e-2)


def test_faces_are_mirrored_as_the_landmark_model_sees_them(rows):
    """The landmarks of a mirrored picture are those that dlib finds in it, each under its own number."""
    pictures = [images[0] for images in rows["images"]]
    faces = [torch.tensor(found[0][0]["landmarks"]) / pictures[0].width for found in rows["faces"]]
    order = mirror_order(torch.stack(faces).mean(0) - torch.tensor([0.5, 0]))
    jaw, eyes = list(range(16, -1, -1)), [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    assert order[:17].tolist() == jaw and order[36:48].tolist() == eyes
    assert sorted(order.tolist()) == list(range(68)) and (order[order] == torch.arange(68)).all()
    found = load_face_analyzer("dlib")([pictures[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)])[0][0]
    box = torch.tensor(rows["faces"][0][0][0]["box"]) / pictures[0].width
    mirrored = mirror_faces(box, faces[0], order)
    seen = torch.tensor(found.landmarks, dtype=torch.float32) / pictures[0].width
    assert (mirrored["face_landmarks"] - seen).norm(dim=-1).mean() < 0.03
    left, _, right, _ = mirrored["face_boxes"].tolist()
    assert left == pytest.approx(1 - box[2].item()) and right == pytest.approx(1 - box[0].item())


def test_regions_are_standardised_by_the_training_faces_once(parts, rows):
    model, processor = parts
    looked, mining = look_at_pictures(model, processor, rows, LABELS), model.model.face_info_mining
    set_region_statistics(model, looked)
    faces = torch.stack([one["face_landmarks"][0] for one in looked])
    patches = torch.stack([one["vision_tokens"][-16:] for one in looked]).float().unflatten(1, (4, 4))
    seen = (mining.see_regions(patches, faces) - mining.region_mean) / mining.region_std
    torch.testing.assert_close(seen.mean(0), torch.zeros_like(mining.region_mean), atol=1e-3, rtol=0)
    kept = mining.region_mean.clone()
    set_region_statistics(model, looked[:3])
    assert torch.equal(mining.region_mean, kept), "a checkpoint keeps those that it has"


def test_questions_of_different_lengths_are_padded_with_masked_zeros(parts, rows):
    longer = rows.map(lambda row: {"messages": [{**row["messages"][0], "content": "Why?"}, row["messages"][1]]})
    looked = [look_at_pictures(*parts, part.select([0]), LABELS)[0] for part in (rows, longer)]
    picture = join(looked)["picture"]
    lengths = [len(one["qformer_input_ids"]) for one in looked]
    assert picture["qformer_attention_mask"].sum(1).tolist() == lengths and lengths[0] > lengths[1]


def test_loss_is_least_when_tokens_look_like_the_words_of_their_label(parts):
    model, processor = parts
    words = label_words(model, processor.tokenizer, LABELS)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(2))
    alignment = PictureAlignment(torch.nn.Module(), words, torch.ones(2))
    alignment.backbone.mine_picture = lambda tokens: (tokens, tokens)
    right, wrong = (
        alignment(torch.tensor([0, 1]), {"tokens": words[order, None]})["loss"] for order in ([0, 1], [1, 0])
    )
    assert right < wrong


def test_exactly_the_aligned_modules_move_and_the_loss_falls(parts, rows, tmp_path):
    model, processor = parts
    before = copy.deepcopy(model.state_dict())
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, seed=0, report_to="none")
    data = look_at_pictures(model, processor, rows, LABELS)
    loss = PictureAlignment(model.model, label_words(model, processor.tokenizer, LABELS), torch.ones(2))
    with torch.no_grad():
        start = loss.eval()(**join(data))["loss"]
    align(model, processor, rows, args, epochs=20)
    with torch.no_grad():
        end = loss.eval()(**join(data))["loss"]
    assert end < 0.7 * start
    moved = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(ALIGNED_MODULES)
    assert all(parameter.requires_grad for parameter in model.parameters())
