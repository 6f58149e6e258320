"""transformers' shared model tests on EmoLlamaModel and EmoLlamaForConditionalGeneration, at toy size."""

import unittest
from unittest import mock

import pytest
import torch
from hf_tests.test_configuration_common import ConfigTester
from hf_tests.test_modeling_common import ModelTesterMixin
from reasons import Reasons
from transformers import Dinov2Config, InstructBlipQFormerConfig, LlamaConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from modeling_emo_llama import EmoLlamaConfig, EmoLlamaForConditionalGeneration, EmoLlamaModel

pytestmark = pytest.mark.hf_common

PICTURE_INPUTS = [
    *("pixel_values", "qformer_input_ids", "qformer_attention_mask"),
    *("face_boxes", "face_landmarks", "face_embeddings", "face_mask"),
]


class EmoLlamaModelTester:
    """A toy configuration, and inputs of it: one picture with one face a row."""

    is_training = True
    batch_size = 7  # as many as the comparison of eager and sdpa wants
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    vocab_size = 99
    image_size, patch_size = 16, 8
    image_token_id = 10
    num_words = 7

    def __init__(self, parent):
        self.parent = parent
        config = self.get_config()
        self.text_config, self.vision_config = config.text_config, config.vision_config
        self.seq_length = self.encoder_seq_length = self.key_length = config.image_seq_length + self.num_words

    def get_config(self) -> EmoLlamaConfig:
        sizes = {"num_hidden_layers": self.num_hidden_layers, "num_attention_heads": self.num_attention_heads}
        sizes |= {"hidden_size": self.hidden_size, "intermediate_size": 2 * self.hidden_size}
        text = LlamaConfig(vocab_size=self.vocab_size, num_key_value_heads=2, pad_token_id=0, **sizes)
        vision = Dinov2Config(image_size=self.image_size, patch_size=self.patch_size, use_mask_token=False, **sizes)
        qformer = InstructBlipQFormerConfig(
            vocab_size=self.vocab_size, encoder_hidden_size=self.hidden_size, cross_attention_frequency=1, **sizes
        )
        face = {"hidden_size": 32, "num_layers": 2, "embedding_size": 16}
        return EmoLlamaConfig(
            vision_config=vision,
            text_config=text,
            qformer_config=qformer,
            face_config=face,
            image_token_id=self.image_token_id,
            num_query_tokens=4,
            visual_token_rms=0.02,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[EmoLlamaConfig, dict]:
        config = self.get_config()
        rows = self.batch_size
        input_ids = torch.randint(self.image_token_id + 1, self.vocab_size - 20, (rows, self.seq_length))
        input_ids[:, 1 : 1 + config.image_seq_length] = self.image_token_id
        landmarks = torch.rand(rows, 1, config.face_config.num_landmarks, 2)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.randn(rows, 3, self.image_size, self.image_size),
            "qformer_input_ids": torch.randint(1, self.vocab_size, (rows, 5)),
            "qformer_attention_mask": torch.ones(rows, 5, dtype=torch.long),
            "face_boxes": torch.tensor([0.1, 0.2, 0.8, 0.9]).repeat(rows, 1, 1),
            "face_landmarks": landmarks,
            "face_embeddings": torch.randn(rows, 1, config.face_config.embedding_size),
            "face_mask": torch.ones(rows, 1, dtype=torch.bool),
        }
        return config, inputs


class EmoLlamaModelTest(Reasons, ModelTesterMixin, unittest.TestCase):
    all_model_classes = (EmoLlamaModel, EmoLlamaForConditionalGeneration)
    additional_model_inputs = PICTURE_INPUTS
    test_can_init_all_missing_weights_before_2023 = True  # for models without a year of copyright, too
    _is_composite = True
    reasons = {
        "test_generation_tester_mixin_inheritance": "the distribution leaves out the tests of `generate`; ours are in "
        "test_modeling.py and test_modeling_families.py",
        "test_sdpa_can_dispatch_non_composite_models": "the model is composite",
        "test_encoder_decoder_loss_no_double_shift": "no encoder-decoder",
        "test_eager_matches_batched_and_grouped_inference_*": "no mixture of experts",
        "test_moe_models_record_router_logits": "no mixture of experts",
        "test_output_router_logits_from_config": "no mixture of experts",
        "test_resize_position_vector_embeddings": "the language model's positions are rotations, without a table",
        "test_sliding_window_mask": "the language model's attention has no sliding window",
        "test_model_rope_with_partial_rotation": "the language model rotates all of a head",
        "test_vision_axial_rope": "the vision tower's positions are a table",
    }

    def setUp(self):
        self.model_tester = EmoLlamaModelTester(self)
        self.config_tester = ConfigTester(self, config_class=EmoLlamaConfig, has_text_modality=False)
        # The tests know from these tables which class is the bare model, and which one is given labels.
        for table, name in [
            (MODEL_MAPPING_NAMES, "EmoLlamaModel"),
            (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "EmoLlamaForConditionalGeneration"),
        ]:
            patch = mock.patch.dict(table, {"emo_llama": name})
            patch.start()
            self.addCleanup(patch.stop)

    def _image_features_prepare_config_and_inputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {name: inputs[name] for name in PICTURE_INPUTS}

    def _video_features_prepare_config_and_inputs(self):
        config, inputs = self._image_features_prepare_config_and_inputs()
        return config, {"pixel_values_videos": inputs.pop("pixel_values"), **inputs}

    def test_config(self):
        self.config_tester.run_common_tests()
