"""Every language model and vision tower that is promised: the same tokens, the same answers, however they are asked.

A batch is left-padded and mixed: stills, a clip of three frames, both, neither. Nothing here has learned anything; the
matrices are enlarged to gain 2, since a new network hardly reacts to what it is given.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from accelerate import infer_auto_device_map
from torch.nn.utils.rnn import pad_sequence
from transformers import CompileConfig, InstructBlipQFormerConfig

from modeling_emo_llama import EmoLlamaConfig, EmoLlamaForConditionalGeneration, EmoLlamaProcessor
from modeling_emo_llama.create_checkpoint import compose, create_checkpoint, tiny_language_model, tiny_vision_tower

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXTS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8}),
}
TOWERS = {  # name -> configuration, tokens before the patches
    "dinov2": ("Dinov2Config", 1),
    "dinov2 with registers": ("Dinov2WithRegistersConfig", 5),
    "clip": ("CLIPVisionConfig", 1),
    "siglip": ("SiglipVisionConfig", 0),
    "eva": ("Blip2VisionConfig", 1),
}
FAMILIES = [*((text, "dinov2") for text in TEXTS), *(("llama", tower) for tower in list(TOWERS)[1:])]
IMAGE, VIDEO, WORDS = 90, 91, 90  # token ids; words are below
SIDE, FRAMES = 28, 3
ROWS = [["image", "video"], [], ["image", "image", "image"], ["video"], ["image"]]  # what is in each conversation
NEW_TOKENS = 5


def toy(text: str = "llama", tower: str = "dinov2", **changes) -> EmoLlamaForConditionalGeneration:
    config_class, extra = TEXTS[text]
    text_config = getattr(transformers, config_class)(
        vocab_size=96, num_key_value_heads=2, pad_token_id=0, eos_token_id=None, bos_token_id=None, **SIZES, **extra
    )
    vision_config = getattr(transformers, TOWERS[tower][0])(image_size=SIDE, patch_size=7, **SIZES)
    qformer_config = InstructBlipQFormerConfig(
        vocab_size=96,
        encoder_hidden_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        **SIZES,
    )
    config = EmoLlamaConfig(
        vision_config=vision_config,
        text_config=text_config,
        qformer_config=qformer_config,
        face_config={"hidden_size": 32, "embedding_size": 16, "max_faces": 2, "dropout": 0.0, "evidence_dropout": 0.0},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        num_query_tokens=4,
        visual_token_rms=0.5,
        **changes,
    )
    torch.manual_seed(0)
    model = EmoLlamaForConditionalGeneration(config).eval()
    for name, parameter in model.model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.data.normal_(0, 2 / parameter.shape[1] ** 0.5)
    model.generation_config.update(pad_token_id=0, suppress_tokens=[IMAGE, VIDEO])  # as in a created checkpoint
    return model


def conversation(config: EmoLlamaConfig, media: list[str], seed: int) -> dict:
    """`input_ids (sequence)`, and what is known of its stills and of its frames, a row a picture."""
    torch.manual_seed(seed)
    ids, question = [torch.randint(1, WORDS, (4 + seed,))], torch.randint(1, WORDS, (2 + seed,))
    pictures = {"image": [], "video": []}
    for medium in media:
        frames = 1 if medium == "image" else FRAMES
        length = config.image_seq_length if medium == "image" else FRAMES * config.frame_seq_length
        ids += [torch.full((length,), IMAGE if medium == "image" else VIDEO), torch.randint(1, WORDS, (1,))]
        for _ in range(frames):
            face = {"face_boxes": torch.tensor([[0.1, 0.2, 0.8, 0.9]] * 2), "face_mask": torch.rand(2) > 0.4}
            face |= {"face_landmarks": torch.rand(2, 68, 2), "face_embeddings": torch.randn(2, 16)}
            question_inputs = {"qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question)}
            pictures[medium].append({"pixels": torch.randn(3, SIDE, SIDE), **question_inputs, **face})
    return {"input_ids": torch.cat(ids), **pictures}


def batch(conversations: list[dict]) -> dict[str, torch.Tensor]:
    """The model's inputs, as the processor makes them: left-padded, all stills before all frames."""
    rows = [one["input_ids"] for one in conversations]
    inputs = {"input_ids": pad_sequence(rows, batch_first=True, padding_side="left")}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    stills, frames = ([picture for one in conversations for picture in one[kind]] for kind in ("image", "video"))
    for name, pictures in (("pixel_values", stills), ("pixel_values_videos", frames)):
        if pictures:
            inputs[name] = torch.stack([picture["pixels"] for picture in pictures])
    for name in (stills + frames)[0].keys() - {"pixels"} if stills + frames else ():
        inputs[name] = pad_sequence([picture[name] for picture in stills + frames], batch_first=True)
    return inputs


def conversations(model) -> list[dict]:
    return [conversation(model.config, media, seed) for seed, media in enumerate(ROWS)]


def generate(model, inputs, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """The new tokens of each row, and their logits."""
    out = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, output_logits=True, return_dict_in_generate=True, **kwargs
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def logits(model, inputs) -> torch.Tensor:
    """Of the places that are no padding."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def loss_and_gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.fixture(scope="module", params=FAMILIES, ids=" and ".join)
def model(request):
    return toy(*request.param)


@pytest.fixture(scope="module")
def llama():
    return toy()


@pytest.mark.parametrize(("tower", "prefix"), [(name, prefix) for name, (_, prefix) in TOWERS.items()])
def test_patches_are_what_follows_the_prefix(tower, prefix):
    model, seen = toy(tower=tower), {}
    model.model.face_info_mining.register_forward_pre_hook(lambda module, args: seen.update(patches=args[0]))
    inputs = batch([conversation(model.config, ["image"], 0)])
    with torch.no_grad():
        model(**inputs)
        tokens = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    assert tokens.shape[1] == prefix + 16
    assert torch.equal(seen["patches"], tokens[:, prefix:])


def test_gradients_reach_every_part(model):
    found = loss_and_gradients(model, batch(conversations(model)))
    assert found.pop("loss").isfinite()
    moved = {name.split(".")[1 if name.startswith("model.") else 0] for name, g in found.items() if g.any()}
    assert moved == {name for name, _ in model.model.named_children()} | {"lm_head"}
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_each_row_of_a_mixed_batch_equals_itself_alone(model):
    rows = conversations(model)
    answers, of_batch = generate(model, batch(rows), do_sample=False)
    for index, row in enumerate(rows):
        answer, alone = generate(model, batch([row]), do_sample=False)
        assert torch.equal(answers[index], answer[0])
        torch.testing.assert_close(of_batch[index], alone[0], atol=2e-4, rtol=0)
    assert answers.unique(dim=0).shape[0] > 1, "or there is nothing to confuse"


def test_caches_change_nothing(model):
    inputs = batch(conversations(model))
    answers, plain = generate(model, inputs, do_sample=False, use_cache=False)
    for options in ({}, {"cache_implementation": "static"}):
        cached, of_cache = generate(model, inputs, do_sample=False, **options)
        assert torch.equal(cached, answers)
        torch.testing.assert_close(of_cache, plain, atol=2e-4, rtol=0)


def test_beams_see_the_pictures_of_their_row(model):
    """`generate` repeats pictures for the beams, and rows have different numbers of them."""
    rows, options = conversations(model), {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    answers, _ = generate(model, batch(rows), **options)
    for index, row in enumerate(rows):
        alone, _ = generate(model, batch([row]), **options)
        assert torch.equal(answers[2 * index : 2 * index + 2], alone)


def test_samples_see_the_pictures_of_their_row(model):
    rows = conversations(model)
    _, sampled = generate(model, batch(rows), do_sample=True, num_return_sequences=2)
    for index, row in enumerate(rows):
        first = generate(model, batch([row]), do_sample=False)[1][:, 0]
        torch.testing.assert_close(sampled[2 * index : 2 * index + 2, 0], first.repeat(2, 1), atol=2e-4, rtol=0)


def test_other_ways_to_generate(model):
    inputs = batch(conversations(model))
    expected, _ = generate(model, inputs, do_sample=False)
    chunked, _ = generate(model, inputs, do_sample=False, prefill_chunk_size=8)
    assert torch.equal(chunked, expected)
    embedded = dict(inputs) | {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    del embedded["input_ids"]
    assert torch.equal(model.generate(**embedded, max_new_tokens=NEW_TOKENS, do_sample=False), expected)
    for index, row in enumerate(conversations(model)):
        for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": model}):  # these take one row
            assert torch.equal(generate(model, batch([row]), do_sample=False, **options)[0][0], expected[index])


def test_a_conversation_goes_on_from_its_cache(model):
    """A second turn with new pictures: the cache holds the first ones, which are not looked at again."""
    first = conversation(model.config, ["image"], 7)
    second = conversation(model.config, ["image", "video"], 8)
    told = model.generate(**batch([first]), max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    whole = {kind: first[kind] + second[kind] for kind in ("image", "video")}
    whole["input_ids"] = torch.cat([told.sequences[0], second["input_ids"]])
    expected, of_whole = generate(model, batch([whole]), do_sample=False)
    new = batch([second]) | {name: batch([whole])[name] for name in ("input_ids", "attention_mask")}
    answer, of_new = generate(model, new, do_sample=False, past_key_values=told.past_key_values)
    assert torch.equal(answer, expected)
    torch.testing.assert_close(of_new, of_whole, atol=2e-4, rtol=0)


def test_gradient_checkpointing_changes_nothing(model):
    inputs = batch(conversations(model))
    model.train()
    plain = loss_and_gradients(model, inputs)
    model.activation_checkpointing_enable()
    torch.testing.assert_close(loss_and_gradients(model, inputs), plain, atol=1e-5, rtol=1e-4)
    model.activation_checkpointing_disable()
    model.eval()


def test_attention_implementations_agree(model):
    if not model.model.language_model._supports_sdpa:
        pytest.skip("transformers' Gemma 2 runs eager attention alone")
    inputs = batch(conversations(model))
    found = {}
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert {part.config._attn_implementation for part in (model, model.model.language_model)} == {name}
        found[name] = logits(model, inputs)
    torch.testing.assert_close(found["eager"], found["sdpa"], atol=2e-4, rtol=0)


def test_saved_and_loaded(model, tmp_path):
    """In one file and in several; in bfloat16 nearly the same."""
    inputs = batch(conversations(model))
    expected = logits(model, inputs)
    for size in ("1GB", "100KB"):
        model.save_pretrained(tmp_path / size, max_shard_size=size)
        loaded = EmoLlamaForConditionalGeneration.from_pretrained(tmp_path / size)
        assert torch.equal(logits(loaded, inputs), expected)
    assert len(list((tmp_path / "100KB").glob("*.safetensors"))) > 1
    half = EmoLlamaForConditionalGeneration.from_pretrained(tmp_path / "1GB", dtype=torch.bfloat16)
    assert half.model.language_model.dtype == torch.bfloat16
    assert half.model.face_info_mining.projector.weight.dtype == torch.float32
    similarity = torch.cosine_similarity(logits(half, inputs).float(), expected, dim=-1)
    assert similarity.median() > 0.95


def test_threads_do_not_mix_their_questions(llama):
    asked = [batch([row]) for row in conversations(llama)] * 3
    alone = [generate(llama, inputs, do_sample=False)[1] for inputs in asked[: len(ROWS)]] * 3
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda inputs: generate(llama, inputs, do_sample=False)[1], asked))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_decoding_compiles_to_one_graph(llama):
    """With a static cache, as `generate` does by itself on a GPU."""
    inputs = batch(conversations(llama))
    expected, _ = generate(llama, inputs, do_sample=False)
    compiling = CompileConfig(fullgraph=True, backend="eager")  # the graph is what matters, no C++ compiler is needed
    compiling._compile_all_devices = True
    answers, _ = generate(llama, inputs, do_sample=False, cache_implementation="static", compile_config=compiling)
    assert torch.equal(answers, expected)
    assert hasattr(llama, "_compiled_call"), "or nothing was compiled"


def test_blocks_stay_whole_on_a_device(llama, tmp_path):
    blocks = {name: type(module).__name__ for name, module in llama.named_modules()}
    assert llama._no_split_modules <= set(blocks.values())
    assert {"LlamaDecoderLayer", "Dinov2Layer", "ContextToken", "FaceInfoMining"} <= llama._no_split_modules
    memory = {"cpu": 500_000, "disk": 10**9}
    split = infer_auto_device_map(llama, memory, no_split_module_classes=list(llama._no_split_modules))
    assert set(split.values()) == {"cpu", "disk"}
    for name, kind in blocks.items():
        assert kind not in llama._no_split_modules or not any(place.startswith(f"{name}.") for place in split)

    inputs = batch(conversations(llama))
    llama.save_pretrained(tmp_path)
    # Not the Face Info Mining: torch's attention reads the weights of its parts, which accelerate loads part by part.
    places = dict.fromkeys((f"model.{name}" for name, _ in llama.model.named_children()), "disk")
    places |= {"lm_head": "disk", "model.face_info_mining": "cpu"}
    loaded = EmoLlamaForConditionalGeneration.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offloaded"
    )
    assert loaded.model.language_model.norm.weight.device.type == "meta", "it waits on the disk"
    torch.testing.assert_close(logits(loaded, inputs), logits(llama, inputs), atol=2e-4, rtol=0)


STRANGER = """
import json, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(".", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**torch.load("inputs.pt")).logits, "logits.pt")
print(json.dumps([type(part).__module__ for part in (model, model.model.vision_tower, model.model.language_model)]))
"""


@pytest.mark.slow
def test_other_parts_load_by_remote_code(tmp_path):
    model = toy("qwen3", "siglip")
    inputs = batch(conversations(model))
    model.save_pretrained(tmp_path)
    torch.save(inputs, tmp_path / "inputs.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-3000:]
    modules = json.loads(process.stdout.splitlines()[-1])
    assert [name.split(".")[0] for name in modules] == ["transformers_modules", "transformers", "transformers"]
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(**inputs).logits, atol=2e-4, rtol=0)


def test_tokens_start_at_the_scale_of_scaled_words():
    """Gemma 3 multiplies what its table says by the root of its width."""
    config = transformers.Gemma3TextConfig(vocab_size=320, head_dim=8, num_key_value_heads=2, **SIZES)
    model, _ = compose(*tiny_vision_tower(), transformers.Gemma3ForCausalLM(config), tiny_language_model()[1])
    table = model.get_input_embeddings()
    words = table(torch.arange(table.num_embeddings)).float().std().item()
    assert words == pytest.approx(32**0.5 * table.weight.float().std().item(), rel=0.01)
    assert model.config.visual_token_rms == pytest.approx(words, rel=0.01)


@pytest.mark.parametrize(
    ("part", "still", "frame", "unread"),
    [
        ("context", 4 + 8, 1 + 8, {"qformer_input_ids"}),
        ("content", 1 + 8, 1 + 8, set()),
        ("clue", 1 + 4, 1 + 1, {"face_boxes", "face_landmarks", "face_embeddings", "face_mask"}),
        ("global_branch", 1 + 4 + 8, 1 + 1 + 8, {"face_boxes", "face_embeddings"}),
        ("local_branch", 1 + 4 + 8, 1 + 1 + 8, {"face_landmarks"}),
    ],
)
def test_a_part_that_is_switched_off(part, still, frame, unread, tmp_path):
    """It takes no tokens, has no weights, and nothing that it alone would read changes the answer."""
    model = toy(**{f"use_{part}": False})
    assert (model.config.image_seq_length, model.config.frame_seq_length) == (still, frame)
    rows = conversations(model)
    inputs = batch(rows)
    expected = logits(model, inputs)
    for name in ("qformer_input_ids", "face_boxes", "face_landmarks", "face_embeddings", "face_mask"):
        other = ~inputs[name] if inputs[name].dtype == torch.bool else inputs[name].flip(-1)
        assert torch.equal(logits(model, inputs | {name: other}), expected) == (name in unread), name
    names = {name for name, _ in model.named_parameters()}
    assert len(names) < len({name for name, _ in toy().named_parameters()})
    found = loss_and_gradients(model, inputs)
    assert all(name in found for name in names if name.startswith(("model.context", "model.face", "model.multi")))

    model.save_pretrained(tmp_path)
    loaded, info = EmoLlamaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(logits(loaded, inputs), expected)


def test_something_must_be_left():
    with pytest.raises(ValueError, match="no token left"):
        EmoLlamaConfig(use_context=False, use_content=False, use_clue=False)
    with pytest.raises(ValueError, match="no evidence left.*use_clue=False"):
        EmoLlamaConfig(use_global_branch=False, use_local_branch=False)


def test_a_checkpoint_without_faces(tmp_path):
    create_checkpoint(tmp_path / "tiny", preset="tiny-random", without=["clue", "context"])
    model = EmoLlamaForConditionalGeneration.from_pretrained(tmp_path / "tiny")
    processor = EmoLlamaProcessor.from_pretrained(tmp_path / "tiny")
    inputs = processor(images=torch.rand(3, 40, 40), text="<image>Who?", faces=[[]], return_tensors="pt")
    assert inputs["face_mask"].shape == (1, 0)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 4
    assert model(**inputs).image_hidden_states.shape == (1, 4, 64)
    with pytest.raises(ValueError, match="--without faces: choose from context, content, clue"):
        create_checkpoint(tmp_path / "none", preset="tiny-random", without=["faces"])
