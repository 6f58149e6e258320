"""`ferid evaluate` with other models than ours: any image-text-to-text model, asked in the same words."""

import json

import pytest
import torch
from made_ferid import make_ferid
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate import run
from ferid_dataset.evaluate.load_model import load_model
from ferid_dataset.evaluate.metrics import read_predictions
from ferid_dataset.evaluate.predict import answer_tokens, ask, one_ahead, plain_chat, predict, stop_tokens
from ferid_dataset.labels import LABELS
from ferid_dataset.prompts import category_question, options_of

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 4096}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAVA_TEMPLATE = (  # of llava-hf/llava-1.5: a space before the answer
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def small_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = [
        *LABELS,
        "user: USER: assistant: ASSISTANT:",
        category_question(LABELS),
        category_question(LABELS, "video"),
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *special],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_llava(folder):
    tokenizer = small_tokenizer("<image>")
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=16, patch_size=8),
        text_config=LlamaConfig(**TEXT, vocab_size=len(tokenizer), eos_token_id=2),
        image_token_id=image_id,
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    return save(LlavaForConditionalGeneration, config, processor, folder)


def tiny_idefics(folder):  # of the family of SmolVLM; several tiles and markers a picture
    markers = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    tokenizer = small_tokenizer(*markers)
    config = Idefics3Config(
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        text_config={
            **TEXT,
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 16}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE)
    return save(Idefics3ForConditionalGeneration, config, processor, folder)


def save(kind, config, processor, folder):
    torch.manual_seed(0)
    model = kind(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[tiny_llava, tiny_idefics])
def other(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("models") / request.param.__name__)


@pytest.fixture(scope="module")
def ferid(tmp_path_factory):
    """Six stills and three clips of four frames."""
    return make_ferid(tmp_path_factory.mktemp("mixed") / "ferid_mixed", 6, 3)


@pytest.mark.parametrize("method", ["score", "generate"])
def test_stills_and_clips(other, ferid, tmp_path, method):
    metrics = run.evaluate(other, ferid, tmp_path, split="train", method=method, batch_size=2)
    rows = {row["id"]: row for row in read_predictions(tmp_path / "predictions.jsonl")}
    assert len(rows) == metrics["n"] == 9 and set(metrics["by_source"]) == {"raf_db", "dfew"}
    for row in rows.values():
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        if method == "score":
            assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)
    assert set(rows["dfew/00006"]["options"]) == set(options_of("raf_db"))


def test_probabilities_are_those_of_the_joint_text(other, ferid):
    """Each option after the prompt as the template writes both, picture by picture, without tree and cache."""
    model, processor = load_model(other)
    rows = [run.load_rows(ferid, "train")[i] for i in (0, 6)]  # a still and a clip
    for row, predicted in zip(rows, predict(model, processor, rows, batch_size=1), strict=True):
        logs = []
        for option in row["options"]:
            inputs = ask(processor, [row])
            (tokens,) = answer_tokens(processor, [option])
            assert processor.decode(tokens).strip() == option
            answer = torch.tensor([[*tokens, *stop_tokens(model, processor)]])
            length = inputs["input_ids"].shape[1]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with torch.no_grad():
                logits = model(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
            logs.append(logits[range(answer.shape[1]), answer[0]].sum())
        expected = torch.stack(logs).softmax(0)
        torch.testing.assert_close(
            torch.tensor(list(predicted["probabilities"].values())), expected, atol=1e-4, rtol=0
        )


def test_answers_follow_the_prompt_as_the_template_writes_them(tmp_path):
    _, llava = load_model(tiny_llava(tmp_path / "llava"))
    assert llava.decode(answer_tokens(llava, ["anger"])[0]) == " anger"
    _, idefics = load_model(tiny_idefics(tmp_path / "idefics"))
    assert idefics.decode(answer_tokens(idefics, ["anger"])[0]) == "anger"
    assert llava.tokenizer.pad_token == "</s>"


def test_the_same_words_without_our_priors(other, ferid):
    _, processor = load_model(other)
    row = run.load_rows(ferid, "train")[6] | {"attributes": {"age": "20-39", "gender": "female", "race": None}}
    (turn,) = plain_chat(row, processor)
    assert [block["type"] for block in turn["content"]] == ["image"] * 4 + ["text"]
    assert turn["content"][-1]["text"] == row["messages"][0]["content"]
    assert all(set(block) == {"type", block["type"]} for block in turn["content"])

    class TakesClips:  # nothing but what is looked at; transformers' own video processors need torchvision
        video_processor = object()

    (turn,) = plain_chat(row, TakesClips())
    assert [block["type"] for block in turn["content"]] == ["video", "text"] and len(turn["content"][0]["video"]) == 4


def test_grey_and_transparent_pictures(other, ferid):
    row = run.load_rows(ferid, "train")[0]
    rows = [row | {"images": [Image.new(mode, (30, 20))]} for mode in ("L", "RGBA", "RGB")]
    assert len(list(predict(*load_model(other), rows))) == 3


def test_free_answers(other, tmp_path, ferid):
    from ferid_dataset.evaluate.predict import predict_conversations

    turns = [("user", "What is it?"), ("assistant", "A face."), ("user", "Why?"), ("assistant", "Who knows.")]
    row = run.load_rows(ferid, "train")[0]
    rows = [row | {"messages": [{"role": role, "content": text} for role, text in turns]}] * 3
    lines = list(predict_conversations(*load_model(other), rows, batch_size=2, max_new_tokens=4))
    assert [line["question"] for line in lines] == ["What is it?"] * 3 and lines[0]["reference"] == "A face."
    assert set(lines[0]) >= {"id", "source", "label", "text", "reference", "question"}
    json.dumps(lines)


def test_models_that_cannot_be_asked(tmp_path, other, ferid):
    (tmp_path / "preprocessor").mkdir()
    with pytest.raises(FeridError, match="no checkpoint"):
        load_model(tmp_path / "preprocessor")
    with pytest.raises(FeridError, match="no dtype 'int3': choose from auto, float32"):
        load_model(other, dtype="int3")
    model, processor = load_model(other, dtype="bfloat16", device="cpu")
    assert (
        model.dtype == torch.bfloat16 and len(list(predict(model, processor, [run.load_rows(ferid, "train")[0]]))) == 1
    )
    processor.chat_template = None
    with pytest.raises(FeridError, match="no chat template"):
        list(predict(model, processor, [run.load_rows(ferid, "train")[0]]))


def test_one_ahead_keeps_order_and_errors():
    assert list(one_ahead(iter(range(1, 6)))) == [1, 2, 3, 4, 5]

    def broken():
        yield 1
        raise OSError("no picture")

    with pytest.raises(OSError, match="no picture"):
        list(one_ahead(broken()))
