"""The sizes of an EMO-LLaMA, and the one rule that says how many tokens a picture or a frame takes.

The inner sizes of the published EMO-LLaMA (Xing et al., arXiv 2408.11424; IJCV 2026) are not public: every size here
is a field with a default that is consistent with the published description, and with LLaMA-VID (Li et al., arXiv
2311.17043) where that is silent.

    config = EmoLlamaConfig(compress_type="grid:2", clip_compress_type="mean", face_config={"num_clue_tokens": 8})
    config.image_seq_length == 1 + 4 + 8 and config.frame_seq_length == 1 + 1 + 8
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Point indices of each face region. 68 points: iBUG 300-W (Sagonas et al. 2013), the order of dlib. 106 points: those
# of Face++ by the alphabet of their names (contour_chin, contour_left1, contour_left10, ...), which is the order of
# insightface's 2d106det (see the mark-up picture of its alignment/coordinate_reg).
LANDMARK_REGIONS = {
    68: {
        "jaw": range(0, 17),
        "brows": range(17, 27),
        "nose": range(27, 36),
        "eyes": range(36, 48),
        "mouth": range(48, 68),
    },
    106: {
        "jaw": range(0, 33),
        "brows": (*range(43, 52), *range(97, 106)),
        "nose": range(72, 87),
        "eyes": (*range(33, 43), *range(87, 97)),
        "mouth": range(52, 72),
    },
}
# The points of the eye on the left and on the right of the picture: they fix the face's scale and roll. Of the 106 the
# pupils (38 and 92) are left out, since they move with the gaze.
EYE_POINTS = {
    68: (range(36, 42), range(42, 48)),
    106: ((*range(33, 38), *range(39, 43)), (*range(87, 92), *range(93, 97))),
}


@strict
class EmoLlamaFaceConfig(PreTrainedConfig):
    r"""
    Sizes of the Face Info Mining module.

    Args:
        num_landmarks (`int`, defaults to 68): points a face, a key of `LANDMARK_REGIONS` (dlib 68, insightface 106).
        embedding_size (`int`, defaults to 128): length of the face-recognition embedding (dlib 128, insightface 512).
        max_faces (`int`, defaults to 1): faces kept a picture, the largest first.
        num_clue_tokens (`int`, defaults to 8): tokens that the clue aggregator makes of a picture, at least one for
            each of the seven pieces of evidence about the largest face (two global, five local).
        hidden_size (`int`, defaults to 256), num_layers (`int`, defaults to 2), num_attention_heads (`int`, defaults
            to 4), dropout (`float`, defaults to 0.1): the clue aggregator, a transformer decoder.
        evidence_dropout (`float`, defaults to 0.3): share of each prior's standardised numbers that a training step
            leaves out. There are many of them and few faces, and no single one is to be relied on.
    """

    model_type = "emo_llama_face"
    base_config_key = "face_config"

    num_landmarks: int = 68
    embedding_size: int = 128
    max_faces: int = 1
    num_clue_tokens: int = 8
    hidden_size: int = 256
    num_layers: int = 2
    num_attention_heads: int = 4
    dropout: float = 0.1
    evidence_dropout: float = 0.3

    def __post_init__(self, **kwargs):
        if self.num_landmarks not in LANDMARK_REGIONS:
            known = ", ".join(map(str, LANDMARK_REGIONS))
            raise ValueError(f"num_landmarks={self.num_landmarks} has no region map; known are {known}")
        evidence = 2 + len(LANDMARK_REGIONS[self.num_landmarks])
        if self.num_clue_tokens < evidence:
            raise ValueError(f"num_clue_tokens={self.num_clue_tokens} is less than the {evidence} pieces of evidence")
        super().__post_init__(**kwargs)


@strict
class EmoLlamaConfig(PreTrainedConfig):
    r"""
    Configuration of [`EmoLlamaModel`] and [`EmoLlamaForConditionalGeneration`].

    Args:
        vision_config, text_config: any vision tower and any causal language model that `AutoModel.from_config` knows.
        qformer_config: the question-guided Q-Former (InstructBLIP's, as in LLaMA-VID).
        face_config: the Face Info Mining module.
        image_token_id (`int`): the placeholder that the processor repeats `image_seq_length` times a still.
        video_token_id (`int`): the placeholder that it repeats `frame_seq_length` times a frame of a clip.
        num_query_tokens (`int`, defaults to 32): queries of the Q-Former.
        compress_type (`str`, defaults to `"grid:2"`): content tokens of a still: `"mean"` is one, `"grid:n"` is n * n,
            `"none"` one a patch.
        clip_compress_type (`str`, defaults to `"mean"`): content tokens of a frame of a clip.
        visual_token_rms (`float`, *optional*): root mean square that every token made of a picture starts with, held
            by a learned gain. Set it to that of the language model's embedding table when the projectors are new:
            else the first epoch goes into finding the scale. `None`: no normalisation, as in LLaMA-VID.
        vision_final_norm (`bool`, defaults to `True`): whether the vision tower ends with its `post_layernorm`.
            LLaMA-VID's EVA does not: its tokens are the last block's.
        use_context, use_content, use_clue (`bool`, default to `True`): which kinds of tokens a picture gets, and
        use_global_branch, use_local_branch (`bool`, default to `True`): which evidence the clue tokens are made of.
            For ablations: what is switched off is not built, takes no tokens, and its inputs are not read.
    """

    model_type = "emo_llama"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "qformer_config": SubConfigSpec(config_class=InstructBlipQFormerConfig),
        "face_config": SubConfigSpec(config_class=EmoLlamaFaceConfig),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    qformer_config: dict | PreTrainedConfig | None = None
    face_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 32000
    video_token_id: int = 32001
    num_query_tokens: int = 32
    compress_type: str = "grid:2"
    clip_compress_type: str = "mean"
    visual_token_rms: float | None = None
    vision_final_norm: bool = True
    use_context: bool = True
    use_content: bool = True
    use_clue: bool = True
    use_global_branch: bool = True
    use_local_branch: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if not (self.use_context or self.use_content or self.use_clue):
            raise ValueError("a picture has no token left: keep one of use_context, use_content and use_clue")
        if self.use_clue and not (self.use_global_branch or self.use_local_branch):
            raise ValueError("the clue tokens have no evidence left: keep one branch, or set use_clue=False")
        super().__post_init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Tokens of a still: one context token, the content tokens, the clue tokens."""
        return sum(self.token_counts(self.compress_type).values())

    @property
    def frame_seq_length(self) -> int:
        """Tokens of a frame of a clip."""
        return sum(self.token_counts(self.clip_compress_type).values())

    def token_counts(self, compress_type: str) -> dict[str, int]:
        """How many tokens of each kind a picture has, in their order."""
        content = self.content_grid(compress_type) ** 2
        counts = {"context": 1, "content": content, "clue": self.face_config.num_clue_tokens}
        return {kind: count for kind, count in counts.items() if getattr(self, f"use_{kind}")}

    def content_grid(self, compress_type: str) -> int:
        """Side of the grid of content tokens."""
        if compress_type == "none":
            return self.vision_config.image_size // self.vision_config.patch_size
        if compress_type == "mean":
            return 1
        kind, _, side = compress_type.partition(":")
        if kind != "grid" or not side.isdigit() or int(side) < 1:
            raise ValueError(f"compress_type={compress_type!r}: use 'mean' or 'grid:n' with n >= 1, or 'none'")
        return int(side)


__all__ = ["LANDMARK_REGIONS", "EYE_POINTS", "EmoLlamaConfig", "EmoLlamaFaceConfig"]
