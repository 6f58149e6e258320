"""Face Info Mining: what a pretrained face network knows of a face, made into clue tokens for the language model.

    global branch   identity embedding; visual features pooled inside the face box            2 tokens a face
    local branch    landmarks by region (jaw, brows, nose, eyes, mouth), each with the
                    visual features sampled at its points                                      5 tokens a face
    aggregator      K learned queries read those tokens and all patches by cross-attention     K clue tokens a picture

Xing et al. (arXiv 2408.11424) describe a module that mines global and local facial information from the priors of a
pretrained face network, and a Q-Former-style clue aggregator. Its sizes and its code are not public; what is chosen
here and not taken from there: the regions, the standardisation of the priors, and that the first queries start from
the evidence about the largest face, so that gradients reach both branches from the first step.

A picture without a face gets one learned "no face" token instead of the seven, so the number of clue tokens is fixed.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_emo_llama import EYE_POINTS, LANDMARK_REGIONS, EmoLlamaConfig


def upright_shape(landmarks: torch.Tensor) -> torch.Tensor:
    """Landmarks with the face's place, size and roll taken out: the eyes' midpoint is 0, their distance is 1.

    Args:
        landmarks (`torch.Tensor` of shape `(..., points, 2)`): any unit, both axes alike.
    """
    left, right = (landmarks[..., list(points), :].mean(-2) for points in EYE_POINTS[landmarks.shape[-2]])
    across = right - left
    distance = across.norm(dim=-1).clamp_min(1e-4)
    cos, sin = (across / distance.unsqueeze(-1)).unbind(-1)
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    middle = (left + right) / 2
    return (landmarks - middle.unsqueeze(-2)) @ turn / distance[..., None, None]


def sample_patches(patches: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Visual features at points, bilinear between patch centres.

    Args:
        patches (`torch.Tensor` of shape `(pictures, side, side, channels)`).
        points (`torch.Tensor` of shape `(pictures, points, 2)`): x, y in 0..1 of the picture.

    Returns:
        `torch.Tensor` of shape `(pictures, points, channels)`.
    """
    grid = (2 * points - 1).to(patches.dtype).unsqueeze(2)
    features = F.grid_sample(patches.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    return features.squeeze(-1).transpose(1, 2)


class FaceInfoMining(nn.Module):
    box_grid = 5  # the face region is pooled over 5 x 5 points inside the box

    def __init__(self, config: EmoLlamaConfig):
        super().__init__()
        face, width = config.face_config, config.face_config.hidden_size
        self.config = face
        regions = LANDMARK_REGIONS[face.num_landmarks] if config.use_local_branch else {}
        self.regions = {name: list(points) for name, points in regions.items()}

        # Mean and standard deviation of the priors over the training faces. Expressions move landmarks by a few
        # hundredths of the eye distance: without this a linear layer first learns the mean face, for a long time.
        self.register_buffer("shape_mean", torch.zeros(face.num_landmarks, 2))
        self.register_buffer("shape_std", torch.ones(face.num_landmarks, 2))
        self.register_buffer("embedding_mean", torch.zeros(face.embedding_size))
        self.register_buffer("embedding_std", torch.ones(face.embedding_size))
        # The same of what the vision tower shows there: a mouth's corner looks unlike a jaw, whatever it expresses.
        channels = config.vision_config.hidden_size
        self.register_buffer("region_mean", torch.zeros(len(self.regions), channels))
        self.register_buffer("region_std", torch.ones(len(self.regions), channels))

        self.visual_norm = nn.LayerNorm(config.vision_config.hidden_size)
        self.visual = nn.Linear(config.vision_config.hidden_size, width)
        self.embedding = nn.Linear(face.embedding_size, width) if config.use_global_branch else None
        self.shapes = nn.ModuleDict({name: nn.Linear(2 * len(p), width) for name, p in self.regions.items()})
        self.looks = nn.ModuleDict({name: nn.Linear(channels, width) for name in self.regions})
        self.evidence_dropout = nn.Dropout(face.evidence_dropout)
        self.evidence_kind = nn.Parameter(torch.zeros(2 * config.use_global_branch + len(self.regions), width))
        self.no_face = nn.Parameter(torch.zeros(1, 1, width))

        self.queries = nn.Parameter(torch.zeros(face.num_clue_tokens, width))
        layer = nn.TransformerDecoderLayer(
            width, face.num_attention_heads, 4 * width, face.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.aggregator = nn.TransformerDecoder(layer, face.num_layers, nn.LayerNorm(width))
        self.projector = nn.Linear(width, config.text_config.hidden_size)

    def set_prior_statistics(self, landmarks: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Standardise the priors by these faces from now on: `(faces, points, 2)` in any unit, `(faces, size)`."""
        shapes = upright_shape(landmarks)
        self.shape_mean.copy_(shapes.mean(0))
        self.shape_std.copy_(shapes.std(0).clamp_min(1e-3))
        self.embedding_mean.copy_(embeddings.mean(0))
        self.embedding_std.copy_(embeddings.std(0).clamp_min(1e-3))

    def set_region_statistics(self, features: torch.Tensor) -> None:
        """Standardise what the vision tower shows of each region by these: `(faces, regions, channels)`."""
        self.region_mean.copy_(features.mean(0))
        self.region_std.copy_(features.std(0).clamp_min(1e-3))

    def see_regions(self, patches: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        """The vision tower's features, averaged over the points of each region: `(faces, regions, channels)`.

        Args:
            patches (`torch.Tensor` of shape `(faces, side, side, channels)`).
            landmarks (`torch.Tensor` of shape `(faces, points, 2)`): x, y in 0..1 of the picture.
        """
        at_points = sample_patches(patches, landmarks)
        return torch.stack([at_points[:, points].mean(1) for points in self.regions.values()], 1)

    def mine(self, seen, patches, boxes, landmarks, embeddings) -> torch.Tensor:
        """The evidence about each face, one face a row: `(faces, 2 + regions, width)`.

        `seen` is the grid of the vision tower's own features, `patches` that of the projected ones.
        """
        evidence = []
        if self.embedding:  # the global branch
            ticks = (torch.arange(self.box_grid, device=boxes.device, dtype=boxes.dtype) + 0.5) / self.box_grid
            inside = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), -1).view(1, -1, 2)
            inside = boxes[:, None, :2] + inside * (boxes[:, None, 2:] - boxes[:, None, :2])
            region = sample_patches(patches, inside).mean(1)
            identity = (embeddings - self.embedding_mean) / self.embedding_std
            evidence = [self.embedding(self.evidence_dropout(identity.to(patches.dtype))), region]

        if self.regions:  # the local branch
            shape = ((upright_shape(landmarks) - self.shape_mean) / self.shape_std).clamp(-6, 6).to(patches.dtype)
            looks = (self.see_regions(seen, landmarks) - self.region_mean) / self.region_std
            shape, looks = self.evidence_dropout(shape), self.evidence_dropout(looks.to(patches.dtype))
            evidence += [
                self.shapes[name](shape[:, points].flatten(1)) + self.looks[name](look)
                for (name, points), look in zip(self.regions.items(), looks.unbind(1), strict=True)
            ]
        return torch.stack(evidence, 1) + self.evidence_kind

    def forward(
        self,
        patches: torch.Tensor,
        face_boxes: torch.Tensor,
        face_landmarks: torch.Tensor,
        face_embeddings: torch.Tensor,
        face_mask: torch.Tensor,
    ) -> torch.Tensor:
        """
        Args:
            patches (`torch.Tensor` of shape `(pictures, side * side, vision width)`): the vision tower's patch tokens.
            face_boxes (`torch.Tensor` of shape `(pictures, faces, 4)`): left, top, right, bottom in 0..1.
            face_landmarks (`torch.Tensor` of shape `(pictures, faces, points, 2)`): x, y in 0..1.
            face_embeddings (`torch.Tensor` of shape `(pictures, faces, size)`).
            face_mask (`torch.BoolTensor` of shape `(pictures, faces)`): which of the faces are there.

        Returns:
            `torch.Tensor` of shape `(pictures, num_clue_tokens, language width)`.
        """
        pictures, faces = face_mask.shape
        side = round(patches.shape[1] ** 0.5)
        seen = patches.view(pictures, side, side, -1).repeat_interleave(faces, 0)
        patches = self.visual(self.visual_norm(patches))  # (pictures, side * side, width)
        grid = patches.view(pictures, side, side, -1).repeat_interleave(faces, 0)
        evidence = self.mine(
            seen, grid, face_boxes.flatten(0, 1), face_landmarks.flatten(0, 1), face_embeddings.flatten(0, 1)
        )
        evidence = evidence.view(pictures, faces, *evidence.shape[1:])
        evidence = torch.where(face_mask[:, :, None, None], evidence, 0.0)

        kinds = evidence.shape[2]
        start = F.pad(evidence[:, 0], (0, 0, 0, self.config.num_clue_tokens - kinds))
        none = ~face_mask.any(1, keepdim=True)  # (pictures, 1)
        start = start + none.unsqueeze(-1) * self.no_face
        memory = torch.cat([self.no_face.expand(pictures, -1, -1), evidence.flatten(1, 2), patches], 1)
        hidden = torch.cat(
            [~none, ~face_mask.repeat_interleave(kinds, 1), none.new_zeros(pictures, patches.shape[1])], 1
        )
        clues = self.aggregator(self.queries + start, memory, memory_key_padding_mask=hidden)
        return self.projector(clues)
