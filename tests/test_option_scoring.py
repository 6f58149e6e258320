"""Scoring all options in one forward pass equals scoring each one alone, without cache and without padding."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from modeling_emo_llama import option_scoring
from modeling_emo_llama.load_checkpoint import load_checkpoint
from modeling_emo_llama.option_scoring import make_tree, option_probabilities, score_options, sees_trees

PROMPTS = ["what is it", "what is the facial expression of the person in the picture", "the face of the person"]
OPTIONS = ["anger", "anger fear", "happiness", "sad", "surprise and joy"]
IMAGE = "<image>"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
# Weights ten times the usual size, so that a wrong position or mask moves the scores by far more than 1e-4.
TINY |= {"intermediate_size": 64, "vocab_size": 128, "initializer_range": 0.2}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<eos>", IMAGE], show_progress=False)
    backend.train_from_iterator(PROMPTS + OPTIONS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", padding_side="left"
    )


def tiny_llama():
    return LlamaForCausalLM(LlamaConfig(**TINY))


def tiny_gpt2():  # learned absolute positions: left padding must not shift them
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=128, initializer_range=0.2))


def tiny_mistral():  # a window shorter than the prompts: the cache forgets their beginning
    return MistralForCausalLM(MistralConfig(**TINY, sliding_window=6))


def tiny_mistral_of_long_sight():  # its window does nothing here
    return MistralForCausalLM(MistralConfig(**TINY, sliding_window=60))


def tiny_qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**TINY, layer_types=["full_attention"] * 2, sliding_window=6))


def tiny_gemma():
    return GemmaForCausalLM(GemmaConfig(**TINY, head_dim=8))


def tiny_gemma2():  # every other layer has a window; the logits are capped
    return Gemma2ForCausalLM(Gemma2Config(**TINY, head_dim=8, sliding_window=6))


def build(make):
    torch.manual_seed(0)
    return make().eval()


def score_alone(model, tokenizer, prompt_ids, option, **vision):
    """The definition: one unpadded row, no cache, the sum of log p(token | everything before)."""
    answer = tokenizer(option, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = torch.tensor([prompt_ids + answer])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **vision).logits
    log_probabilities = logits[0, len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    return log_probabilities[range(len(answer)), answer].sum().item()


FULL_SIGHT = [tiny_llama, tiny_gpt2, tiny_qwen2, tiny_gemma, tiny_mistral_of_long_sight]


@pytest.fixture
def passes(monkeypatch):
    """Which way each call took."""
    passes = []
    for name in "_score_tree", "_score_rows":
        way = getattr(option_scoring, name)
        monkeypatch.setattr(
            option_scoring, name, lambda *args, name=name, way=way: [passes.append(name), way(*args)][1]
        )
    return passes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [*FULL_SIGHT, tiny_mistral, tiny_gemma2])
def test_equal_to_each_option_alone(make, attention, tokenizer, passes):
    model = build(make)
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip("Gemma2 has no other attention than eager")
    model.set_attn_implementation(attention)
    lengths = [len(row) for row in tokenizer(OPTIONS, add_special_tokens=False)["input_ids"]]
    assert len(set(lengths)) > 1
    first, second = tokenizer(OPTIONS[:2], add_special_tokens=False)["input_ids"]
    assert second[: len(first)] == first  # one option begins another

    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).unique().numel() == len(PROMPTS)  # every prompt has its own length
    scores = score_options(model, tokenizer, inputs, OPTIONS)

    expected = [
        [score_alone(model, tokenizer, tokenizer(prompt)["input_ids"], option) for option in OPTIONS]
        for prompt in PROMPTS
    ]
    assert scores.shape == (len(PROMPTS), len(OPTIONS)) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=0)
    assert scores.std() > 1  # not equal because everything is equal
    assert passes == ["_score_tree" if make in FULL_SIGHT else "_score_rows"]


def test_one_forward_pass_of_prompt_and_tree(tokenizer):
    model = build(tiny_llama)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    shapes = []
    model.model.register_forward_hook(lambda _, args, kwargs, out: shapes.append(out[0].shape[:2]), with_kwargs=True)
    kept = []
    model.lm_head.register_forward_hook(lambda _, args, out: kept.append(out.shape[1]))
    score_options(model, tokenizer, inputs, OPTIONS)
    nodes = len(make_tree(tokenizer(OPTIONS, add_special_tokens=False)["input_ids"]).tokens)
    assert nodes < sum(
        map(len, tokenizer(OPTIONS, add_special_tokens=False)["input_ids"])
    )  # "anger" stands there once
    assert shapes == [(len(PROMPTS), inputs["input_ids"].shape[1] + nodes)] and kept == [1 + nodes]


def test_options_that_begin_alike_share_nodes():
    assert make_tree([[5, 7], [5, 8], [6], [5]]) == (
        [5, 7, 8, 6],
        [0, 1, 1, 0],
        [[0, 1, 2], [0, 1, 3], [0, 4], [0, 1]],
    )


def test_what_sees_trees(tokenizer):
    assert sees_trees(build(tiny_llama), 100_000)
    assert sees_trees(build(tiny_mistral_of_long_sight), 60) and not sees_trees(build(tiny_mistral_of_long_sight), 61)


@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral])
def test_any_of_several_tokens_ends_the_turn(make, tokenizer):
    model, inputs = build(make), tokenizer(PROMPTS, padding=True, return_tensors="pt")
    tokens = tokenizer(OPTIONS, add_special_tokens=False)["input_ids"]
    both = score_options(model, tokenizer, inputs, tokens, ends=[tokenizer.eos_token_id, 7])
    each = [score_options(model, tokenizer, inputs, OPTIONS, ends=[end]) for end in (tokenizer.eos_token_id, 7)]
    torch.testing.assert_close(both, torch.stack(each).logsumexp(0))


def test_pictures_and_clues_of_our_own_model(tiny_checkpoint, passes):
    model, processor = load_checkpoint(tiny_checkpoint, dtype="float32")
    pictures = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": p, "faces": []}, {"type": "text", "text": text}]}]
        for p, text in zip(pictures, ("what is the facial expression?", "and?"), strict=True)
    ]

    def tensors(chats):
        return processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left"},
        )

    scores = score_options(model, processor.tokenizer, tensors(chats), OPTIONS)
    assert passes == ["_score_tree"]
    for chat, row in zip(chats, scores, strict=True):
        inputs = dict(tensors([chat]))
        ids, _ = inputs.pop("input_ids")[0].tolist(), inputs.pop("attention_mask")
        alone = [score_alone(model, processor.tokenizer, ids, option, **inputs) for option in OPTIONS]
        torch.testing.assert_close(row, torch.tensor(alone), atol=1e-4, rtol=0)
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_pictures_that_see_all_of_themselves(tokenizer, passes):
    """Gemma3: a mask of our own would make them causal, so its prompts run by themselves."""
    text = {**TINY, "head_dim": 8, "sliding_window": 6, "vocab_size": 128}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 4}
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_id=image_id,
        image_token_index=image_id,
    )
    model = build(lambda: Gemma3ForConditionalGeneration(config))
    pixel_values = torch.randn(3, 3, 16, 16)
    inputs = tokenizer([IMAGE * 4 + prompt for prompt in PROMPTS], padding=True, return_tensors="pt")
    kinds = (inputs["input_ids"] == image_id).long()
    scores = score_options(
        model, tokenizer, {**inputs, "pixel_values": pixel_values, "token_type_ids": kinds}, OPTIONS
    )
    assert passes == ["_score_rows"]
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(IMAGE * 4 + prompt)["input_ids"]
        for j, option in enumerate(OPTIONS):
            answer = tokenizer(option, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            kinds = (torch.tensor([ids + answer]) == image_id).long()
            seen = {"pixel_values": pixel_values[i : i + 1], "token_type_ids": kinds}
            assert scores[i, j].item() == pytest.approx(score_alone(model, tokenizer, ids, option, **seen), abs=1e-4)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_what_generate_computed_is_not_computed_again(make, tokenizer):
    model = build(make)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    alone = score_options(model, tokenizer, inputs, OPTIONS)
    generated = model.generate(
        **inputs, do_sample=False, max_new_tokens=5, return_dict_in_generate=True, output_logits=True
    )
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    torch.testing.assert_close(score_options(model, tokenizer, inputs, OPTIONS, prefill=generated), alone)
    assert len(lengths) == 1 and lengths[0] < inputs["input_ids"].shape[1]  # the options alone


def test_every_answer_of_a_tiny_vocabulary_sums_to_at_most_one(tokenizer):
    scores = score_options(build(tiny_llama), tokenizer, tokenizer(PROMPTS[0], return_tensors="pt"), OPTIONS)
    assert (scores <= 0).all() and scores.exp().sum() <= 1


def test_pictures_of_llava(tokenizer):
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TINY),
        image_token_id=image_id,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    model = build(lambda: LlavaForConditionalGeneration(config))
    pixel_values = torch.randn(3, 3, 16, 16)
    inputs = tokenizer([IMAGE * 4 + prompt for prompt in PROMPTS], padding=True, return_tensors="pt")
    scores = score_options(model, tokenizer, {**inputs, "pixel_values": pixel_values}, OPTIONS)

    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(IMAGE * 4 + prompt)["input_ids"]
        alone = [score_alone(model, tokenizer, ids, o, pixel_values=pixel_values[i : i + 1]) for o in OPTIONS]
        torch.testing.assert_close(scores[i], torch.tensor(alone), atol=1e-4, rtol=0)
    other = score_options(model, tokenizer, {**inputs, "pixel_values": pixel_values.flip(0)}, OPTIONS)
    assert (scores[0] - other[0]).abs().max() > 1e-2  # the picture matters


def test_positions_in_three_dimensions_of_qwen2_vl(tokenizer):
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    start_id, end_id = 126, 127  # ids that the tokenizer leaves free
    text = {**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 1,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "temporal_patch_size": 1,
    }
    special = {"image_token_id": image_id, "vision_start_token_id": start_id, "vision_end_token_id": end_id}
    model = build(
        lambda: Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **special))
    )
    grid = torch.tensor([[1, 4, 4]])  # 16 patches, merged 2 x 2 to 4 tokens
    pixel_values = torch.randn(2, 16, 3 * 4 * 4)
    rows = [[start_id] + [image_id] * 4 + [end_id] + tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:2]]

    def vision_inputs(ids, images):
        kinds = (ids == image_id).int()
        return {
            "pixel_values": images.flatten(0, 1),
            "image_grid_thw": grid.repeat(len(images), 1),
            "mm_token_type_ids": kinds,
        }

    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask, **vision_inputs(ids, pixel_values)}
    scores = score_options(model, tokenizer, inputs, OPTIONS)

    for i, row in enumerate(rows):
        for j, option in enumerate(OPTIONS):
            full = row + tokenizer(option, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            vision = vision_inputs(torch.tensor([full]), pixel_values[i : i + 1])
            assert scores[i, j].item() == pytest.approx(score_alone(model, tokenizer, row, option, **vision), abs=1e-4)


def test_a_batch_equals_its_rows_and_no_state_remains(tokenizer):
    model = build(tiny_llama)
    together = score_options(model, tokenizer, tokenizer(PROMPTS, padding=True, return_tensors="pt"), OPTIONS)
    singles = [score_options(model, tokenizer, tokenizer(p, return_tensors="pt"), OPTIONS) for p in PROMPTS]
    torch.testing.assert_close(together, torch.cat(singles), atol=1e-4, rtol=0)
    backwards = score_options(model, tokenizer, tokenizer(PROMPTS, padding=True, return_tensors="pt"), OPTIONS[::-1])
    torch.testing.assert_close(together, backwards.flip(1), atol=1e-4, rtol=0)


def test_probabilities_are_a_softmax_over_the_options():
    probabilities = option_probabilities(torch.tensor([[0.0, 0.0], [-1.0, -1.0 - torch.log(torch.tensor(3.0))]]))
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5], [0.75, 0.25]]))


def test_mistakes_are_named(tokenizer):
    model = build(tiny_llama)
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with pytest.raises(ValueError, match="left-padded"):
        right = tokenizer(PROMPTS, padding=True, padding_side="right", return_tensors="pt")
        score_options(model, tokenizer, right, OPTIONS)
    with pytest.raises(ValueError, match="at least one option"):
        score_options(model, tokenizer, inputs, [])
    with pytest.raises(ValueError, match="has no token"):
        score_options(model, tokenizer, inputs, ["anger", ""])
    with pytest.raises(ValueError, match="eval mode"):
        score_options(model.train(), tokenizer, inputs, OPTIONS)
