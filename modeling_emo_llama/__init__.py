"""EMO-LLaMA for transformers. Importing this package registers the classes with the Auto classes.

    import modeling_emo_llama
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)          # no trust_remote_code needed

The same files, copied into every saved checkpoint, are its remote code: each imports only the standard library, torch,
transformers, numpy, Pillow and its neighbours.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .configuration_emo_llama import EmoLlamaConfig, EmoLlamaFaceConfig
from .image_processing_emo_llama import EmoLlamaImageProcessor
from .modeling_emo_llama import EmoLlamaForConditionalGeneration, EmoLlamaModel
from .processing_emo_llama import EmoLlamaProcessor

AutoConfig.register("emo_llama", EmoLlamaConfig)
AutoModel.register(EmoLlamaConfig, EmoLlamaModel)
AutoModelForImageTextToText.register(EmoLlamaConfig, EmoLlamaForConditionalGeneration)
AutoModelForMultimodalLM.register(EmoLlamaConfig, EmoLlamaForConditionalGeneration)
AutoProcessor.register(EmoLlamaConfig, EmoLlamaProcessor)
AutoImageProcessor.register(EmoLlamaConfig, image_processor_classes={"pil": EmoLlamaImageProcessor})

# A class saved after local registration must take its source files along, or the folder cannot be loaded elsewhere.
EmoLlamaConfig.register_for_auto_class()
EmoLlamaModel.register_for_auto_class("AutoModel")
EmoLlamaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
EmoLlamaImageProcessor.register_for_auto_class()
EmoLlamaProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "EmoLlamaConfig",
    "EmoLlamaFaceConfig",
    "EmoLlamaForConditionalGeneration",
    "EmoLlamaImageProcessor",
    "EmoLlamaModel",
    "EmoLlamaProcessor",
]
