"""EMO-LLaMA: LLaMA-VID's context and content tokens, Face Info Mining's clue tokens, any causal language model.

A picture becomes `[context | content ... | clue ...]`, put where the processor wrote `<image>` placeholders, or
`<video>` placeholders for the frames of clips:

    context   1 token: which patches matter for the question, by Q-Former queries that have read it
    content   n * n tokens: average-pooled patches; 1 of a frame
    clue      K tokens: the face network's priors (`face_info_mining.py`)

Formulas of context and content: LLaMA-VID, Li et al., arXiv 2311.17043 (section 3.2). Structure and names follow
transformers' Llava, so that TRL, PEFT and `generate` find what they look for.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationMixin,
    InstructBlipQFormerModel,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_emo_llama import EmoLlamaConfig
from .face_info_mining import FaceInfoMining

AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)  # EVA-g; transformers leaves it out

# What the language model's own forward may be given besides the arguments named in ours. Anything else is a mistake
# (a misspelt or renamed input would silently be ignored) and raises.
LANGUAGE_MODEL_INPUTS = {*TransformersKwargs.__annotations__, "cache_position", "return_dict", "use_cache"}


@dataclass
class EmoLlamaModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(stills, image_seq_length, hidden_size)`, *optional*):
        The tokens that stand for the stills in the language model's input.
    video_hidden_states (`torch.Tensor` of shape `(frames, frame_seq_length, hidden_size)`, *optional*):
        Those that stand for the frames of clips.
    """

    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None


@dataclass
class EmoLlamaCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.Tensor`, *optional*): next-token loss, when `labels` are given.
    logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`).
    image_hidden_states (`torch.Tensor` of shape `(stills, image_seq_length, hidden_size)`, *optional*).
    video_hidden_states (`torch.Tensor` of shape `(frames, frame_seq_length, hidden_size)`, *optional*).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None
    image_hidden_states: torch.Tensor | None = None
    video_hidden_states: torch.Tensor | None = None


class EmoLlamaPreTrainedModel(PreTrainedModel):
    config: EmoLlamaConfig
    config_class = EmoLlamaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FaceInfoMining", "ContextToken"]
    _skip_keys_device_placement = ["past_key_values"]
    # Small, new and trained from scratch: in bfloat16 their updates would be rounded away.
    _keep_in_fp32_modules_strict = ["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FaceInfoMining):
            for parameter in (module.queries, module.evidence_kind, module.no_face):
                nn.init.normal_(parameter, std=0.1)
            for statistic in ("shape", "embedding", "region"):
                nn.init.zeros_(getattr(module, f"{statistic}_mean"))
                nn.init.ones_(getattr(module, f"{statistic}_std"))
        elif isinstance(module, ContextToken):
            nn.init.normal_(module.query_tokens, std=0.02)
        elif isinstance(module, nn.RMSNorm) and self.config.visual_token_rms:
            nn.init.constant_(module.weight, self.config.visual_token_rms)


class ContextToken(nn.Module):
    """LLaMA-VID's context token: the Q-Former's queries, having read the question, weigh the patches."""

    def __init__(self, config: EmoLlamaConfig):
        super().__init__()
        vision_width, qformer = config.vision_config.hidden_size, config.qformer_config
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, qformer.hidden_size))
        self.vision_norm = nn.LayerNorm(vision_width)
        self.qformer = InstructBlipQFormerModel(qformer)
        self.query_projector = nn.Linear(qformer.hidden_size, vision_width)
        self.key_projector = nn.Linear(vision_width, vision_width)
        self.value_projector = nn.Linear(vision_width, config.text_config.hidden_size)

    def forward(self, tokens, num_prefix_tokens, qformer_input_ids, qformer_attention_mask) -> torch.Tensor:
        """`tokens (pictures, prefix + patches, vision width)`, question `(pictures, words)` -> `(pictures, 1, width)`.

        With V the patches, Q the queries that have read the question:
        `A = softmax(Wp Q (Wk V)^T / sqrt(width))`, context `= Wv mean(A V)`.
        """
        queries = self.query_tokens.expand(tokens.shape[0], -1, -1)
        seen = torch.ones(queries.shape[:2], dtype=qformer_attention_mask.dtype, device=tokens.device)
        queries = self.qformer(
            input_ids=qformer_input_ids,
            attention_mask=torch.cat([seen, qformer_attention_mask], 1),
            query_embeds=queries,
            encoder_hidden_states=self.vision_norm(tokens),
        ).last_hidden_state[:, : queries.shape[1]]
        patches = tokens[:, num_prefix_tokens:]
        # One head of attention whose values are the patches themselves; Wv comes after the mean.
        attended = F.scaled_dot_product_attention(self.query_projector(queries), self.key_projector(patches), patches)
        return self.value_projector(attended.mean(1, keepdim=True))


class EmoLlamaMultiModalProjector(nn.Module):
    """Two-layer GELU projector of the content tokens (`mlp2x_gelu` in LLaVA and LLaMA-VID)."""

    def __init__(self, config: EmoLlamaConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


class VisualTokenGain(nn.Module):
    """Joins the tokens of a picture; with `visual_token_rms` set, each kind has a learned gain that starts there."""

    def __init__(self, config: EmoLlamaConfig):
        super().__init__()
        width = config.text_config.hidden_size
        norm = (lambda: nn.RMSNorm(width, eps=1e-6)) if config.visual_token_rms else nn.Identity
        self.gains = nn.ModuleDict({kind: norm() for kind in config.token_counts(config.compress_type)})

    def forward(self, *kinds: torch.Tensor) -> torch.Tensor:
        return torch.cat([gain(tokens) for gain, tokens in zip(self.gains.values(), kinds, strict=True)], 1)


class EmoLlamaModel(EmoLlamaPreTrainedModel):
    def __init__(self, config: EmoLlamaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        if not config.vision_final_norm:
            self.vision_tower.set_submodule("post_layernorm", nn.Identity(), strict=True)
        self.context_attention = ContextToken(config) if config.use_context else None
        self.multi_modal_projector = EmoLlamaMultiModalProjector(config) if config.use_content else None
        self.face_info_mining = FaceInfoMining(config) if config.use_clue else None
        self.token_gain = VisualTokenGain(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor,
        qformer_input_ids: torch.LongTensor,
        qformer_attention_mask: torch.Tensor,
        face_boxes: torch.FloatTensor,
        face_landmarks: torch.FloatTensor,
        face_embeddings: torch.FloatTensor,
        face_mask: torch.BoolTensor,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPooling:
        """
        The tokens of each still, as `pooler_output` of shape `(stills, image_seq_length, hidden_size)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(stills, 3, height, width)`).
            qformer_input_ids, qformer_attention_mask (`(pictures, words)`): the user's question, once a picture. As in
                all that follows, a row is a picture: the stills come first, the frames of clips after them.
            face_boxes, face_landmarks, face_embeddings, face_mask: see [`FaceInfoMining.forward`].
        """
        rows = qformer_input_ids, qformer_attention_mask, face_boxes, face_landmarks, face_embeddings, face_mask
        stills = slice(len(pixel_values))
        return self._look(pixel_values, [row[stills] for row in rows], self.config.compress_type, **kwargs)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.FloatTensor,
        qformer_input_ids: torch.LongTensor,
        qformer_attention_mask: torch.Tensor,
        face_boxes: torch.FloatTensor,
        face_landmarks: torch.FloatTensor,
        face_embeddings: torch.FloatTensor,
        face_mask: torch.BoolTensor,
        **kwargs,
    ) -> tuple | BaseModelOutputWithPooling:
        """
        The tokens of each frame, as `pooler_output` of shape `(frames, frame_seq_length, hidden_size)`.

        Args:
            pixel_values_videos (`torch.FloatTensor` of shape `(frames, 3, height, width)`): those of all clips.
            qformer_input_ids, ...: as in [`~EmoLlamaModel.get_image_features`]; the last rows are the frames'.
        """
        rows = qformer_input_ids, qformer_attention_mask, face_boxes, face_landmarks, face_embeddings, face_mask
        frames = slice(-len(pixel_values_videos), None)
        return self._look(pixel_values_videos, [row[frames] for row in rows], self.config.clip_compress_type, **kwargs)

    def _look(self, pixel_values, rows: list, compress_type: str, **kwargs) -> BaseModelOutputWithPooling:
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        outputs.pooler_output = self.token_gain(*self.mine_picture(outputs.last_hidden_state, *rows, compress_type))
        return outputs

    def mine_picture(
        self,
        vision_tokens: torch.FloatTensor,
        qformer_input_ids: torch.LongTensor,
        qformer_attention_mask: torch.Tensor,
        face_boxes: torch.FloatTensor,
        face_landmarks: torch.FloatTensor,
        face_embeddings: torch.FloatTensor,
        face_mask: torch.BoolTensor,
        compress_type: str | None = None,
    ) -> list[torch.Tensor]:
        """Context, content and clues of what the vision tower saw, `(pictures, prefix + side * side, width)`.

        `compress_type` is that of stills by default.
        """
        vision = self.config.vision_config
        readers = self.context_attention or self.multi_modal_projector or self.face_info_mining
        tokens = vision_tokens.to(next(readers.parameters()).dtype)
        side = vision.image_size // vision.patch_size
        num_prefix_tokens = tokens.shape[1] - side * side  # CLS and registers, if the tower has any
        patches = tokens[:, num_prefix_tokens:]

        kinds = []
        if self.context_attention:
            kinds.append(self.context_attention(tokens, num_prefix_tokens, qformer_input_ids, qformer_attention_mask))
        if self.multi_modal_projector:
            grid = patches.transpose(1, 2).unflatten(2, (side, side))
            grid = F.adaptive_avg_pool2d(grid, self.config.content_grid(compress_type or self.config.compress_type))
            kinds.append(self.multi_modal_projector(grid.flatten(2).transpose(1, 2)))
        if self.face_info_mining:
            kinds.append(self.face_info_mining(patches, face_boxes, face_landmarks, face_embeddings, face_mask))
        return kinds

    def get_placeholder_mask(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        features: torch.Tensor,
        modality: str = "image",
    ) -> torch.BoolTensor:
        """Where the tokens of the stills, or of the frames ("video"), go: `(batch, sequence, 1)`.

        Raises:
            ValueError: places and tokens differ in number.
        """
        placeholder = getattr(self.config, f"{modality}_token_id")
        if input_ids is None:
            embedding = self.get_input_embeddings()(torch.tensor(placeholder, device=inputs_embeds.device))
            mask = (inputs_embeds == embedding).all(-1)
        else:
            mask = input_ids == placeholder
        places, tokens = int(mask.sum()), features.shape[0] * features.shape[1]
        if places != tokens:
            raise ValueError(
                f"{modality.title()} features and {modality} tokens do not match, tokens: {places}, features: {tokens}"
            )
        return mask.unsqueeze(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        face_boxes: torch.FloatTensor | None = None,
        face_landmarks: torch.FloatTensor | None = None,
        face_embeddings: torch.FloatTensor | None = None,
        face_mask: torch.BoolTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoLlamaModelOutputWithPast:
        unknown = set(kwargs) - LANGUAGE_MODEL_INPUTS
        if unknown:
            raise TypeError(f"EmoLlama got inputs that it does not know: {', '.join(sorted(unknown))}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        looks = dict(mm_encoder_outputs or {})  # generate() looks at the pictures before it begins
        rows = {
            "qformer_input_ids": qformer_input_ids,
            "qformer_attention_mask": qformer_attention_mask,
            "face_boxes": face_boxes,
            "face_landmarks": face_landmarks,
            "face_embeddings": face_embeddings,
            "face_mask": face_mask,
        }
        pictures = sum(len(pixels) for pixels in (pixel_values, pixel_values_videos) if pixels is not None)
        for name, row in rows.items():
            if pictures and (row is None or len(row) != pictures):
                raise ValueError(f"{name} has {0 if row is None else len(row)} rows for {pictures} pictures")
        if pixel_values is not None:
            looks["image"] = self.get_image_features(pixel_values, **rows, return_dict=True)
        if pixel_values_videos is not None:
            looks["video"] = self.get_video_features(pixel_values_videos, **rows, return_dict=True)
        features = {name: look.pooler_output.to(inputs_embeds) for name, look in looks.items()}
        for modality, tokens in features.items():
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, tokens, modality)
            inputs_embeds = inputs_embeds.masked_scatter(mask, tokens)

        if past_key_values is None and is_packed(position_ids, attention_mask):
            kwargs["use_cache"] = False  # with a cache, transformers would let the samples see each other
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return EmoLlamaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features.get("image"),
            video_hidden_states=features.get("video"),
        )


def is_packed(position_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None) -> bool:
    """Whether a row holds several samples: positions that begin anew among its tokens, `(batch, sequence)`.

    Raises:
        ValueError: it does, and there is an `attention_mask` for each token, which joins what should be apart.
    """
    if position_ids is None or (attention_mask is not None and attention_mask.shape != position_ids.shape):
        return False  # a mask of four dimensions says itself who sees whom
    begins = position_ids.diff(dim=-1) != 1
    if attention_mask is None:
        return bool(begins.any())
    if (begins & attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()).any():
        raise ValueError("position_ids begin anew within a row, so it holds several samples: leave attention_mask out")
    return False


class EmoLlamaForConditionalGeneration(EmoLlamaPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: EmoLlamaConfig):
        super().__init__(config)
        self.model = EmoLlamaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, *args, **kwargs) -> tuple | BaseModelOutputWithPooling:
        return self.model.get_image_features(*args, **kwargs)

    def get_video_features(self, *args, **kwargs) -> tuple | BaseModelOutputWithPooling:
        return self.model.get_video_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        qformer_input_ids: torch.LongTensor | None = None,
        qformer_attention_mask: torch.Tensor | None = None,
        face_boxes: torch.FloatTensor | None = None,
        face_landmarks: torch.FloatTensor | None = None,
        face_embeddings: torch.FloatTensor | None = None,
        face_mask: torch.BoolTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | EmoLlamaCausalLMOutputWithPast:
        r"""
        The tensors come from [`EmoLlamaProcessor`]; see [`EmoLlamaModel.get_image_features`] for the visual ones.
        `shift_labels` are labels that stand where they are predicted, for sequences that are split over devices.

        ```python
        >>> content = [{"type": "image", "path": "face.jpg"}, {"type": "text", "text": "How does she feel?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}],
        ...     add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        ... )
        >>> processor.decode(model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1]:])
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            face_boxes=face_boxes,
            face_landmarks=face_landmarks,
            face_embeddings=face_embeddings,
            face_mask=face_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                shift_labels=shift_labels,
                **kwargs,
            )
        return EmoLlamaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            video_hidden_states=outputs.video_hidden_states,
        )


__all__ = ["EmoLlamaForConditionalGeneration", "EmoLlamaModel", "EmoLlamaPreTrainedModel"]
