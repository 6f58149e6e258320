"""transformers' shared tests of processors and image processors on EmoLlamaProcessor and EmoLlamaImageProcessor."""

import shutil
import tempfile
import unittest
from unittest import mock

import pytest
from hf_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from hf_tests.test_processing_common import ProcessorTesterMixin
from reasons import Reasons

from modeling_emo_llama import EmoLlamaImageProcessor, EmoLlamaProcessor
from modeling_emo_llama.create_checkpoint import create_checkpoint

pytestmark = pytest.mark.hf_common


NO_VIDEO_PROCESSOR = "the image processor reads clips' frames, so that there is no video processor (see test_clips.py)"
ONE_BACKEND = "there is one backend, Pillow: torchvision breaks transformers beside PyTorch's build for the CPU"


class EmoLlamaProcessorTest(Reasons, ProcessorTesterMixin, unittest.TestCase):
    processor_class = EmoLlamaProcessor
    reasons = {
        "test_*_audio*": "no sound",
        "test_apply_chat_template_*video*": NO_VIDEO_PROCESSOR,
        "test_*_videos": NO_VIDEO_PROCESSOR,
        "test_processor_with_multiple_inputs": NO_VIDEO_PROCESSOR + "; this one writes <video> and gives no clip",
        "test_replacement_offsets": NO_VIDEO_PROCESSOR + "; this one writes <video> and gives no clip",
        "test_init_arguments_not_in_processor_kwargs": NO_VIDEO_PROCESSOR + ", which would keep `num_frames`",
        "test_apply_chat_template_tool_calls_no_content": "the chat formats know no tools",
        "test_get_num_multimodal_tokens_matches_processor_call*": "a counter for vLLM, which does not run this model",
        "test_if_input_has_mismatching_tokens_and_mm_data": "it raises, with both numbers instead of these words",
    }

    @classmethod
    def setUpClass(cls):
        cls.model_id = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.model_id)
        create_checkpoint(cls.model_id, preset="tiny-random")
        super().setUpClass()

    def setUp(self):
        """As a class of transformers itself, and nobody is looked for in pictures of noise."""
        analyzer = "modeling_emo_llama.processing_emo_llama.load_face_analyzer"
        for patch in (
            mock.patch.object(EmoLlamaProcessor, "_auto_class", None),
            mock.patch(analyzer, lambda *_, **__: lambda pictures: [[] for _ in pictures]),
        ):
            patch.start()
            self.addCleanup(patch.stop)


class EmoLlamaImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        super().__init__(
            parent,
            do_pad=True,
            size={"shortest_edge": 18},
            crop_size={"height": 18, "width": 18},
            image_mean=[0.5, 0.4, 0.3],
            image_std=[0.2, 0.3, 0.4],
            **kwargs,
        )

    def _get_image_processing_classes(self):
        return {"pil": EmoLlamaImageProcessor}


class EmoLlamaImageProcessingTest(Reasons, ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = EmoLlamaImageProcessingTester
    reasons = {
        "test_backends_equivalence*": ONE_BACKEND,
        "test_save_load_backends*": ONE_BACKEND,
        "test_fast_image_processor_explicit_none_preserved": ONE_BACKEND,
        "test_new_models_require_torchvision_backend": ONE_BACKEND,
        "test_image_processor_preprocess_arguments": "it is for processors of the older form",
        "test_override_instance_attributes_does_not_affect_other_instances": "sizes are no dicts in the newer form",
    }
