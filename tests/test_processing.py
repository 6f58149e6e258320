"""Pictures, faces and chat text become the model's tensors; what belongs together arrives together."""

import base64
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from skimage.data import astronaut
from transformers import AutoProcessor

from modeling_emo_llama import EmoLlamaConfig, EmoLlamaProcessor
from modeling_emo_llama.chat_templates import CHATML, VICUNA
from modeling_emo_llama.face_analysis import load_face_analyzer

FACE_INPUTS = ("face_boxes", "face_landmarks", "face_embeddings", "face_mask")
VISUAL_INPUTS = ("pixel_values", "qformer_input_ids", "qformer_attention_mask", *FACE_INPUTS)
SIDE = 56  # pixels that the tiny vision tower sees
QUESTION = "How does she feel?"


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def portrait():
    return Image.fromarray(astronaut())


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def a_face(seed: int = 0, points: int = 68, size: int = 128) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "box": [5.0, 5.0, 25.0, 25.0],
        "score": 1.0,
        "landmarks": rng.uniform(5, 25, (points, 2)),
        "embedding": rng.normal(size=size),
    }


def user(*parts, **image) -> dict:
    """A user's turn of pictures and strings; keywords go beside the pictures."""
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part, **image}
        for part in parts
    ]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def tensors(processor, conversation, **kwargs):
    return processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **kwargs},
    )


def assert_same(left, right, names=None):
    names = names or left.keys()
    assert set(names) <= set(left) & set(right)
    for name in names:
        assert torch.equal(left[name], right[name]), name


def test_tensors_and_shapes(processor, tiny_checkpoint, portrait):
    inputs = tensors(processor, [user(portrait, QUESTION)])
    config = EmoLlamaConfig.from_pretrained(tiny_checkpoint)
    assert set(inputs) == {"input_ids", "attention_mask", *VISUAL_INPUTS}
    assert set(inputs) == set(processor.model_input_names) - {"pixel_values_videos"}, "a still is no clip"
    assert (inputs["input_ids"] == config.image_token_id).sum() == config.image_seq_length
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert [tuple(inputs[name].shape) for name in FACE_INPUTS] == [(1, 1, 4), (1, 1, 68, 2), (1, 1, 128), (1, 1)]
    assert inputs["face_mask"].dtype == torch.bool and inputs["face_mask"].all()
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == QUESTION
    assert processor.decode(inputs["input_ids"][0]) == (
        "<|im_start|>user\n" + "<image>" * config.image_seq_length + f"\n{QUESTION}<|im_end|>\n"
    )


def test_given_faces_equal_computed_ones(processor, portrait):
    computed = tensors(processor, [user(portrait, QUESTION)])
    [found] = load_face_analyzer("dlib")([portrait])
    text = processor.apply_chat_template([user(portrait, QUESTION)])
    assert_same(computed, processor(images=portrait, text=text, faces=[found], return_tensors="pt"))
    assert_same(computed, tensors(processor, [user(portrait, QUESTION, faces=found)]))
    assert_same(computed, tensors(processor, [user(portrait, QUESTION, faces=[vars(face) for face in found])]))


def test_faces_stay_with_their_pictures(processor, portrait):
    """Two given, two computed, one known to have none, over four conversations."""
    first, second, mirrored = a_face(1), a_face(2), portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    two = {
        "role": "user",
        "content": [*user(noise(seed=1), faces=[first])["content"], *user(portrait, "?")["content"]],
    }
    singles = [user(noise(), "?", faces=[]), user(mirrored, "?"), user(noise(seed=2), "?", faces=[second])]
    inputs = tensors(processor, [[two], *([turn] for turn in singles)])
    assert inputs["face_mask"].flatten().tolist() == [True, True, False, True, True]
    for row, turn in enumerate([user(noise(seed=1), "?", faces=[first]), user(portrait, "?"), *singles]):
        alone = tensors(processor, [turn])
        assert all(torch.equal(inputs[name][row], alone[name][0]) for name in ("pixel_values", *FACE_INPUTS)), row


def test_largest_faces_are_kept(tiny_checkpoint):
    two = AutoProcessor.from_pretrained(tiny_checkpoint, max_faces=2)
    faces = [a_face(seed) for seed in range(3)]
    inputs = two(images=[noise()] * 2, faces=[faces, faces[:1]], return_tensors="pt")
    assert inputs["face_mask"].tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(inputs["face_embeddings"][0], [face["embedding"] for face in faces[:2]], rtol=1e-6)
    assert not inputs["face_embeddings"][1, 1].any()


@pytest.mark.parametrize("size", [(200, 90), (90, 200), (201, 90), (120, 120), (20, 11)])
def test_landmarks_lie_where_the_picture_shows_them(processor, size):
    """A white disc is a landmark: its place among the pixels is where the tensors say that it is."""
    radius = min(size) / 8
    for share in [(0.25, 0.7), (0.8, 0.4)]:
        x, y = np.multiply(size, share)
        picture = Image.new("RGB", size, "black")
        ImageDraw.Draw(picture).ellipse([x - radius, y - radius, x + radius, y + radius], fill="white")
        brightness = np.asarray(picture.convert("L"), float)
        rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
        centre = np.array([(brightness * axis).sum() / brightness.sum() for axis in (columns, rows)])
        face = a_face() | {"landmarks": np.tile(centre, (68, 1)), "box": [*(centre - radius), *(centre + radius)]}
        inputs = processor(images=picture, faces=[[face]], return_tensors="pt")

        # Padding is exactly 0 (the mean colour), black is below and white above.
        light = np.where(inputs["pixel_values"][0, 0] > 0.5, inputs["pixel_values"][0, 0], 0)
        rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
        seen = np.array([(light * axis).sum() / light.sum() / SIDE for axis in (columns, rows)])
        np.testing.assert_allclose(inputs["face_landmarks"][0, 0, 0], seen, atol=0.5 / SIDE)
        left, top, right, bottom = inputs["face_boxes"][0, 0].tolist()
        np.testing.assert_allclose([(left + right) / 2, (top + bottom) / 2], seen, atol=0.5 / SIDE)
        assert right - left == pytest.approx(2 * radius / max(size), abs=1e-6) == bottom - top


def test_padding_by_hand(processor):
    """50 x 30 becomes 50 x 50 with 10 rows above and below."""
    face = a_face() | {"landmarks": np.tile([[0.0, 0.0], [50.0, 30.0]], (34, 1)), "box": [10, 0, 20, 30]}
    picture = noise(50, 30)
    inputs = processor(images=picture, faces=[[face]], return_tensors="pt")
    expected = torch.tensor([[0.0, 10 / 50], [1.0, 40 / 50]])
    torch.testing.assert_close(inputs["face_landmarks"][0, 0, :2], expected)
    torch.testing.assert_close(inputs["face_boxes"][0, 0], torch.tensor([0.2, 0.2, 0.4, 0.8]))
    padded = Image.new("RGB", (50, 50), tuple(int(255 * c) for c in processor.image_processor.image_mean))
    padded.paste(picture, (0, 10))
    assert_same(inputs, processor(images=padded, faces=[[]], return_tensors="pt"), ["pixel_values"])


@settings(deadline=None, max_examples=30)
@given(answers=st.lists(st.text(max_size=30).filter(lambda text: "<" not in text), min_size=2, max_size=2))
def test_answers_change_nothing_on_the_visual_side(processor, answers):
    def chat(first, second):
        return [user(noise(), QUESTION, faces=[a_face()]), assistant(first), user("Why?"), assistant(second)]

    plain, other = tensors(processor, chat("happiness", "She smiles.")), tensors(processor, chat(*answers))
    assert_same(plain, other, VISUAL_INPUTS)
    words = processor.qformer_tokenizer.decode(plain["qformer_input_ids"][0])
    assert words == f"{QUESTION}\nWhy?", "the user's turns, all of them, and nothing else"


def test_prompt_and_training_text_ask_the_same(processor):
    turns = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    turns += [user(noise(), QUESTION, faces=[a_face()])]
    prompt = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    full = tensors(processor, [*turns, assistant("sadness")])
    assert_same(prompt, full, VISUAL_INPUTS)
    length = prompt["input_ids"].shape[1]
    assert torch.equal(full["input_ids"][:, :length], prompt["input_ids"]), "the answer follows exactly the prompt"


def test_vicuna_questions_are_found(processor):
    template = {"bos_token": "<s>", "eos_token": "</s>"}
    chat = [user("Who?\nUSER:me"), assistant("ASSISTANT"), user("Why?"), assistant("sadness")]
    text = processor.apply_chat_template(chat, chat_template=VICUNA.template, **template)
    assert text == "<s>USER: Who?\nUSER:me ASSISTANT: ASSISTANT</s>USER: Why? ASSISTANT: sadness</s>"
    other = EmoLlamaProcessor(
        processor.image_processor, processor.tokenizer, processor.qformer_tokenizer, user_turn=VICUNA.user_turn
    )
    assert other.question_of(text) == "Who?\nUSER:me\nWhy?"
    assert processor.user_turn == CHATML.user_turn


def test_question_may_be_given(processor):
    inputs = processor(images=noise(), text="<image> x", question="Is he sad?", faces=[[]], return_tensors="pt")
    assert processor.qformer_tokenizer.decode(inputs["qformer_input_ids"][0]) == "Is he sad?"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"text": "<image><image>"}, "2 <image> for 1 pictures"),
        ({"text": ["<image>", "no picture", "<image>"]}, "2 <image> for 1 pictures"),
        ({"text": "<image>", "faces": [[], []]}, "faces of 2 pictures were given for 1 pictures"),
        ({"text": "<image>", "faces": [[a_face(points=106)]]}, "106 landmarks .* made for 68"),
        ({"text": "<image>", "faces": [[a_face(size=512)]]}, "embedding of 512, .* and 128"),
    ],
)
def test_wrong_numbers_are_named(processor, kwargs, words):
    with pytest.raises(ValueError, match=words):
        processor(images=noise(), return_tensors="pt", **kwargs)


def test_face_without_embedding(processor):
    with pytest.raises(ValueError, match="embedding"):
        processor(images=noise(), faces=[[a_face() | {"embedding": None}]], return_tensors="pt")


def test_without_faces_nobody_looks(processor, portrait, monkeypatch):
    monkeypatch.setattr(processor, "face_backend", "not installed")
    with pytest.raises(ValueError, match="no face backend is named 'not installed'"):
        tensors(processor, [user(portrait, QUESTION)])
    inputs = tensors(processor, [user(portrait, QUESTION, faces=[a_face()])], use_faces=False)
    assert not inputs["face_mask"].any() and not inputs["face_landmarks"].any()


def test_text_only(processor):
    inputs = tensors(processor, [[user("Hello")], [user("Hello you")]])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][0, -1] == 1, "padded on the left"


def test_pictures_only(processor):
    assert set(processor(images=noise(), faces=[[]], return_tensors="pt")) == {"pixel_values", *FACE_INPUTS}


def test_every_form_of_a_picture(processor, tmp_path):
    picture = noise(60, 40)
    picture.save(tmp_path / "face.png")
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    code = base64.b64encode(stream.getvalue()).decode()
    expected = tensors(processor, [user(picture, QUESTION, faces=[])])
    array = np.asarray(picture)
    forms = [array, array.transpose(2, 0, 1), torch.from_numpy(array.copy()), array / 255, str(tmp_path / "face.png")]
    for form in [*forms, f"data:image/png;base64,{code}"]:
        assert_same(expected, processor(images=form, faces=[[]], return_tensors="pt"), ["pixel_values"])
    for block in [{"path": str(tmp_path / "face.png")}, {"base64": code}, {"image": str(tmp_path / "face.png")}]:
        message = {"role": "user", "content": [{"type": "image", "faces": [], **block}, *user(QUESTION)["content"]]}
        assert_same(expected, tensors(processor, [message]))


def test_a_phone_picture_is_turned_upright(processor, tmp_path):
    picture = noise(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to the right
    picture.save(tmp_path / "phone.png", exif=exif)
    turned = processor(images=str(tmp_path / "phone.png"), faces=[[]], return_tensors="pt")
    upright = processor(images=picture.transpose(Image.Transpose.ROTATE_270), faces=[[]], return_tensors="pt")
    assert_same(turned, upright, ["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_colour_modes(processor, mode):
    assert processor(images=noise().convert(mode), faces=[[]], return_tensors="pt")["pixel_values"].isfinite().all()


def test_batch_of_different_picture_counts(processor):
    pictures = [noise(seed=seed) for seed in range(3)]
    batch = [[user("No picture")], [user(pictures[0], "One?", faces=[])], [user(*pictures[1:], "Two?", faces=[])]]
    inputs = tensors(processor, batch)
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [0, 13, 26]
    questions = processor.qformer_tokenizer.batch_decode(inputs["qformer_input_ids"], skip_special_tokens=True)
    assert questions == ["One?", "Two?", "Two?"], "one question a picture"
    for row, picture in enumerate(pictures):
        alone = processor(images=picture, faces=[[]], return_tensors="pt")
        assert torch.equal(inputs["pixel_values"][row], alone["pixel_values"][0])


def test_truncation_never_cuts_a_picture(tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)  # its tokenizer remembers the truncation
    with pytest.raises(ValueError, match="[Mm]ismatch in `image` token count"):
        tensors(processor, [user(noise(), QUESTION, faces=[])], truncation=True, max_length=8)


def test_save_and_load(processor, tmp_path):
    changed = EmoLlamaProcessor(
        processor.image_processor,
        processor.tokenizer,
        processor.qformer_tokenizer,
        image_seq_length=20,
        max_faces=3,
        user_turn=VICUNA.user_turn,
        chat_template=processor.chat_template,
    )
    changed.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EmoLlamaProcessor
    assert (loaded.image_seq_length, loaded.max_faces, loaded.user_turn) == (20, 3, VICUNA.user_turn)
    assert loaded.chat_template == processor.chat_template and loaded.tokenizer.padding_side == "left"
    chat = [user(noise(), QUESTION, faces=[a_face(seed) for seed in range(2)])]
    assert_same(tensors(changed, chat), tensors(loaded, chat))
