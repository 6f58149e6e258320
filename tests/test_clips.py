"""Clips on the whole road: from files to tensors, through the model among stills, through training and evaluation."""

import copy
import io

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, load_dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
from trl.trainer import utils as trl_utils

import train_sft
from ferid_dataset.align import look_at_pictures
from ferid_dataset.collate import FeridCollator, to_chat
from ferid_dataset.drawn_faces import draw_face
from ferid_dataset.evaluate.predict import predict
from ferid_dataset.ferid import FEATURES
from modeling_emo_llama import EmoLlamaProcessor
from modeling_emo_llama.load_checkpoint import load_checkpoint
from modeling_emo_llama.video_frames import read_frames

av = pytest.importorskip("av")
ROWS = ("qformer_input_ids", "qformer_attention_mask", "face_boxes", "face_landmarks", "face_embeddings", "face_mask")
STILL, FRAME = 13, 10  # tokens


@pytest.fixture(scope="module")
def processor(tiny_checkpoint):
    return AutoProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    """In float32, every matrix enlarged to gain 2: a new network hardly reacts to what it is given."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    for name, parameter in model.model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.data *= 2 / (parameter.data.std() * parameter.shape[1] ** 0.5)
    return model


def write_mp4(path, frames) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    """20 frames, each brighter than the one before."""
    frames = [np.full((48, 64, 3), 12 * i, np.uint8) for i in range(20)]
    return write_mp4(tmp_path_factory.mktemp("clips") / "clip.mp4", frames)


def a_face(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"box": [4, 4, 36, 36], "landmarks": rng.uniform(4, 36, (68, 2)), "embedding": rng.normal(size=128)}


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 40, 40, 3), dtype=np.uint8)


def still(seed: int = 0) -> dict:
    return {"type": "image", "image": Image.fromarray(noise(1, seed)[0]), "faces": [a_face(seed)]}


def clip(frames: int = 3, seed: int = 0) -> dict:
    return {"type": "video", "video": noise(frames, seed), "faces": [[a_face(seed + i)] for i in range(frames)]}


def user(*parts) -> dict:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": parts}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def tensors(processor, conversations, **kwargs):
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=conversations[0][-1]["role"] == "user",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, **kwargs},
    )


def features(model, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    rows = {name: inputs[name] for name in ROWS}
    with torch.no_grad():
        stills = model.get_image_features(inputs["pixel_values"], **rows).pooler_output
        return stills, model.get_video_features(inputs["pixel_values_videos"], **rows).pooler_output


def generate(model, inputs, **kwargs):
    output = model.generate(
        **inputs, min_new_tokens=6, max_new_tokens=6, output_logits=True, return_dict_in_generate=True, **kwargs
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, 1)


# ---- the processor ----


def test_every_form_of_a_clip(processor, tmp_path):
    frames = noise(3)
    pictures = [Image.fromarray(frame) for frame in frames]
    (tmp_path / "frames").mkdir()
    files, encoded = [], []
    for i, picture in enumerate(pictures):
        files.append(str(tmp_path / "frames" / f"{i}.png"))
        picture.save(files[-1])
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        encoded.append(stream.getvalue())
    expected = processor(images=pictures, faces=[[]] * 3, return_tensors="pt")["pixel_values"]
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    folder, faces = str(tmp_path / "frames"), [[]] * 3
    for form in (pictures, frames, list(frames), tensor, encoded, files, folder):
        inputs = tensors(processor, [[user({"type": "video", "video": form, "faces": faces}, "?")]], num_frames=3)
        assert torch.equal(inputs["pixel_values_videos"], expected), type(form)
        assert set(inputs) == set(processor.model_input_names) - {"pixel_values"}
    for form in (pictures, frames, tensor, encoded, folder, [folder], [[frames]], frames[None]):
        inputs = processor(videos=form, video_faces=[faces], num_frames=3, return_tensors="pt")
        assert torch.equal(inputs["pixel_values_videos"], expected), type(form)
        assert inputs["face_mask"].shape == (3, 1) and "qformer_input_ids" not in inputs


def test_frames_of_a_file_are_at_the_centres_of_bins(processor, tiny_checkpoint, mp4):
    block = {"type": "video", "path": mp4}
    for num_frames, kwargs in ((8, {}), (4, {"num_frames": 4})):
        inputs = tensors(processor, [[user(block, "?")]], use_faces=False, **kwargs)
        pixels = read_frames(mp4, num_frames).pixels
        expected = processor(images=list(pixels), use_faces=False, return_tensors="pt")["pixel_values"]
        assert torch.equal(inputs["pixel_values_videos"], expected)
        assert (inputs["input_ids"] == processor.video_token_id).sum() == num_frames * FRAME
        assert expected.mean((1, 2, 3)).diff().min() > 0, "in the order of time"
    two = AutoProcessor.from_pretrained(tiny_checkpoint, num_frames=2)
    assert len(tensors(two, [[user(block, "?")]], use_faces=False)["pixel_values_videos"]) == 2


def test_stills_and_clips_in_any_order(processor):
    """Rows are the stills of all conversations, then the frames of all clips; each has its own faces and question."""
    first = [user(clip(2, seed=1), still(3), clip(3, seed=4), "Both?")]
    second = [user("Before", still(7), "and after", clip(2, seed=8))]
    inputs = tensors(processor, [first, [user("No picture")], second])
    assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [STILL, 0, STILL]
    assert (inputs["input_ids"] == processor.video_token_id).sum(1).tolist() == [5 * FRAME, 0, 2 * FRAME]
    assert len(inputs["pixel_values"]) == 2 and len(inputs["pixel_values_videos"]) == 7
    seeds = [3, 7, 1, 2, 4, 5, 6, 8, 9]
    expected = np.array([a_face(seed)["embedding"] for seed in seeds], np.float32)
    np.testing.assert_allclose(inputs["face_embeddings"][:, 0], expected, rtol=1e-6)
    questions = processor.qformer_tokenizer.batch_decode(inputs["qformer_input_ids"], skip_special_tokens=True)
    other = "Before\nand after"
    assert questions == ["Both?", other, *["Both?"] * 5, *[other] * 2]
    text = processor.decode(inputs["input_ids"][0])
    parts = ["<video>" * 2 * FRAME, "<image>" * STILL, "<video>" * 3 * FRAME, "Both?<|im_end|>"]
    assert "\n".join(parts) in text


def test_faces_of_frames_are_found_as_those_of_stills(processor):
    pictures = [draw_face("happiness", np.random.default_rng(seed), size=112) for seed in range(3)]
    frames = tensors(processor, [[user({"type": "video", "video": pictures}, "?")]])
    stills = tensors(processor, [[user(*({"type": "image", "image": p} for p in pictures), "?")]])
    assert frames["face_mask"].all()
    for name in ROWS:
        assert torch.equal(frames[name], stills[name]), name
    assert torch.equal(frames["pixel_values_videos"], stills["pixel_values"])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"text": "<video><video>"}, "2 <video> for 1 clips"),
        ({"text": "<image><video>"}, "1 <image> for 0 pictures"),
        ({"text": "?"}, "0 <video> for 1 clips"),
        ({"text": "<video>", "video_faces": [[[]] * 3, [[]] * 3]}, "faces of 2 clips were given for 1 clips"),
        ({"text": "<video>", "video_faces": [[[]] * 2]}, "faces of 2 frames were given for a clip of 3"),
        ({"text": "<video>", "video_attributes": []}, "attributes of 0 clips were given for 1 clips"),
    ],
)
def test_wrong_numbers_are_named(processor, kwargs, words):
    with pytest.raises(ValueError, match=words):
        processor(videos=noise(3), return_tensors="pt", **kwargs)


def test_a_clip_that_cannot_be_read(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no clip .*lost.mp4"):
        tensors(processor, [[user({"type": "video", "path": str(tmp_path / "lost.mp4")}, "?")]])
    with pytest.raises(ValueError, match="1 <video> tokens in the text but no videos"):
        processor(text="<video>")


def test_answers_change_nothing_on_the_visual_side(processor):
    def chat(*answers):
        turns = [user(still(), clip(), "How does she feel?"), assistant(answers[0]), user("Why?")]
        return [*turns, assistant(answers[1])]

    plain, other = (tensors(processor, [chat(*words)]) for words in (("a", "b"), ("anger", "She frowns a lot.")))
    for name in ("pixel_values", "pixel_values_videos", *ROWS):
        assert torch.equal(plain[name], other[name]), name


def test_settings_are_saved(processor, tmp_path):
    changed = EmoLlamaProcessor(
        processor.image_processor,
        processor.tokenizer,
        processor.qformer_tokenizer,
        frame_seq_length=12,
        num_frames=5,
        chat_template=processor.chat_template,
    )
    changed.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (loaded.frame_seq_length, loaded.num_frames) == (12, 5)
    assert loaded.video_token_id == processor.video_token_id


# ---- the model ----


def test_one_rule_for_the_number_of_tokens(model, processor):
    inputs = tensors(processor, [[user(clip(3), still(), "?")]])
    with torch.no_grad():
        outputs = model(**inputs)
    width = model.config.text_config.hidden_size
    assert model.config.frame_seq_length == processor.frame_seq_length == 1 + 1 + 8 == FRAME
    assert outputs.image_hidden_states.shape == (1, STILL, width)
    assert outputs.video_hidden_states.shape == (3, FRAME, width)
    assert processor.video_token_id == model.config.video_token_id
    assert outputs.logits.shape[1] == inputs["input_ids"].shape[1]


def test_tokens_stand_at_their_placeholders(model, processor):
    inputs = tensors(processor, [[user(clip(2, 1), still(2), "Two.")], [user(still(3), clip(3, 4), "Other order.")]])
    read = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        expected = model.get_input_embeddings()(inputs["input_ids"])
    stills, frames = features(model, inputs)
    ids = inputs["input_ids"]
    expected[ids == model.config.image_token_id] = stills.flatten(0, 1)
    expected[ids == model.config.video_token_id] = frames.flatten(0, 1)
    torch.testing.assert_close(read["inputs_embeds"], expected, atol=1e-6, rtol=0)


def test_a_frame_is_a_still_whose_content_is_the_mean(model, processor):
    block = clip(3)
    frames = tensors(processor, [[user(block, "Sad?")]])
    pictures = [{"type": "image", "image": p, "faces": f} for p, f in zip(block["video"], block["faces"], strict=True)]
    stills = tensors(processor, [[user(*pictures, "Sad?")]])
    mean = copy.deepcopy(model)
    mean.config.compress_type = "mean"
    with torch.no_grad():
        rows = {name: stills[name] for name in ROWS}
        of_frames = model.get_video_features(frames["pixel_values_videos"], **rows).pooler_output
        of_stills = mean.get_image_features(stills["pixel_values"], **rows).pooler_output
    torch.testing.assert_close(of_frames, of_stills, atol=1e-6, rtol=0)


def test_mismatches_are_named_with_both_numbers(model, processor):
    inputs = tensors(processor, [[user(clip(3), still(), "?")]])
    ids = inputs["input_ids"].clone()
    ids[0, (ids[0] == model.config.video_token_id).nonzero()[0]] = 5
    with pytest.raises(ValueError, match="Video features and video tokens do not match, tokens: 29, features: 30"):
        model(**{**inputs, "input_ids": ids})
    with pytest.raises(ValueError, match="face_mask has 3 rows for 4 pictures"):
        model(**{**inputs, "face_mask": inputs["face_mask"][:3]})


MIXED = [
    [user(still(1), "Sad?")],
    [user(clip(3, 2), "What is the facial expression of the person in the video?")],
    [user("Hello")],
    [user(clip(2, 5), still(7), clip(1, 8), "Who?")],
]


def test_each_of_a_mixed_batch_is_as_alone(model, processor):
    answers, logits = generate(model, tensors(processor, MIXED), do_sample=False)
    for row, conversation in enumerate(MIXED):
        answer, alone = generate(model, tensors(processor, [conversation]), do_sample=False)
        assert torch.equal(answers[row], answer[0]), row
        torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=0)
    assert all((logits[i] - logits[j]).abs().max() > 0.1 for i in range(4) for j in range(i)), "not all the same"


def test_cache_changes_nothing_and_everything_is_seen_once(model, processor):
    inputs, looks = tensors(processor, MIXED), []
    hook = model.model.vision_tower.register_forward_hook(lambda m, args, out: looks.append(len(args[0])))
    tokens, logits = generate(model, inputs, do_sample=False)
    hook.remove()
    assert looks == [2, 6], "stills, then frames"
    slow_tokens, slow_logits = generate(model, inputs, do_sample=False, use_cache=False)
    assert torch.equal(tokens, slow_tokens)
    torch.testing.assert_close(logits, slow_logits, atol=1e-4, rtol=0)


def test_several_answers_see_the_same_clips(model, processor):
    inputs = tensors(processor, MIXED)
    expected, _ = generate(model, inputs, do_sample=False)
    several, _ = generate(model, inputs, do_sample=True, top_k=1, num_return_sequences=2)  # the likeliest, twice
    assert torch.equal(several, expected.repeat_interleave(2, 0))
    beams = model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=4, min_new_tokens=4)
    for row, conversation in enumerate(MIXED):
        alone = model.generate(
            **tensors(processor, [conversation]),
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=4,
            min_new_tokens=4,
        )
        assert torch.equal(beams[2 * row : 2 * row + 2, -4:], alone[:, -4:]), row


def test_clips_of_old_checkpoints_are_refused(tiny_checkpoint, processor):
    """Made before there were clips: no `<video>` in the vocabulary or in the template."""
    tokenizer = processor.qformer_tokenizer
    old = EmoLlamaProcessor(
        processor.image_processor,
        tokenizer,
        tokenizer,
        chat_template=processor.chat_template.replace("'video'", "'unknown'"),
    )
    assert old.video_token_id is None
    with pytest.raises(ValueError, match="0 <video> for 1 clips"):
        tensors(old, [[user(clip(), "?")]])
    new_inputs, old_inputs = (tensors(one, [[user(still(), "?")]]) for one in (processor, old))
    assert all(torch.equal(new_inputs[name], old_inputs[name]) for name in new_inputs)


# ---- training and evaluation ----


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    """A FERID of stills, clips in files, and clips in folders of frames, as rows with paths; `faces` null."""
    root = tmp_path_factory.mktemp("mixed")
    rows = []
    for index, label in enumerate(["anger", "happiness"] * 3):
        frames = [draw_face(label, np.random.default_rng(index), size=112)] * 4
        files = [root / f"{index}_{i}.png" for i in range(4)]
        for file, frame in zip(files, frames, strict=True):
            frame.save(file)
        video = write_mp4(root / f"{index}.mp4", [np.asarray(frame) for frame in frames])
        kind = ("still", "file", "folder")[index % 3]
        paths = {
            "still": [str(files[0])],
            "file": [f"frame://{i}of4::{video}" for i in range(4)],
            "folder": [str(file) for file in files],
        }[kind]
        media = "image" if kind == "still" else "video"
        rows.append(
            {
                "id": f"{kind}/{index}",
                "source": "folder",
                "media_type": media,
                "images": [{"bytes": None, "path": path} for path in paths],
                "messages": [
                    {"role": "user", "content": f"What is the facial expression of the person in the {media}?"},
                    {"role": "assistant", "content": label},
                ],
                "label": label,
                "options": ["anger", "happiness"],
                "attributes": {"age": None, "gender": "female" if index < 3 else None, "race": None},
                "faces": None,
            }
        )
    table = Dataset.from_list(rows, features=FEATURES)
    (root / "ferid").mkdir()
    table.to_parquet(root / "ferid" / "train.parquet")
    (root / "ferid" / "README.md").write_text(
        "---\nconfigs:\n- config_name: category\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"
    )
    return root / "ferid"


@pytest.fixture(scope="module")
def rows(ferid):
    return load_dataset(str(ferid), "category", split="train")


def test_a_row_of_a_clip_is_one_clip(processor, rows):
    assert [row["media_type"] for row in rows] == ["image", "video", "video"] * 2
    [block, question] = to_chat(rows[1])[0]["content"]
    assert block["type"] == "video" and len(block["video"]) == 4 and question["type"] == "text"
    batch = FeridCollator(processor, assistant_only_loss=True)([rows[i] for i in range(6)])
    assert batch["pixel_values"].shape[0] == 2 and batch["pixel_values_videos"].shape[0] == 16
    assert batch["face_mask"].shape == (18, 1) and batch["face_mask"].all()
    for labels, row in zip(batch["labels"], rows, strict=True):
        assert processor.decode(labels[labels != -100]) == row["label"] + "<|im_end|>"
    texts = processor.batch_decode(batch["input_ids"])
    assert ["The person is female." in text for text in texts] == [True] * 3 + [False] * 3


def test_align_looks_at_the_middle_of_a_clip(tiny_checkpoint, processor, rows):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    looked = look_at_pictures(model, processor, rows, ["anger", "happiness"], batch_size=4)
    assert [int(one["labels"]) for one in looked] == [0, 1] * 6  # and the mirror images
    pixels = processor.image_processor([rows[1]["images"][2]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        alone = model.model.vision_tower(pixels.to(model.dtype)).last_hidden_state[0]
    torch.testing.assert_close(looked[1]["vision_tokens"], alone, atol=2e-2, rtol=2e-2)


def test_trained_on_stills_and_clips_and_evaluated(tiny_checkpoint, ferid, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(trl_utils, "_use_triton", trl_utils._use_triton)  # is put back
    recipe = train_sft.Path(train_sft.__file__).parent / "configs/sft/quickstart.yaml"
    options = {"model_name_or_path": tiny_checkpoint, "dataset_name": ferid, "output_dir": tmp_path / "adapter"}
    options |= {"max_steps": 2, "align_epochs": 1, "per_device_train_batch_size": 3, "logging_steps": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    parser = TrlParser((ScriptArguments, train_sft.StageArguments, SFTConfig, ModelConfig))
    train_sft.main(*parser.parse_args_and_config(["--config", str(recipe), *words]))
    AcceleratorState._reset_state(reset_partial_state=True)

    predictions = list(predict(*load_checkpoint(tmp_path / "adapter"), rows, batch_size=4, max_new_tokens=3))
    assert [row["id"] for row in predictions] == rows["id"][:]
    for row in predictions:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    alone = list(predict(*load_checkpoint(tmp_path / "adapter"), [rows[4]], max_new_tokens=3))[0]
    assert alone["text"] == predictions[4]["text"]
    assert alone["probabilities"] == pytest.approx(predictions[4]["probabilities"], abs=0.01)  # in bfloat16
