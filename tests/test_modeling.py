"""The model against plain definitions: its tokens, its formulas, its loss, and what may never influence what."""

import copy
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_emo_llama  # noqa: F401  registers the classes

NEW_MODULES = ("context_attention", "multi_modal_projector", "face_info_mining", "token_gain")
QUESTIONS = ["Is she sad?", "What is the facial expression of the person in the image?", "Why?"]
CONTEXT, CONTENT, CLUES = slice(0, 1), slice(1, 5), slice(5, 13)  # the tokens of a picture


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


def chat(question: str, answer: str | None = None, seed: int = 0, pictures: int = 1) -> list[dict]:
    content = [{"type": "text", "text": question}]
    for index in range(pictures):
        rng = np.random.default_rng((seed, index))
        face = {"box": [4, 4, 36, 36], "landmarks": rng.uniform(4, 36, (68, 2)), "embedding": rng.normal(size=128)}
        picture = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        content.insert(index, {"type": "image", "image": picture, "faces": [face]})
    turns = [{"role": "user", "content": content}]
    return turns if answer is None else [*turns, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def tensors(processor, conversations):
    return processor.apply_chat_template(
        conversations,
        add_generation_prompt=conversations[0][-1]["role"] == "user",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    )


def features(model, inputs):
    with torch.no_grad():
        return model.get_image_features(
            **{name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        ).pooler_output


def generate(model, inputs, **kwargs):
    """Eight new tokens a row, and the logits of each."""
    output = model.generate(
        **inputs, min_new_tokens=8, max_new_tokens=8, output_logits=True, return_dict_in_generate=True, **kwargs
    )
    return output.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(output.logits, 1)


def test_one_rule_for_the_number_of_tokens(model, processor):
    inputs = tensors(processor, [chat("?", pictures=2)])
    with torch.no_grad():
        outputs = model(**inputs)
    length = model.config.image_seq_length
    assert length == processor.image_seq_length == 1 + 4 + 8
    assert outputs.image_hidden_states.shape == (2, length, model.config.text_config.hidden_size)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * length
    assert outputs.logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)


def test_picture_tokens_stand_at_their_placeholders(model, processor):
    """The language model reads the words' embeddings and, where `<image>` was written, the features in order."""
    inputs = tensors(processor, [chat("Two.", pictures=2), chat("One picture.", seed=1)])
    read = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
        hook.remove()
        expected = model.get_input_embeddings()(inputs["input_ids"])
    pictures = features(model, inputs)
    place = inputs["input_ids"] == model.config.image_token_id
    expected[0, place[0]] = pictures[:2].flatten(0, 1)
    expected[1, place[1]] = pictures[2]
    torch.testing.assert_close(read["inputs_embeds"], expected, atol=1e-6, rtol=0)


def test_embeddings_instead_of_ids(model, processor):
    inputs = tensors(processor, [chat("Is she sad?")])
    with torch.no_grad():
        expected = model(**inputs).logits
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=0)


def test_missing_placeholder_is_named_with_both_numbers(model, processor):
    inputs = tensors(processor, [chat("?")])
    first = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0]
    inputs["input_ids"][0, first] = 5
    with pytest.raises(ValueError, match="do not match, tokens: 12, features: 13"):
        model(**inputs)


def test_unknown_input_raises(model, processor):
    inputs = tensors(processor, [chat("?")])
    inputs["face_landmark"] = inputs.pop("face_landmarks")
    with pytest.raises(TypeError, match="face_landmark"):
        model(**inputs)
    with pytest.raises(TypeError, match="face_landmark"):
        model.base_model(**inputs)  # what TRL calls


def test_left_padding_changes_nothing(model, processor):
    conversations = [chat(question, seed=seed) for seed, question in enumerate(QUESTIONS)]
    batch = tensors(processor, conversations)
    assert batch["attention_mask"].sum(1).unique().numel() == 3
    answers, logits = generate(model, batch, do_sample=False)
    for row, conversation in enumerate(conversations):
        answer, alone = generate(model, tensors(processor, [conversation]), do_sample=False)
        assert torch.equal(answers[row], answer[0])
        torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 0.1, "the rows have different answers to confuse"


def test_cache_changes_nothing(model, processor):
    inputs = tensors(processor, [chat(question, seed=seed) for seed, question in enumerate(QUESTIONS)])
    looks = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: looks.append(1))
    tokens, logits = generate(model, inputs, do_sample=False)
    hook.remove()
    assert len(looks) == 1, "the pictures are looked at once"
    slow_tokens, slow_logits = generate(model, inputs, do_sample=False, use_cache=False)
    assert torch.equal(tokens, slow_tokens)
    torch.testing.assert_close(logits, slow_logits, atol=1e-4, rtol=0)


def test_several_answers_see_the_same_pictures(model, processor):
    """`generate` repeats the inputs a row: a row's pictures must stay together."""
    inputs = tensors(processor, [chat("Who is sad?", pictures=2), chat("Why?", seed=1), chat("Hello", pictures=0)])
    expected, _ = generate(model, inputs, do_sample=False)
    several, _ = generate(model, inputs, do_sample=True, top_k=1, num_return_sequences=2)  # the likeliest, twice
    assert torch.equal(several, expected.repeat_interleave(2, 0))
    beams = model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=4)
    assert beams.shape[0] == 6


def test_text_only(model, processor):
    inputs = tensors(processor, [chat("Hello", pictures=0)])
    with torch.no_grad():
        outputs = model(**inputs)
    assert outputs.image_hidden_states is None and outputs.logits.isfinite().all()
    assert generate(model, inputs)[0].shape == (1, 8)


def test_answers_never_reach_the_picture(model, processor):
    plain = features(model, tensors(processor, [chat(QUESTIONS[0], "happiness")]))
    for answer in ("sadness", "I think that the person is very angry, because she frowns."):
        assert torch.equal(features(model, tensors(processor, [chat(QUESTIONS[0], answer)])), plain)
    assert torch.equal(features(model, tensors(processor, [chat(QUESTIONS[0])])), plain), "as when it is asked"


def test_only_the_context_token_follows_the_question(model, processor):
    first, second = (features(model, tensors(processor, [chat(question)]))[0] for question in QUESTIONS[:2])
    assert (first[CONTEXT] - second[CONTEXT]).abs().max() > 0.05 * first[CONTEXT].abs().max()
    assert torch.equal(first[CONTEXT.stop :], second[CONTEXT.stop :])


def test_only_the_clue_tokens_follow_the_face(model, processor):
    inputs = tensors(processor, [chat("?")])
    other = dict(inputs) | {"face_embeddings": torch.randn(1, 1, 128)}
    first, second = features(model, inputs)[0], features(model, other)[0]
    assert torch.equal(first[: CLUES.start], second[: CLUES.start])
    assert (first[CLUES] - second[CLUES]).abs().max() > 0.05 * first[CLUES].abs().max()


def test_context_is_llama_vids_formula(model, processor):
    """Section 3.2 of arXiv 2311.17043, a picture and a query at a time, on questions without padding."""
    inputs = tensors(processor, [chat(question, seed=seed) for seed, question in enumerate(QUESTIONS)])
    attention = model.model.context_attention
    with torch.no_grad():
        tokens = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
        computed = attention(tokens, 1, inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
        for row, mask in enumerate(inputs["qformer_attention_mask"].bool()):
            words = inputs["qformer_input_ids"][row, mask]
            queries = attention.qformer(
                input_ids=words[None],
                query_embeds=attention.query_tokens,
                encoder_hidden_states=attention.vision_norm(tokens[row : row + 1]),
            ).last_hidden_state[0, : attention.query_tokens.shape[1]]
            patches = tokens[row, 1:]  # without the class token
            keys = attention.key_projector(patches)
            seen = [
                ((attention.query_projector(query) @ keys.T) / math.sqrt(patches.shape[1])).softmax(0) @ patches
                for query in queries
            ]
            expected = attention.value_projector(sum(seen) / len(seen))
            torch.testing.assert_close(computed[row, 0], expected, atol=1e-5, rtol=1e-5)
    assert (computed[0] - computed[1]).abs().max() > 1e-2


@pytest.mark.parametrize(("compress_type", "side"), [("mean", 1), ("grid:2", 2), ("grid:4", 4)])
def test_content_is_the_pooled_patches(model, processor, compress_type, side):
    model = copy.deepcopy(model)
    model.config.compress_type = compress_type
    inputs = tensors(processor, [chat("?"), chat("?", seed=1)])
    projector, gain = model.model.multi_modal_projector, model.model.token_gain.gains["content"]
    with torch.no_grad():
        grid = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state[:, 1:].view(2, 4, 4, -1)
        pooled = F.avg_pool2d(grid.permute(0, 3, 1, 2), 4 // side)
        rows = pooled.permute(0, 2, 3, 1).flatten(1, 2)  # row by row, from the top left
        expected = gain(projector.linear_2(F.gelu(projector.linear_1(rows))))
    assert model.config.image_seq_length == 1 + side**2 + 8
    content = features(model, inputs)[:, 1 : 1 + side**2]
    torch.testing.assert_close(content, expected, atol=1e-6, rtol=1e-5)


def test_tokens_start_at_the_scale_of_words(tiny_checkpoint, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint).eval()
    tokens = features(model, tensors(processor, [chat("?")]))
    rms = tokens.square().mean(-1).sqrt()
    words = model.get_input_embeddings().weight.float().std()
    torch.testing.assert_close(rms, words.expand_as(rms), rtol=0.05, atol=0)


def test_loss_is_the_next_tokens_cross_entropy(model, processor):
    inputs = tensors(processor, [chat(QUESTIONS[0], "sadness"), chat(QUESTIONS[1], "happiness", seed=1)])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :-8] = -100
    labels[1, -3] = -100
    with torch.no_grad():
        outputs = model(**inputs, labels=labels)
        doubled = model(**inputs, labels=labels, num_items_in_batch=30).loss
    probabilities = outputs.logits.log_softmax(-1)
    losses = [-probabilities[row, place - 1, labels[row, place]] for row, place in (labels != -100).nonzero().tolist()]
    assert len(losses) == 15
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(doubled, torch.stack(losses).sum() / 30, atol=1e-5, rtol=1e-5)


def test_logits_to_keep(model, processor):
    inputs = tensors(processor, [chat("?")])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, logits_to_keep=2).logits, model(**inputs).logits[:, -2:])


def test_threads_do_not_mix_their_questions(model, processor):
    asked = [tensors(processor, [chat(question, seed=seed)]) for seed, question in enumerate(QUESTIONS)] * 4
    alone = [generate(model, inputs, do_sample=False)[1] for inputs in asked[:3]] * 4
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda inputs: generate(model, inputs, do_sample=False)[1], asked))
    for mine, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


def test_attention_implementations_agree(tiny_checkpoint, processor):
    inputs = tensors(processor, [chat("Is she sad?")])
    logits = []
    for name in ("eager", "sdpa"):
        model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype="float32", attn_implementation=name)
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_new_modules_stay_in_float32(tiny_checkpoint, processor, dtype):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=dtype)
    for name, parameter in model.named_parameters():
        new = any(f".{module}." in name for module in NEW_MODULES)
        assert parameter.dtype == (torch.float32 if new else torch.bfloat16), name
    with torch.no_grad():
        assert model(**tensors(processor, [chat("?")])).logits.dtype == torch.bfloat16


def test_gradients_reach_every_new_module(tiny_checkpoint, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)
    inputs = tensors(processor, [chat(QUESTIONS[0], "sadness"), chat(QUESTIONS[1], "fear", seed=1)])
    inputs["face_mask"][1] = False
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    unread = "qformer.encoder.layer.1.(intermediate|output)[.]"  # the last block's words: only its queries are read
    idle = [
        name
        for name, p in model.model.named_parameters()
        if name.split(".")[0] in NEW_MODULES and (p.grad is None or not p.grad.any()) and not re.search(unread, name)
    ]
    assert not idle


def test_gradient_checkpointing_gives_the_same_gradients(tiny_checkpoint, processor):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32).train()
    inputs = tensors(processor, [chat(QUESTIONS[0], "sadness")])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(model.model.multi_modal_projector.linear_1.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
