"""Every recipe and every accelerate config: read by their own parsers; what they name is there in a model."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from fsdp_on_cpu import SETTINGS
from torch import nn
from training_runs import ROOT
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import get_peft_config, get_quantization_config

import train_sft
from ferid_dataset.align import ALIGNED_MODULES
from ferid_dataset.collate import FeridCollator
from ferid_dataset.errors import FeridError
from ferid_dataset.train.arguments import RecipeParser, StageArguments, check_align, check_machine, read_recipe

RECIPES = sorted((ROOT / "configs" / "sft").glob("*.yaml"))
LAUNCHES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def parsed(recipe: Path, *words: str) -> tuple:
    """As on the machine that the recipe is for."""
    return RecipeParser().parse_args_and_config(["--config", str(recipe), "--use_cpu", "true", *words])


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return AutoModelForImageTextToText.from_pretrained(tiny_checkpoint)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_parses_and_says_what_to_expect(recipe):
    script_args, stage_args, training_args, model_args = parsed(recipe)
    head = recipe.read_text().partition("\n\n")[0]
    assert re.search("[Ee]xpected", head) and re.search("[Tt]ime|minutes", head)
    assert script_args.dataset_name and model_args.model_name_or_path and training_args.seed == 0
    assert training_args.remove_unused_columns is False and training_args.max_length is None
    assert training_args.assistant_only_loss and stage_args.validate_split == "validation"
    for name in re.findall(r"configs/[\w/]+\.yaml|docs/\w+\.md|tests/\w+\.py|benchmarks/\w+\.(?:py|md)", head):
        assert (ROOT / name).is_file() or name == "benchmarks/train_gpu.py", name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_names_modules_that_are_there(recipe, model):
    _, stage_args, _, model_args = parsed(recipe)
    parts = {name for name, _ in model.model.named_children()} | {"lm_head"}
    assert set(stage_args.trained_modules or []) | set(model_args.lora_modules_to_save or []) <= parts
    if model_args.use_peft:
        pattern = get_peft_config(model_args).target_modules
        hit = {name for name, module in model.named_modules() if re.fullmatch(pattern, name)}
        assert {name.rpartition(".")[2] for name in hit} == PROJECTIONS
        assert all(name.startswith("model.language_model.") for name in hit)
        assert set(train_sft.NEW_MODULES) <= set(model_args.lora_modules_to_save)
    else:
        assert set(ALIGNED_MODULES) <= set(stage_args.trained_modules)


@pytest.mark.parametrize("config", LAUNCHES, ids=lambda file: file.stem)
def test_an_accelerate_config_is_one(config):
    loaded = load_config_from_file(str(config))
    assert loaded.num_machines == 1 and loaded.mixed_precision == "bf16"
    if "deepspeed" in config.stem:
        assert loaded.deepspeed_config["zero_stage"] == int(config.stem[-1])


def test_fsdp2_is_launched_as_it_is_tested():
    words = ["--config_file", str(ROOT / "configs/accelerate/fsdp2.yaml"), "train_sft.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(args)
    assert {name: environment[name] for name in SETTINGS} == SETTINGS


def test_fsdp2_wraps_the_layers_of_whatever_is_inside(model, monkeypatch):
    """By accelerate's own policy, of the classes that the model and its parts name."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = [name for name, module in model.named_modules() if policy(module)]
    layers = len(model.model.language_model.layers), len(model.model.vision_tower.encoder.layer)
    assert sum(name.startswith("model.language_model.layers.") for name in wrapped) == layers[0] == 2
    assert sum(name.startswith("model.vision_tower.encoder.layer.") for name in wrapped) == layers[1] == 2
    assert {"model.context_attention", "model.face_info_mining"} <= set(wrapped)


def test_qlora_quantises_the_language_model_alone(model):
    _, _, _, model_args = parsed(ROOT / "configs/sft/qlora.yaml")
    quantization = get_quantization_config(model_args)
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    converted = {name for name in linear if should_convert_module(name, train_sft.UNQUANTISED)}
    assert converted == {name for name in linear if name.startswith("model.language_model.")}
    assert len(converted) == 14 < len(linear)


def test_all_in_bfloat16_as_deepspeed_makes_it(tiny_checkpoint):
    """DeepSpeed turns the whole model and its inputs to bfloat16, the new modules and the landmarks too."""
    from PIL import Image

    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "Fear."}]
    face = {"box": [4, 4, 20, 20], "landmarks": [[i % 9 + 7, i // 9 + 7] for i in range(68)], "embedding": [0.1] * 128}
    row = {"images": [Image.new("RGB", (24, 24), "red")], "faces": [[face]], "messages": turns}
    batch = FeridCollator(processor)([row])
    exact = model(**batch).loss
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    torch.testing.assert_close(model.bfloat16()(**half).loss.float(), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lerning_rate: 1e-4", "there is no setting 'lerning_rate': did you mean learning_rate?"),
        ("nonsense_zzz: 1", "there is no setting 'nonsense_zzz': train_sft.py --help lists all"),
        ("dtype: bloat16", "dtype: 'bloat16' is none of auto, bfloat16, float16, float32"),
        ("learning_rate: fast", "learning_rate"),
        ("a: [1", "the recipe is no YAML"),
        ("- 1", "must contain a YAML mapping"),
        ("learning_rate: 1e-4", "give --model_name_or_path, or name it in the recipe"),
        (
            "{model_name_or_path: x, dataset_name: y, report_to: wandb}",
            "report_to needs wandb, which is not installed",
        ),
        (
            "{model_name_or_path: x, dataset_name: y, attn_implementation: flash_attention_2, report_to: none}",
            "attn_implementation needs flash-attn, which is not installed",
        ),
        (
            "{model_name_or_path: x, dataset_name: y, trained_modules: [lm_head], use_peft: true, report_to: none}",
            "trained_modules is for training without LoRA",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_a_sentence(text, sentence, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, find=importlib.util.find_spec: None if name in ("wandb", "flash_attn") else find(name),
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(FeridError) as caught:
        read_recipe([f"--config={file}", "--use_cpu", "true", "--bf16", "false", "--output_dir", str(tmp_path)])
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_recipe_is_a_sentence():
    with pytest.raises(FeridError, match="there is no recipe no/such.yaml"):
        read_recipe(["--config", "no/such.yaml"])
    with pytest.raises(FeridError, match="--config names no recipe"):
        read_recipe(["--config"])


@pytest.mark.parametrize("launcher", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharding_without_a_gpu_is_a_sentence(launcher, monkeypatch):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    _, _, training_args, model_args = parsed(ROOT / "configs/sft/full.yaml")
    check_machine(training_args, model_args)
    monkeypatch.setenv(launcher, "true")
    with pytest.raises(FeridError, match="this recipe wants a GPU"):
        check_machine(training_args, model_args)
    with pytest.raises(FeridError, match="align_epochs cannot run under .*: run configs/sft/align.yaml before"):
        check_align(StageArguments(align_epochs=1), model_args)


def test_every_file_is_yaml_and_names_no_setting_twice():
    class Once(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return yaml.SafeLoader.construct_mapping(loader, node)

    Once.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for file in RECIPES + LAUNCHES:
        assert isinstance(yaml.load(file.read_text(), Once), dict), file
