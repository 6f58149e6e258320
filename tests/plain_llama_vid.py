"""A plain version of LLaMA-VID, and tiny random checkpoints in its original layout, for `test_convert_llama_vid.py`.

It knows LLaMA-VID's formulas and the names of its weights, and nothing of our model. Sizes are scaled down; only the
heads of attention are as many as in the original (16 in EVA-g, 12 in the Q-Former).

    checkpoint = Checkpoint(folder, side=4, compress_type="mean").save("bin", shards=3)
    plain_tokens(checkpoint, pixels, ["Is she sad?"])         # float64 of shape (1, 1 context + 1 content, width)
"""

import json
import math

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BertTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer

PATCH, EVA, EVA_INNER, BERT, BERT_INNER, LLAMA = 7, 32, 70, 24, 40, 48  # pixels of a patch, and widths
VISION, QFORMER = "model.vision_tower.vision_tower.", "model.vlm_att_encoder.bert."


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(q, k, v, heads, mask=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def eva(w, pixels):
    """EVA-g without a final norm: `(pictures, 3, side, side)` -> `(pictures, 1 + patches, width)`."""
    x = F.conv2d(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    blocks = {int(name.split(".")[1]) for name in w if name.startswith("blocks.")}
    for block in [f"blocks.{number}" for number in sorted(blocks)][:39]:
        y = norm(w, f"{block}.norm1", x, 1e-6)
        q, k, v = F.linear(y, w[f"{block}.attn.qkv.weight"]).chunk(3, -1)
        y = attention(q + w[f"{block}.attn.q_bias"], k, v + w[f"{block}.attn.v_bias"], heads=16)
        x = x + linear(w, f"{block}.attn.proj", y)
        y = norm(w, f"{block}.norm2", x, 1e-6)
        x = x + linear(w, f"{block}.mlp.fc2", F.gelu(linear(w, f"{block}.mlp.fc1", y)))
    return x


def bert_attention(w, name, x, seen, mask=None):
    q, k, v = (linear(w, f"{name}.self.{kind}", y) for kind, y in (("query", x), ("key", seen), ("value", seen)))
    y = linear(w, f"{name}.output.dense", attention(q, k, v, heads=12, mask=mask))
    return norm(w, f"{name}.output.LayerNorm", y + x, 1e-12)


def feed_forward(w, layer, branch, x):
    y = F.gelu(linear(w, f"{layer}.intermediate{branch}.dense", x))
    return norm(w, f"{layer}.output{branch}.LayerNorm", linear(w, f"{layer}.output{branch}.dense", y) + x, 1e-12)


def read_question(w, queries, ids, mask, image):
    """The Q-Former: `queries (pictures, n, width)` after they have read the question and seen the image."""
    n = queries.shape[1]
    words = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(w, "embeddings.LayerNorm", torch.cat([queries, words], 1), 1e-12)
    mask = torch.cat([mask.new_ones(queries.shape[:2]), mask], 1)
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in w:
        name = f"encoder.layer.{layer}"
        x = bert_attention(w, f"{name}.attention", x, x, mask)
        queries = x[:, :n]
        if layer % 2 == 0:
            queries = bert_attention(w, f"{name}.crossattention", queries, image)
        x = torch.cat([feed_forward(w, name, "_query", queries), feed_forward(w, name, "", x[:, n:])], 1)
        layer += 1
    return x[:, :n]


def llama_vid_tokens(w, pixels, ids, mask, compress_type):
    """`[context | content ...]` of each picture."""
    w, pixels = {name: tensor.double() for name, tensor in w.items()}, pixels.double()
    x = eva({name.removeprefix(VISION): tensor for name, tensor in w.items() if name.startswith(VISION)}, pixels)
    v, side = x[:, 1:], math.isqrt(x.shape[1] - 1)
    queries = w["model.vlm_att_query"].expand(len(x), -1, -1)
    bert = {name.removeprefix(QFORMER): tensor for name, tensor in w.items() if name.startswith(QFORMER)}
    q = read_question(bert, queries, ids, mask, norm(w, "model.vlm_att_ln", x, 1e-5))
    k = linear(w, "model.vlm_att_key_projector", v)
    a = (linear(w, "model.vlm_att_projector", q) @ k.transpose(1, 2) / math.sqrt(v.shape[-1])).softmax(-1)
    context = linear(w, "model.vlm_att_val_projector", (a @ v).mean(1, keepdim=True))
    content = v
    if compress_type == "mean":
        content = v.mean(1, keepdim=True)
    elif compress_type:
        stride = side // int(compress_type.removeprefix("grid:"))
        content = F.avg_pool2d(v.transpose(1, 2).unflatten(2, (side, side)), stride, stride).flatten(2).transpose(1, 2)
    content = linear(w, "model.mm_projector.2", F.gelu(linear(w, "model.mm_projector.0", content)))
    return torch.cat([context, content], 1)


def linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva_shapes(side, blocks):
    shapes = {"cls_token": (1, 1, EVA), "pos_embed": (1, 1 + side * side, EVA)}
    shapes |= {"patch_embed.proj.weight": (EVA, 3, PATCH, PATCH), "patch_embed.proj.bias": (EVA,)}
    for block in (f"blocks.{number}" for number in range(blocks)):
        shapes |= norm_shapes(f"{block}.norm1", EVA) | norm_shapes(f"{block}.norm2", EVA)
        shapes |= {f"{block}.attn.q_bias": (EVA,), f"{block}.attn.v_bias": (EVA,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * EVA, EVA)} | linear_shapes(f"{block}.attn.proj", EVA, EVA)
        shapes |= linear_shapes(f"{block}.mlp.fc1", EVA, EVA_INNER) | linear_shapes(f"{block}.mlp.fc2", EVA_INNER, EVA)
    return shapes


def bert_shapes(words, layers=2):
    shapes = {"embeddings.word_embeddings.weight": (words, BERT), "embeddings.position_embeddings.weight": (512, BERT)}
    shapes |= norm_shapes("embeddings.LayerNorm", BERT)
    for number in range(layers):
        layer = f"encoder.layer.{number}"
        for kind, width in (("attention", BERT), ("crossattention", EVA))[: 2 - number % 2]:
            for part, inputs in (("query", BERT), ("key", width), ("value", width)):
                shapes |= linear_shapes(f"{layer}.{kind}.self.{part}", inputs, BERT)
            shapes |= linear_shapes(f"{layer}.{kind}.output.dense", BERT, BERT)
            shapes |= norm_shapes(f"{layer}.{kind}.output.LayerNorm", BERT)
        for branch in ("", "_query"):
            shapes |= linear_shapes(f"{layer}.intermediate{branch}.dense", BERT, BERT_INNER)
            shapes |= linear_shapes(f"{layer}.output{branch}.dense", BERT_INNER, BERT)
            shapes |= norm_shapes(f"{layer}.output{branch}.LayerNorm", BERT)
    return shapes


def llama_shapes(vocabulary, width=LLAMA, layers=2, inner=96):
    shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in (f"model.layers.{number}" for number in range(layers)):
        shapes |= {f"{layer}.self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{layer}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    shapes |= linear_shapes("model.vlm_att_projector", BERT, EVA) | linear_shapes(
        "model.vlm_att_key_projector", EVA, EVA
    )
    shapes |= linear_shapes("model.vlm_att_val_projector", EVA, width)
    return (
        shapes
        | linear_shapes("model.mm_projector.0", EVA, width)
        | linear_shapes("model.mm_projector.2", width, width)
    )


def random_tensors(shapes, dtype=torch.float16, seed=0):
    """Of a size that makes every one matter: matrices keep what they are given at its size, norms vary around one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            tensors[name] = 0.3 * tensor + ("norm" in name.lower() or "_ln" in name) * name.endswith(".weight")
        elif tensor.dim() in (2, 4) and "embed" not in name.replace("patch_embed", ""):
            tensors[name] = tensor * 1.5 / tensor[0].numel() ** 0.5
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


class Checkpoint:
    """A folder as LLaMA-VID's, and the tensors in it under LLaMA-VID's names; `save` writes them."""

    def __init__(self, folder, *, side=4, blocks=39, compress_type=None, **llama):
        self.folder, self.compress_type = folder, compress_type
        folder.mkdir()
        letters = [*map(chr, range(ord("a"), ord("z") + 1)), *"?.,:{}"]
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
        tokenizer = LlamaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
        tokenizer.save_pretrained(folder)
        (folder / "bert-base-uncased").mkdir()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words))
        llama = {"width": LLAMA, "layers": 2, "inner": 96} | llama
        self.settings = {
            "model_type": "llava",
            "architectures": ["LlavaLlamaAttForCausalLM"],
            "vocab_size": len(pieces),
            "hidden_size": llama["width"],
            "intermediate_size": llama["inner"],
            "num_hidden_layers": llama["layers"],
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "torch_dtype": "float16",
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_feature": "patch",
            "bert_type": "qformer_pretrain",
            "num_query": 5,
            "compress_type": compress_type,
            "image_processor": f"./llamavid/processor/clip-patch14-{side * PATCH}",
        }
        self.llama = random_tensors(llama_shapes(len(pieces), **llama))
        self.eva = random_tensors(eva_shapes(side, blocks), seed=1)
        qformer = {QFORMER + name: shape for name, shape in bert_shapes(words=len(words) + 1).items()}
        qformer |= {"model.vlm_att_query": (1, 5, BERT)} | norm_shapes("model.vlm_att_ln", EVA)
        self.qformer = random_tensors(qformer, seed=2)

    @property
    def tensors(self):
        return self.llama | self.qformer | {VISION + name: tensor for name, tensor in self.eva.items()}

    def save(self, kind="bin", shards=3, inside=("qformer",)):
        """`inside`: which parts lie in the shards, the others in LAVIS's files."""
        (self.folder / "config.json").write_text(json.dumps(self.settings))
        tensors = self.llama | (self.qformer if "qformer" in inside else {})
        if "eva" in inside:
            tensors |= {VISION + name: tensor for name, tensor in self.eva.items()}
        else:
            torch.save(self.eva, self.folder / "eva_vit_g.pth")
        if "qformer" not in inside:
            lavis = {"vlm_att_query": "query_tokens", "vlm_att_ln": "ln_vision", "vlm_att_encoder": "Qformer"}
            lavis = {
                name: [name.replace(f"model.{ours}", theirs) for ours, theirs in lavis.items() if ours in name][0]
                for name in self.qformer
            }
            trimmed = {lavis[name]: tensor for name, tensor in self.qformer.items()}
            trimmed |= {"llm_proj.weight": torch.zeros(3, 3), "Qformer.cls.predictions.bias": torch.zeros(3)}
            torch.save({"model": trimmed}, self.folder / "instruct_blip_vicuna7b_trimmed.pth")
        stem, save = {"bin": ("pytorch_model", torch.save), "safetensors": ("model", save_file)}[kind]
        if shards == 1:
            save(tensors, self.folder / f"{stem}.{kind}")
            return self
        weight_map = {
            name: f"{stem}-{i * shards // len(tensors) + 1:05}-of-{shards:05}.{kind}" for i, name in enumerate(tensors)
        }
        for file in set(weight_map.values()):
            save({name: tensors[name].clone() for name in tensors if weight_map[name] == file}, self.folder / file)
        (self.folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return self


def plain_tokens(checkpoint, pixels, questions):
    words = BertTokenizer.from_pretrained(checkpoint.folder / "bert-base-uncased")(
        questions, padding=True, return_tensors="pt"
    )
    mask = words["attention_mask"]
    return llama_vid_tokens(checkpoint.tensors, pixels, words["input_ids"], mask, checkpoint.compress_type)


def plain_llama(checkpoint):
    """The language model that LLaMA-VID holds: transformers' Llama, whose names LLaMA-VID has."""
    settings = {name: checkpoint.settings[name] for name in LlamaConfig.__annotations__ if name in checkpoint.settings}
    llama = LlamaForCausalLM(LlamaConfig(**settings)).double().eval()
    llama.load_state_dict({name: checkpoint.llama[name].double() for name in llama.state_dict()})
    return llama
