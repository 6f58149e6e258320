"""EMO-LLaMA: LLaMA-VID's context and content tokens, Face Info Mining's clue tokens, any causal language model.

A picture becomes `[context | content ... | clue ...]`, put where the processor wrote `<image>` placeholders:

    context   1 token: which patches matter for the question, by Q-Former queries that have read it
    content   n * n tokens: average-pooled patches
    clue      K tokens: the face network's priors (`face_info_mining.py`)

Formulas of context and content: LLaMA-VID, Li et al., arXiv 2311.17043 (section 3.2). Structure and names follow
transformers' Llava, so that TRL, PEFT and `generate` find what they look for.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, InstructBlipQFormerModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from .configuration_emo_llama import EmoLlamaConfig
from .face_info_mining import FaceInfoMining

# What the language model's own forward may be given besides the arguments named in ours. Anything else is a mistake
# (a misspelt or renamed input would silently be ignored) and raises.
LANGUAGE_MODEL_INPUTS = {
    "cache_position",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "use_cache",
}


@dataclass
class EmoLlamaModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    image_hidden_states (`torch.Tensor` of shape `(pictures, image_seq_length, hidden_size)`, *optional*):
        The tokens that stand for the pictures in the language model's input.
    """

    image_hidden_states: torch.Tensor | None = None


@dataclass
class EmoLlamaCausalLMOutputWithPast(ModelOutput):
    r"""
    loss (`torch.Tensor`, *optional*): next-token loss, when `labels` are given.
    logits (`torch.Tensor` of shape `(batch, sequence, vocabulary)`).
    image_hidden_states (`torch.Tensor` of shape `(pictures, image_seq_length, hidden_size)`, *optional*).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor] | None = None
    attentions: tuple[torch.Tensor] | None = None
    image_hidden_states: torch.Tensor | None = None


class EmoLlamaPreTrainedModel(PreTrainedModel):
    config: EmoLlamaConfig
    config_class = EmoLlamaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FaceInfoMining", "ContextAttention"]
    _skip_keys_device_placement = ["past_key_values"]
    # Small, new and trained from scratch: in bfloat16 their updates would be rounded away.
    _keep_in_fp32_modules_strict = ["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"]
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, FaceInfoMining):
            for parameter in (module.queries, module.evidence_kind, module.no_face):
                nn.init.normal_(parameter, std=0.1)
            for statistic in ("shape", "embedding"):
                nn.init.zeros_(getattr(module, f"{statistic}_mean"))
                nn.init.ones_(getattr(module, f"{statistic}_std"))
        elif isinstance(module, ContextAttention):
            nn.init.normal_(module.query_tokens, std=0.02)
        elif isinstance(module, nn.RMSNorm) and self.config.visual_token_rms:
            nn.init.constant_(module.weight, self.config.visual_token_rms)


class ContextAttention(nn.Module):
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
        kinds = ("context", "content", "clue")
        norm = (lambda: nn.RMSNorm(width, eps=1e-6)) if config.visual_token_rms else nn.Identity
        self.gains = nn.ModuleDict({kind: norm() for kind in kinds})

    def forward(self, context: torch.Tensor, content: torch.Tensor, clue: torch.Tensor) -> torch.Tensor:
        parts = zip(self.gains.values(), (context, content, clue), strict=True)
        return torch.cat([gain(part) for gain, part in parts], 1)


class EmoLlamaModel(EmoLlamaPreTrainedModel):
    def __init__(self, config: EmoLlamaConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.context_attention = ContextAttention(config)
        self.multi_modal_projector = EmoLlamaMultiModalProjector(config)
        self.face_info_mining = FaceInfoMining(config)
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
        The tokens of each picture, as `pooler_output` of shape `(pictures, image_seq_length, hidden_size)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(pictures, 3, height, width)`).
            qformer_input_ids, qformer_attention_mask (`(pictures, words)`): the user's question, once a picture.
            face_boxes, face_landmarks, face_embeddings, face_mask: see [`FaceInfoMining.forward`].
        """
        outputs = self.vision_tower(pixel_values.to(self.vision_tower.dtype), return_dict=True, **kwargs)
        outputs.pooler_output = self.token_gain(
            *self.mine_picture(
                outputs.last_hidden_state,
                qformer_input_ids,
                qformer_attention_mask,
                face_boxes,
                face_landmarks,
                face_embeddings,
                face_mask,
            )
        )
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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Context, content and clues of what the vision tower saw, `(pictures, prefix + side * side, width)`."""
        vision = self.config.vision_config
        tokens = vision_tokens.to(self.context_attention.query_tokens.dtype)
        side = vision.image_size // vision.patch_size
        num_prefix_tokens = tokens.shape[1] - side * side  # CLS and registers, if the tower has any
        patches = tokens[:, num_prefix_tokens:]

        context = self.context_attention(tokens, num_prefix_tokens, qformer_input_ids, qformer_attention_mask)
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        grid = F.adaptive_avg_pool2d(grid, self.config.content_grid)
        content = self.multi_modal_projector(grid.flatten(2).transpose(1, 2))
        clues = self.face_info_mining(patches, face_boxes, face_landmarks, face_embeddings, face_mask)
        return context, content, clues

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.BoolTensor:
        """Where the picture tokens go, `(batch, sequence, 1)`; raises when places and tokens differ in number."""
        if input_ids is None:
            placeholder = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        places, tokens = int(mask.sum()), image_features.shape[0] * image_features.shape[1]
        if places != tokens:
            raise ValueError(f"Image features and image tokens do not match, tokens: {places}, features: {tokens}")
        return mask.unsqueeze(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
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
        **kwargs,
    ) -> tuple | EmoLlamaModelOutputWithPast:
        unknown = set(kwargs) - LANGUAGE_MODEL_INPUTS
        if unknown:
            raise TypeError(f"EmoLlama got inputs that it does not know: {', '.join(sorted(unknown))}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        pictures = (mm_encoder_outputs or {}).get("image")  # generate() looks at the pictures before it begins
        if pixel_values is not None:
            pictures = self.get_image_features(
                pixel_values,
                qformer_input_ids,
                qformer_attention_mask,
                face_boxes,
                face_landmarks,
                face_embeddings,
                face_mask,
                return_dict=True,
            )
        image_features = None
        if pictures is not None:
            image_features = pictures.pooler_output.to(inputs_embeds)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, image_features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)

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
            image_hidden_states=image_features,
        )


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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
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
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> tuple | EmoLlamaCausalLMOutputWithPast:
        r"""
        The tensors come from [`EmoLlamaProcessor`]; see [`EmoLlamaModel.get_image_features`] for the visual ones.

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
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return EmoLlamaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["EmoLlamaForConditionalGeneration", "EmoLlamaModel", "EmoLlamaPreTrainedModel"]
