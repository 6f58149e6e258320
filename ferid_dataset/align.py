"""The align stage: picture tokens learn to look, to the language model, like the words of their label.

LLaVA and LLaMA-VID align vision and language by training the projectors against a frozen language model. That costs a
pass through the language model for every step. Here the same modules are trained against its embedding table alone:
the mean token of each kind (context, content, clue) is compared with the mean embedding of each label's words, and the
right label should be nearest (a contrastive loss as in CLIP, Radford et al. 2021, with the labels as the texts). The
vision tower is frozen, so its output is computed once a picture and once for its mirror image, and an epoch of both
takes seconds. A clip is seen here by the frame in its middle, as a still.
"""

from collections import Counter

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import Trainer, TrainingArguments

from ferid_dataset.collate import FeridCollator

ALIGNED_MODULES = ("context_attention", "multi_modal_projector", "face_info_mining")
MOST_PICTURES = 4096  # kept in memory as the vision tower saw them, twice: 1.6 GB for a ViT-S/14


class PictureAlignment(nn.Module):
    """
    Args:
        backbone ([`EmoLlamaModel`]): its picture modules are what is trained.
        words (`torch.Tensor` of shape `(labels, hidden_size)`): unit vectors, one a label.
        class_weights (`torch.Tensor` of shape `(labels,)`).
    """

    temperature, label_smoothing = 0.1, 0.1

    def __init__(self, backbone: nn.Module, words: torch.Tensor, class_weights: torch.Tensor):
        super().__init__()
        self.backbone = backbone
        self.register_buffer("words", words)
        self.register_buffer("class_weights", class_weights)

    def forward(self, labels: torch.LongTensor, picture: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        loss = 0.0
        for tokens in self.backbone.mine_picture(**picture):  # (pictures, tokens, hidden_size)
            similarity = F.normalize(tokens.float().mean(1), dim=-1) @ self.words.T / self.temperature
            loss = loss + F.cross_entropy(
                similarity, labels, weight=self.class_weights, label_smoothing=self.label_smoothing
            )
        return {"loss": loss}


def label_words(model, tokenizer, labels: list[str]) -> torch.Tensor:
    """Unit vectors `(labels, hidden_size)`: the mean embedding of a label's tokens, less the mean of all tokens."""
    table = model.get_input_embeddings().weight.detach().float()
    words = [table[tokenizer(label, add_special_tokens=False)["input_ids"]].mean(0) for label in labels]
    return F.normalize(torch.stack(words) - table.mean(0), dim=-1)


@torch.no_grad()
def look_at_pictures(model, processor, dataset, labels: list[str], batch_size: int = 32) -> list[dict]:
    """What `mine_picture` needs of every row's picture, and the label's index: one dict of CPU tensors a row.

    All pictures, then all of them mirrored. A still of the ViT-S/14 takes 200 KB in bfloat16.
    """
    collator, tower, mining = FeridCollator(processor), model.model.vision_tower, model.model.face_info_mining
    order = mirror_order(mining.shape_mean) if mining else None
    looked, mirrored = [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="look at pictures"):
        rows = [still(dataset[i]) for i in range(start, min(start + batch_size, len(dataset)))]
        batch = collator(rows)
        pixels = batch["pixel_values"].to(model.device, tower.dtype)
        columns = {k: v for k, v in batch.items() if k.startswith(("qformer_", "face_"))}
        columns["labels"] = torch.tensor([labels.index(row["label"]) for row in rows])
        columns["vision_tokens"] = tower(pixels).last_hidden_state.cpu()
        looked += [{name: column[i].clone() for name, column in columns.items()} for i in range(len(rows))]
        columns["vision_tokens"] = tower(pixels.flip(-1)).last_hidden_state.cpu()
        if mining:
            columns |= mirror_faces(columns["face_boxes"], columns["face_landmarks"], order)
        mirrored += [{name: column[i].clone() for name, column in columns.items()} for i in range(len(rows))]
    return looked + mirrored


def mirror_order(shape: torch.Tensor) -> torch.LongTensor:
    """Which point each point becomes in a mirror, by the mean face `(points, 2)`: the point nearest to its image.

    Found, so that no table is needed for each set of landmarks; a face is symmetric enough for it.
    """
    image = shape * torch.tensor([-1.0, 1.0])
    return torch.from_numpy(linear_sum_assignment(torch.cdist(shape, image).double().numpy())[1])


def mirror_faces(boxes: torch.Tensor, landmarks: torch.Tensor, order: torch.LongTensor) -> dict[str, torch.Tensor]:
    """The faces of mirrored pictures: `boxes (..., 4)`, `landmarks (..., points, 2)`, both in 0..1.

    The embedding is left as it is: it says who that is, and a mirror does not change that.
    """
    left, top, right, bottom = boxes.unbind(-1)
    points = torch.stack([1 - landmarks[..., 0], landmarks[..., 1]], -1)[..., order, :]
    return {"face_boxes": torch.stack([1 - right, top, 1 - left, bottom], -1), "face_landmarks": points}


def set_region_statistics(model, looked: list[dict], batch_size: int = 256) -> None:
    """Standardise what Face Info Mining sees of each region by the training faces, if it has no statistics yet."""
    mining = model.model.face_info_mining
    if not mining or not mining.regions or mining.region_mean.any():
        return
    seen, vision = [], model.config.vision_config
    side = vision.image_size // vision.patch_size
    rows = [row for row in looked if row["face_mask"][:1].any()]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        patches = torch.stack([row["vision_tokens"][-side * side :] for row in batch]).float()
        landmarks = torch.stack([row["face_landmarks"][0] for row in batch])
        seen.append(mining.see_regions(patches.unflatten(1, (side, side)), landmarks))
    if len(rows) > 1:
        mining.set_region_statistics(torch.cat(seen))


def still(row: dict) -> dict:
    """A clip's row as that of the frame in its middle, which is nearest to the height of the expression."""
    middle = len(row["images"]) // 2
    faces = row.get("faces") and row["faces"][middle : middle + 1]
    return row | {"media_type": "image", "images": row["images"][middle : middle + 1], "faces": faces}


def join(rows: list[dict[str, torch.Tensor]]) -> dict:
    """A batch of what `look_at_pictures` returned; questions of different lengths are padded with masked zeros."""
    names = rows[0].keys() - {"labels"}
    picture = {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in names}
    return {"labels": torch.stack([row["labels"] for row in rows]), "picture": picture}


def align(model, processor, dataset, args: TrainingArguments, *, epochs: float, learning_rate: float = 1e-3) -> None:
    """Train the `ALIGNED_MODULES` of `model` in place.

    Args:
        model ([`EmoLlamaForConditionalGeneration`]).
        dataset: FERID rows; of more than `MOST_PICTURES` an even sample is taken.
        args ([`TrainingArguments`]): of the run that this stage opens; device, precision and seed are taken from it.
    """
    if len(dataset) > MOST_PICTURES:
        dataset = dataset.shuffle(seed=args.seed).select(range(MOST_PICTURES))
    counts = Counter(dataset["label"])
    labels = sorted(counts)
    # A square root between no weights and full balance: rare labels are heard, their few pictures not worn out.
    rarity = torch.tensor([len(dataset) / len(labels) / counts[label] for label in labels]).sqrt()
    looked = look_at_pictures(model, processor, dataset, labels)
    set_region_statistics(model, looked)
    alignment = PictureAlignment(model.model, label_words(model, processor.tokenizer, labels), rarity)
    model.requires_grad_(False)
    for name, module in model.model.named_children():
        module.requires_grad_(name in ALIGNED_MODULES)
    Trainer(
        model=alignment,
        args=TrainingArguments(
            output_dir=args.output_dir,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=32,
            weight_decay=0.1,
            lr_scheduler_type="cosine",
            warmup_steps=0.2,
            bf16=args.bf16,
            use_cpu=args.use_cpu,
            seed=args.seed,
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=looked,
        data_collator=join,
    ).train()
    model.requires_grad_(True)
