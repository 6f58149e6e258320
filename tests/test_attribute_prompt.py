"""Age, gender and race: what is said, where it stands, and where it may never appear."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from ferid_dataset.collate import FeridCollator, to_chat
from modeling_emo_llama.attribute_prompt import attribute_sentence, known_attributes
from modeling_emo_llama.face_analysis import Face

QUESTION = "How does she feel?"
SAID = "The person is 20 to 39 years old, female, Asian."
ATTRIBUTES = {"age": "20-39", "gender": "female", "race": "Asian"}
VISUAL = ("pixel_values", "qformer_input_ids", "qformer_attention_mask", "face_boxes", "face_landmarks", "face_mask")


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


def a_row(attributes: dict | None, media_type: str = "image", faces=None) -> dict:
    frames = 1 if media_type == "image" else 3
    return {
        "media_type": media_type,
        "images": [Image.new("RGB", (40, 40), (60 * i, 0, 0)) for i in range(frames)],
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "sadness"}],
        "attributes": attributes,
        "faces": [[]] * frames if faces is None else faces,
    }


def a_face(**known) -> Face:
    rng = np.random.default_rng(0)
    return Face(np.float32([4, 4, 36, 36]), 1.0, rng.uniform(4, 36, (68, 2)), rng.normal(size=128), **known)


def prompt(processor, *rows):
    return processor.apply_chat_template(
        [to_chat(row, answers=False) for row in rows],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def turn(processor, *rows) -> str:
    """The user's turn of the first row, without the placeholders."""
    text = processor.decode(prompt(processor, *rows)["input_ids"][0])
    text = text.replace(processor.image_token, "").replace(processor.video_token, "")
    return text[text.index("user\n") + 5 : text.index("<|im_end|>")]


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (ATTRIBUTES, SAID),
        ({"age": "25", "gender": "male", "race": None}, "The person is 25 years old, male."),
        ({"age": "70+", "gender": None, "race": "Caucasian"}, "The person is 70 years old or older, Caucasian."),
        ({"age": "0-3"}, "The person is 0 to 3 years old."),
        ({"race": "African-American"}, "The person is African-American."),
        ({"age": None, "gender": None, "race": None}, ""),
        ({}, ""),
    ],
)
def test_only_what_is_known_is_said(attributes, sentence):
    assert attribute_sentence(attributes) == sentence


def test_annotation_wins_over_the_face_backend():
    faces = [[], [{"age": 31.6, "gender": "male"}, {"age": 5.0, "gender": "female"}], [{"age": 50.0}]]
    assert known_attributes(None, faces) == {"age": "32", "gender": "male"}, (
        "the largest face of the first that has one"
    )
    annotated = {"age": None, "gender": "female", "race": "Asian"}
    assert known_attributes(annotated, faces) == {"age": "32", "gender": "female", "race": "Asian"}
    assert not any(known_attributes(annotated | {"gender": None, "race": None}, [[]]).values())


@pytest.mark.parametrize("media_type", ["image", "video"])
def test_it_stands_between_picture_and_question(processor, media_type):
    assert turn(processor, a_row(ATTRIBUTES, media_type)) == f"\n{SAID}\n{QUESTION}"
    nothing = {"age": None, "gender": None, "race": None}
    for unknown in (nothing, None):
        assert turn(processor, a_row(unknown, media_type)) == f"\n{QUESTION}"


def test_each_picture_of_a_batch_has_its_own(processor):
    rows = [a_row({"gender": "male"}), a_row(None), a_row(ATTRIBUTES, "video"), a_row({"race": "Asian"})]
    texts = processor.batch_decode(prompt(processor, *rows)["input_ids"])
    said = ["The person is male.", None, SAID, "The person is Asian."]
    for text, sentence in zip(texts, said, strict=True):
        assert text.count("The person is") == bool(sentence) and (sentence or "") in text


def test_what_the_backend_found_is_said(processor):
    face = a_face(age=24.4, gender="female")
    assert turn(processor, a_row(None, faces=[[face]])) == f"\nThe person is 24 years old, female.\n{QUESTION}"
    stored = vars(face) | {"landmarks": face.landmarks.tolist()}
    row = a_row({"age": "20-39", "gender": None, "race": None}, "video", [[], [stored], [a_face(age=80.0)]])
    assert turn(processor, row) == f"\nThe person is 20 to 39 years old, female.\n{QUESTION}"
    assert turn(processor, a_row(None, faces=[[a_face()]])) == f"\n{QUESTION}", "dlib tells neither"


def test_it_reaches_neither_vision_nor_label(processor):
    collator = FeridCollator(processor, assistant_only_loss=True)
    plain, told = (collator([a_row(known, faces=[[a_face()]])]) for known in (None, ATTRIBUTES))
    for name in VISUAL:
        assert torch.equal(plain[name], told[name]), name
    assert processor.qformer_tokenizer.decode(told["qformer_input_ids"][0]) == QUESTION
    learned = told["labels"][told["labels"] != -100]
    assert processor.decode(learned) == "sadness<|im_end|>"
    assert told["input_ids"].shape[1] > plain["input_ids"].shape[1]


def test_training_and_evaluation_say_the_same(processor):
    row = a_row(ATTRIBUTES)
    trained, asked = FeridCollator(processor)([row])["input_ids"][0], prompt(processor, row)["input_ids"][0]
    assert torch.equal(trained[: len(asked)], asked), "the answer follows exactly the prompt"


def test_ablation_is_saved_with_the_processor(processor, tiny_checkpoint, tmp_path):
    silent = AutoProcessor.from_pretrained(tiny_checkpoint, use_attributes=False)
    silent.save_pretrained(tmp_path)
    silent = AutoProcessor.from_pretrained(tmp_path)
    assert turn(silent, a_row(ATTRIBUTES, faces=[[a_face(age=3.0)]])) == f"\n{QUESTION}"
    assert processor.use_attributes and not silent.use_attributes


def test_given_to_the_call(processor):
    pictures = a_row(None, "video")["images"]
    inputs = processor(
        images=pictures[:2],
        videos=[pictures],
        text="<image> <video> <image>",
        faces=[[], []],
        video_faces=[[[]] * 3],
        attributes=[None, {"age": "70+"}],
        video_attributes=[{"gender": "male"}],
        return_tensors="pt",
    )
    text = processor.decode(inputs["input_ids"][0]).replace("<image>", "").replace("<video>", "")
    assert text == " \nThe person is male. \nThe person is 70 years old or older."
    with pytest.raises(ValueError, match="attributes of 1 pictures were given for 2 pictures"):
        processor(images=pictures[:2], attributes=[{}], use_faces=False)
