"""The sizes of an EMO-LLaMA, and the one rule that says how many tokens a picture takes in the prompt.

The inner sizes of the published EMO-LLaMA (Xing et al., arXiv 2408.11424; IJCV 2026) are not public: every size here
is a field with a default that is consistent with the published description, and with LLaMA-VID (Li et al., arXiv
2311.17043) where that is silent.

    EmoLlamaConfig(compress_type="grid:2", face_config={"num_clue_tokens": 8}).image_seq_length == 1 + 4 + 8
"""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, InstructBlipQFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# Point indices of each face region. 68 points: iBUG 300-W (Sagonas et al. 2013), the order of dlib.
LANDMARK_REGIONS = {
    68: {
        "jaw": range(0, 17),
        "brows": range(17, 27),
        "nose": range(27, 36),
        "eyes": range(36, 48),
        "mouth": range(48, 68),
    }
}
# The points of the eye on the left and on the right of the picture: they fix the face's scale and roll.
EYE_POINTS = {68: (range(36, 42), range(42, 48))}


@strict
class EmoLlamaFaceConfig(PreTrainedConfig):
    r"""
    Sizes of the Face Info Mining module.

    Args:
        num_landmarks (`int`, defaults to 68): points a face; a key of `LANDMARK_REGIONS`.
        embedding_size (`int`, defaults to 128): length of the face-recognition embedding (dlib 128, insightface 512).
        max_faces (`int`, defaults to 1): faces kept a picture, the largest first.
        num_clue_tokens (`int`, defaults to 8): tokens that the clue aggregator makes of a picture, at least one for
            each of the seven pieces of evidence about the largest face (two global, five local).
        hidden_size (`int`, defaults to 256), num_layers (`int`, defaults to 2), num_attention_heads (`int`, defaults
            to 4), dropout (`float`, defaults to 0.1): the clue aggregator, a transformer decoder.
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
        image_token_id (`int`): the placeholder that the processor repeats `image_seq_length` times a picture.
        num_query_tokens (`int`, defaults to 32): queries of the Q-Former.
        compress_type (`str`, defaults to `"grid:2"`): content tokens of a still: `"mean"` is one, `"grid:n"` is n * n.
        visual_token_rms (`float`, *optional*): root mean square that every token made of a picture starts with, held
            by a learned gain. Set it to that of the language model's embedding table when the projectors are new:
            else the first epoch goes into finding the scale. `None`: no normalisation, as in LLaMA-VID.
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
    num_query_tokens: int = 32
    compress_type: str = "grid:2"
    visual_token_rms: float | None = None
    tie_word_embeddings: bool = False

    @property
    def content_grid(self) -> int:
        """Side of the grid of content tokens."""
        if self.compress_type == "mean":
            return 1
        kind, _, side = self.compress_type.partition(":")
        if kind != "grid" or not side.isdigit() or int(side) < 1:
            raise ValueError(f"compress_type={self.compress_type!r}: use 'mean' or 'grid:n' with n >= 1")
        return int(side)

    @property
    def image_seq_length(self) -> int:
        """Tokens a picture takes: one context token, the content tokens, the clue tokens."""
        return 1 + self.content_grid**2 + self.face_config.num_clue_tokens


__all__ = ["LANDMARK_REGIONS", "EYE_POINTS", "EmoLlamaConfig", "EmoLlamaFaceConfig"]
