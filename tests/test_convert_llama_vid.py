"""LLaMA-VID checkpoints in their original layout, converted: the same tokens as a plain version of its formulas."""

import json
import math
import subprocess
import sys
from pathlib import Path

import plain_llama_vid
import pytest
import torch
from PIL import Image
from plain_llama_vid import BERT, EVA, PATCH, QFORMER, VISION, Checkpoint, plain_llama, plain_tokens
from safetensors import safe_open
from torch.nn import functional as F
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2VisionConfig,
    InstructBlipQFormerConfig,
    LlamaTokenizer,
)
from typer.testing import CliRunner

from modeling_emo_llama import EmoLlamaForConditionalGeneration
from modeling_emo_llama import convert_llama_vid as module
from modeling_emo_llama.cli import app
from modeling_emo_llama.convert_llama_vid import convert_llama_vid
from modeling_emo_llama.llama_vid_weights import Source, assign

QUESTIONS = ["Is she sad?", "What is the facial expression of the person in the image?"]


def written(folder):
    """All weights of a checkpoint folder, as they lie there."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
    return tensors


def look(out, side):
    """The converted model, in float64 so that rounding hides nothing, and two pictures with their questions."""
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).double().eval()
    processor = AutoProcessor.from_pretrained(out)
    pixels = torch.randint(0, 256, (2, 30, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    content = [
        [{"type": "image", "image": Image.fromarray(p.numpy())}, {"type": "text", "text": q}]
        for p, q in zip(pixels, QUESTIONS, strict=True)
    ]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": parts}] for parts in content],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "use_faces": False},
    )
    assert inputs["pixel_values"].shape == (2, 3, side * PATCH, side * PATCH)
    return model, inputs


@pytest.mark.parametrize("side", [4, 6])
@pytest.mark.parametrize(("compress_type", "content"), [(None, None), ("mean", 1), ("grid:2", 4)])
def test_tokens_and_logits_are_those_of_the_formulas(tmp_path, side, compress_type, content):
    checkpoint = Checkpoint(tmp_path / "source", side=side, compress_type=compress_type).save()
    convert_llama_vid(checkpoint.folder, tmp_path / "out")
    model, inputs = look(tmp_path / "out", side)
    expected = plain_tokens(checkpoint, inputs["pixel_values"], QUESTIONS)
    length = expected.shape[1]
    assert length == 1 + (content or side * side) and expected.std() > 0.1
    with torch.no_grad():
        outputs = model(**inputs)
    tokens = outputs.image_hidden_states
    assert tokens.shape[1] == length + model.config.face_config.num_clue_tokens == model.config.image_seq_length
    torch.testing.assert_close(tokens[:, :length], expected, atol=1e-9, rtol=0)
    # The other question makes another context token, and no other content.
    other = (plain_tokens(checkpoint, inputs["pixel_values"], QUESTIONS[::-1]) - expected).abs().amax((0, 2))
    assert other[0] > 0.01 and not other[1:].any()

    llama = plain_llama(checkpoint)
    for row in range(2):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        place = ids == model.config.image_token_id
        with torch.no_grad():
            embeds = llama.model.embed_tokens(ids.where(~place, 0))
            embeds[place] = torch.cat([expected[row], tokens[row, length:]])
            logits = llama(inputs_embeds=embeds[None]).logits[0]
        found = outputs.logits[row, -len(ids) :, : logits.shape[-1]]
        largest = logits.abs().max().item()  # transformers' Llama computes its norms in float32
        torch.testing.assert_close(found, logits, atol=1e-5 * largest, rtol=0)


@pytest.mark.parametrize(
    ("kind", "shards", "inside"),
    [
        ("bin", 3, ("qformer", "eva")),
        ("bin", 1, ("qformer",)),
        ("bin", 4, ()),
        ("safetensors", 3, ("qformer",)),
        ("safetensors", 1, ("qformer", "eva")),
    ],
)
def test_every_layout_gives_the_same_checkpoint(tmp_path, monkeypatch, kind, shards, inside):
    checkpoint = Checkpoint(tmp_path / "source").save(kind, shards, inside)
    monkeypatch.setattr(module, "MAX_SHARD_BYTES", 100_000)
    convert_llama_vid(checkpoint.folder, tmp_path / "out")
    tensors, index = written(tmp_path / "out"), tmp_path / "out" / "model.safetensors.index.json"
    assert set(json.loads(index.read_text())["weight_map"]) == set(tensors)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3

    for name, ours in {
        "lm_head.weight": "lm_head.weight",
        "model.norm.weight": "model.language_model.norm.weight",
        "model.layers.1.mlp.down_proj.weight": "model.language_model.layers.1.mlp.down_proj.weight",
        f"{VISION}blocks.2.mlp.fc1.bias": "model.vision_tower.encoder.layers.2.mlp.fc1.bias",
        f"{QFORMER}encoder.layer.1.output_query.dense.weight": (
            "model.context_attention.qformer.encoder.layer.1.output_query.dense.weight"
        ),
    }.items():
        source = checkpoint.tensors[name]
        new_modules = "qformer" in ours  # they stay in float32
        assert tensors[ours].dtype == (torch.float32 if new_modules else torch.float16)
        assert torch.equal(tensors[ours][: len(source)], source.to(tensors[ours].dtype))
    assert not tensors["model.vision_tower.encoder.layers.0.self_attn.qkv.bias"][EVA : 2 * EVA].any()  # of the keys
    # Rows for <image>, <video> and up to a multiple of 64: like the mean of all words.
    extra = tensors["lm_head.weight"][checkpoint.settings["vocab_size"] :]
    assert len(tensors["lm_head.weight"]) % 64 == 0 and len(extra) >= 2
    assert torch.equal(extra, checkpoint.llama["lm_head.weight"].float().mean(0).half().expand_as(extra))

    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.text_config.dtype == torch.float16 and model.generation_config.eos_token_id == 2
    convert_llama_vid(checkpoint.folder, tmp_path / "again")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in written(tmp_path / "again").items())


@pytest.mark.parametrize(
    ("width", "inner", "layers", "side", "parameters"),
    [(4096, 11008, 32, 16, 6_738_415_616), (5120, 13824, 40, 24, 13_015_864_320)],
)
def test_original_sizes(monkeypatch, width, inner, layers, side, parameters):
    """7B at 224 pixels and 13B at 336 pixels, by their shapes alone."""
    sizes = {"PATCH": 14, "EVA": 1408, "EVA_INNER": 6144, "BERT": 768, "BERT_INNER": 3072}
    for name, size in sizes.items():
        monkeypatch.setattr(plain_llama_vid, name, size)
    shapes = plain_llama_vid.llama_shapes(32000, width, layers, inner) | {"model.vlm_att_query": (1, 32, 768)}
    shapes |= {QFORMER + name: shape for name, shape in plain_llama_vid.bert_shapes(30523, layers=12).items()}
    shapes |= {VISION + name: shape for name, shape in plain_llama_vid.eva_shapes(side, blocks=40).items()}
    shapes |= plain_llama_vid.norm_shapes("model.vlm_att_ln", 1408)
    tensors = {name: Source(Path("file"), name, shape, torch.bfloat16) for name, shape in shapes.items()}
    settings = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "compress_type": "mean"}
    settings["num_attention_heads"] = settings["num_key_value_heads"] = width // 128
    tokenizer = LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2} | {str(n): n for n in range(3, 32000)})
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    config = module.emo_llama_config(settings, tensors, tokenizer, None, "dlib")
    assert config.vision_config.to_diff_dict() == Blip2VisionConfig(image_size=14 * side).to_diff_dict()  # EVA-g's own
    assert config.qformer_config.to_diff_dict() == InstructBlipQFormerConfig(vocab_size=30523).to_diff_dict()
    assert config.text_config.vocab_size == 32064 and config.image_token_id == 32000
    with torch.device("meta"):
        model = EmoLlamaForConditionalGeneration(config)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "face_info" not in name}
    plan, outcomes = assign(tensors, ours)
    assert set(plan) == set(ours)
    assert {line.status for line in outcomes if "blocks.39." not in line.key} == {"used"}
    llama = [math.prod(shape) for name, shape in ours.items() if "language_model" in name or "lm_head" in name]
    assert sum(llama) == parameters + 2 * 64 * width  # as Llama 2 has, and rows for the placeholders


def test_report_names_every_tensor(tmp_path):
    checkpoint = Checkpoint(tmp_path / "source", blocks=40)
    checkpoint.llama["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    checkpoint.qformer[f"{QFORMER}embeddings.position_ids"] = torch.arange(512)[None]
    checkpoint.eva |= {"norm.weight": torch.zeros(EVA), "head.weight": torch.zeros(10, EVA)}
    checkpoint.save(inside=())
    # The checkpoint's own Q-Former wins over InstructBLIP's.
    shard = checkpoint.folder / "pytorch_model-00003-of-00003.bin"
    own = {f"{QFORMER}embeddings.LayerNorm.bias": torch.full((BERT,), 7.0)}
    torch.save(torch.load(shard) | own, shard)
    report = convert_llama_vid(checkpoint.folder, tmp_path / "out")

    assert [line._asdict() | {"shape": list(line.shape)} for line in report] == json.loads(
        (tmp_path / "out" / "conversion.json").read_text()
    )
    lines = {(line.file, line.key): line for line in report}
    eva, trimmed = "eva_vit_g.pth", "instruct_blip_vicuna7b_trimmed.pth"
    assert len(lines) == len(report)
    sources = {line.key for line in report if line.file == eva}
    assert sources == set(checkpoint.eva)
    assert {lines[eva, key].status for key in checkpoint.eva if key.startswith("blocks.39.")} == {"dropped"}
    assert lines[eva, "blocks.38.norm1.bias"].note == "model.vision_tower.encoder.layers.38.layer_norm1.bias"
    assert lines[eva, "head.weight"].note == "follows the blocks that LLaMA-VID reads"
    for file, key in (
        (shard.name, "model.layers.0.self_attn.rotary_emb.inv_freq"),
        (trimmed, "Qformer.bert.embeddings.position_ids"),
        (trimmed, "Qformer.bert.embeddings.LayerNorm.bias"),
        (trimmed, "Qformer.cls.predictions.bias"),
        (trimmed, "llm_proj.weight"),
    ):
        assert lines[file, key].status == "dropped" and lines[file, key].note
    tensors = written(tmp_path / "out")
    assert (tensors["model.context_attention.qformer.embeddings.layernorm.bias"] == 7).all()
    assert {line.note for line in report if line.status in ("used", "new")} == set(tensors)
    assert {line.key for line in report if line.status == "new"} == {
        name for name in tensors if name.startswith("model.face_info_mining.")
    }


def test_stored_positions_of_another_size_are_interpolated(tmp_path):
    """EVA's file knows 224 pixels; a checkpoint of 336 interpolates it, in float32 and bicubic."""
    checkpoint = Checkpoint(tmp_path / "source", side=4).save()
    convert_llama_vid(checkpoint.folder, tmp_path / "out", image_size=6 * PATCH)
    found = written(tmp_path / "out")["model.vision_tower.embeddings.position_embedding"]
    stored = checkpoint.eva["pos_embed"].float()
    grid = stored[0, 1:].T.reshape(1, EVA, 4, 4)
    grid = F.interpolate(grid, (6, 6), mode="bicubic", align_corners=False).reshape(EVA, 36).T
    assert torch.equal(found, torch.cat([stored[0, :1], grid])[None].half())
    checkpoint.eva["pos_embed"], checkpoint.compress_type = found, None
    model, inputs = look(tmp_path / "out", side=6)
    with torch.no_grad():
        tokens = model(**inputs).image_hidden_states
    expected = plain_tokens(checkpoint, inputs["pixel_values"], QUESTIONS)
    torch.testing.assert_close(tokens[:, : expected.shape[1]], expected, atol=1e-9, rtol=0)


def test_processor_writes_as_llama_vid(tmp_path):
    checkpoint = Checkpoint(tmp_path / "source", compress_type="mean").save()
    convert_llama_vid(checkpoint.folder, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is she sad?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    system = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    system += "detailed, and polite answers to the user's questions."
    question = f"<s>{system} USER: <image>\nIs she sad? ASSISTANT:"
    assert processor.apply_chat_template(chat) == f"{question} yes</s>"
    assert processor.apply_chat_template(chat[:1], add_generation_prompt=True) == question
    assert processor.question_of(question) == "Is she sad?"
    assert processor.image_processor.do_pad and processor.image_processor.image_mean[0] == 0.48145466
    assert processor.image_seq_length == processor.frame_seq_length == 1 + 1 + 8
    long = processor.question_tensors(["start " * 300 + "end"])["qformer_input_ids"][0]
    end = processor.qformer_tokenizer("end")["input_ids"]
    assert len(long) == 256 and long[-len(end) + 1 :].tolist() == end[1:]  # cut at its beginning


def swap_bytes(checkpoint, name, content=b"no archive"):
    (checkpoint.folder / name).write_bytes(content)


def without(checkpoint, part, *names):
    tensors = getattr(checkpoint, part)
    for name in [name for name in tensors if any(wanted in name for wanted in names)]:
        del tensors[name]
    checkpoint.save()


class NoTensor:
    """What `weights_only` refuses to read."""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: (c.folder / "config.json").unlink(), "holds no config.json"),
        (lambda c: swap_bytes(c, "config.json", b'{"model_type": "llama"}'), "is a 'llama' and no LLaMA-VID"),
        (lambda c: swap_bytes(c, "config.json", b"{"), "config.json is not whole"),
        (lambda c: (c.settings.update(bert_type="raw_bert_layer:2"), c.save()), "bert_type 'raw_bert_layer:2': only"),
        (lambda c: (c.folder / "pytorch_model-00002-of-00003.bin").unlink(), "lacks pytorch_model-00002-of-00003.bin"),
        (lambda c: [file.unlink() for file in c.folder.glob("pytorch*")], "neither model.*safetensors nor pytorch_"),
        (lambda c: swap_bytes(c, "eva_vit_g.pth"), "eva_vit_g.pth is no file of tensors, or is not whole"),
        (lambda c: torch.save({"a": NoTensor()}, c.folder / "eva_vit_g.pth"), "eva_vit_g.pth is no file of tensors"),
        (lambda c: torch.save({"a": "b"}, c.folder / "eva_vit_g.pth"), "does not hold tensors by their names"),
        (
            lambda c: (c.folder / "eva_vit_g.pth").unlink(),
            r"lack model.vision_tower.*\(give eva_vit_g.pth with --vision",
        ),
        (
            lambda c: without(c, "qformer", ""),
            r"lack model.vlm_att_query, model.vlm_att_ln, model.vlm_att_encoder.bert \(give instruct_blip_vicuna7b",
        ),
        (
            lambda c: without(c, "llama", "vlm_att_key_projector"),
            r"lack model.vlm_att_key_projector \(copy the checkpoint again",
        ),
        (lambda c: without(c, "eva", "pos_embed"), "the weights lack model.vision_tower.vision_tower.pos_embed"),
        (
            lambda c: without(c, "eva", "blocks.1.attn.v_bias", "blocks.2.norm1.weight"),
            "made of: model.vision_tower.encoder.layers.1.self_attn.qkv.bias, .*layers.2.layer_norm1.weight",
        ),
        (
            lambda c: (c.settings.update(num_query=6), c.save()),
            r"model.vlm_att_query of pytorch_model.* is \[1, 5, 24\] and not \[1, 6, 24\]",
        ),
        (
            lambda c: (c.eva.update({"blocks.0.attn.q_bias": torch.zeros(3)}), c.save()),
            r"blocks.0.attn.q_bias of eva_vit_g.pth is \[3\] and not \[32\]",
        ),
        (
            lambda c: (c.llama.update({"model.vlm_att_bert_proj.weight": torch.zeros(3)}), c.save()),
            r"without a place: model.vlm_att_bert_proj.weight \(--drop-unknown",
        ),
        (lambda c: (c.settings.update(compress_type="grid:3"), c.save()), "does not divide the 4 x 4 patches"),
        (lambda c: (c.folder / "tokenizer.json").unlink(), "neither tokenizer.model nor tokenizer.json"),
        (lambda c: (c.folder / "bert-base-uncased" / "vocab.txt").unlink(), "with --qformer-tokenizer"),
        (
            lambda c: swap_bytes(c, "bert-base-uncased/vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na"),
            "has 7 words",
        ),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(tmp_path, spoil, words):
    checkpoint = Checkpoint(tmp_path / "source").save()
    spoil(checkpoint)
    with pytest.raises(ValueError, match=words):
        convert_llama_vid(checkpoint.folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_command(tmp_path):
    checkpoint = Checkpoint(tmp_path / "source").save(inside=())
    command = ["convert-llama-vid", str(checkpoint.folder), str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and (tmp_path / "out" / "config.json").exists()
    for words in ("used model.vision_tower", "new model.face_info_mining", "dropped InstructBLIP's way"):
        assert words in " ".join(done.output.split())
    (checkpoint.folder / "eva_vit_g.pth").unlink()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "give eva_vit_g.pth with --vision" in done.output


def test_unknown_tensors_can_be_dropped(tmp_path):
    checkpoint = Checkpoint(tmp_path / "source")
    checkpoint.llama["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3)  # the config knows two layers
    report = convert_llama_vid(checkpoint.save().folder, tmp_path / "out", drop_unknown=True)
    assert [line.key for line in report if line.status == "unknown"] == ["model.layers.2.mlp.up_proj.weight"]


def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "source").save()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.jpg").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="is not a checkpoint"):
        convert_llama_vid(checkpoint.folder, tmp_path / "out")
    monkeypatch.setattr(module, "save_file", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert_llama_vid(checkpoint.folder, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert (tmp_path / "out" / "mine.jpg").read_bytes() == b"precious"


MEASURE = """
import sys
from pathlib import Path
from pathlib import Path
from modeling_emo_llama import EmoLlamaForConditionalGeneration
from modeling_emo_llama import convert_llama_vid as module

def most():  # MiB of memory since the process began
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l).split()[1]) / 1024

module.MAX_SHARD_BYTES = 15 * 2**20
module.convert_llama_vid("small", "small out")
before = most()
module.convert_llama_vid("large", "large out")
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory in /proc")
def test_memory_holds_a_shard_and_not_the_checkpoint(tmp_path):
    Checkpoint(tmp_path / "small").save(shards=1)
    large = Checkpoint(tmp_path / "large", width=1024, layers=5, inner=4096).save(shards=1)
    size = (large.folder / "pytorch_model.bin").stat().st_size / 2**20
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert size > 150 and float(done.stdout) < 50, (size, done.stdout)
