"""`ferid push-model`: what reaches a Hub and what never does; it loads elsewhere and answers as here; the card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from test_checkpoint import BLOCK
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_emo_llama  # noqa: F401  registers the classes
from ferid_dataset.evaluate.metrics import compute_metrics, summarise_folds
from ferid_dataset.model_card import public_text, write_model_card

REPOSITORY = Path(__file__).parents[1]
PROJECTIONS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
NEW_MODULES = ["context_attention", "multi_modal_projector", "face_info_mining", "token_gain"]
PROCESSOR_FILES = {
    "attribute_prompt.py",
    "chat_template.jinja",
    "face_analysis.py",
    "image_processing_emo_llama.py",
    "processing_emo_llama.py",
    "processor_config.json",
    "qformer_tokenizer/tokenizer.json",
    "qformer_tokenizer/tokenizer_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_frames.py",
}
MODEL_CODE = {"configuration_emo_llama.py", "face_info_mining.py", "modeling_emo_llama.py"}
ALWAYS = {".gitattributes", "README.md"}
RECIPE = {
    "data": [{"config": "category", "source": "raf_db", "split": "train", "rows": 12271}],
    "drawn": False,
    "trained": {"language_model": 4884480},
    "hyperparameters": {"learning_rate": 2e-4, "output_dir": "/home/somebody/runs/adapter"},
    "seed": 3,
}
LABELS = ["happiness", "sadness", "anger"]

# Runs `ferid` commands one after the other in one process, and prints what each did.
COMMANDS = """
import contextlib, io, json, sys
from ferid_dataset.cli import main
done = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["ferid", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    done.append([code, out.getvalue(), err.getvalue().splitlines()[-1:]])
print(json.dumps(done))
"""
# What a stranger runs, who has no token.
LOAD = """
import numpy, torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

found = {}
for repo in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    picture = {"type": "image", "image": Image.open("face.png"), "faces": json.load(open("faces.json"))}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": "How does she feel?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    model = AutoModelForImageTextToText.from_pretrained(repo, trust_remote_code=True, dtype=torch.float32)
    base = AutoModel.from_pretrained(repo, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**inputs).logits
        same = torch.equal(model.lm_head(base(**inputs).last_hidden_state), logits)
    numpy.save(repo.replace("/", "-"), logits.numpy())
    found[repo] = [type(part).__name__ for part in (processor, model, base)] + [same]
print(json.dumps(found))
"""


def predictions(source: str, count: int, seed: int = 0, **attributes) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label, other = rng.choice(LABELS, 2)
        prediction = str(label if rng.random() < 0.6 else other)
        shares = {name: 0.8 if name == prediction else 0.1 for name in LABELS}
        row = {"id": f"{source}/test/{index}", "source": source, "label": str(label), "prediction": prediction}
        rows.append(row | {"options": LABELS, "probabilities": shares, "attributes": attributes})
    return rows


def figures(folder, *rows: dict, drawn: bool = False, data: str = "/home/somebody/ferid") -> dict:
    measured_on = "ferid test" + (" (drawn faces, no photographs)" if drawn else "")
    extra = {"model": str(folder), "data": data, "split": "test", "source": None, "measured_on": measured_on}
    return compute_metrics(rows) | extra


def card_of(folder: Path, metrics: list[dict], recipe: dict | None = RECIPE, **options) -> ModelCard:
    return ModelCard.load(write_model_card(folder, "user/emo", recipe, metrics, **options))


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint, tmp_path_factory) -> Path:
    """As train_sft.py leaves it: weights and processor, and around them what must not leave the machine."""
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    torch.manual_seed(0)
    lora = LoraConfig(
        r=4, target_modules=PROJECTIONS, modules_to_save=NEW_MODULES, task_type="CAUSAL_LM", init_lora_weights=False
    )
    tuned = get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_checkpoint), lora)
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    (folder / "checkpoint-3").mkdir()
    for name in ("optimizer.pt", "rng_state.pth", "adapter_model.safetensors"):
        (folder / "checkpoint-3" / name).write_bytes(b"of a training")
    for name in ("training_args.bin", "trainer_state.json", "predictions.unfinished", "face.jpg", "faces.parquet"):
        (folder / name).write_text(str(folder))
    write_model_card(folder, "adapter", RECIPE | {"base_model": str(tiny_checkpoint)}, [])
    return folder


@pytest.fixture(scope="module")
def results(adapter, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("results") / "metrics.json"
    file.write_text(json.dumps(figures(adapter, *predictions("raf_db", 60), *predictions("folder", 40))))
    return file


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def ferid(hub, tmp_path_factory):
    """Runs `ferid` commands in a process of its own, which knows no other Hub: (exit code, words, last error)."""

    def run(*commands: list, token: str = "hf_writer") -> list[list]:
        environment = hub_environment(hub, tmp_path_factory.mktemp("home"), token)
        words = json.dumps([["push-model", *map(str, command)] for command in commands])
        process = subprocess.run(
            [sys.executable, "-c", COMMANDS, words], capture_output=True, text=True, env=environment
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run


def hub_environment(hub: FakeHub, home: Path, token: str) -> dict[str, str]:
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": str(REPOSITORY),
    }


@pytest.fixture(scope="module")
def pushed(hub, ferid, tiny_checkpoint, adapter, results, tmp_path_factory) -> dict[str, list]:
    """The base, the adapter on it and the whole model, where an adapter was before; and what the Hub or we refuse."""
    other = tmp_path_factory.mktemp("other") / "base"
    shutil.copytree(tiny_checkpoint, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["_name_or_path"] = "/home/somebody/llm"  # as of a checkpoint composed of folders
    (other / "config.json").write_text(json.dumps(config))
    hub.add_repo("models/user/other", **{"README.md": b"# Mine", "pytorch_model.bin": b"0"})
    hub.add_repo("models/user/public")
    commands = {
        "base": [tiny_checkpoint, "user/base", "--license", "apache-2.0"],
        "adapter": [adapter, "user/adapter", "--base-id", "user/base", "--results", results],
        "whole before": [adapter, "user/whole", "--base-id", "user/base"],
        "whole": [adapter, "whole", "--merged", "--results", results.parent, "--license", "mit"],
        "other base": [other, "user/base2", "--private"],
        "wrong base": [adapter, "user/x", "--base-id", "user/base2"],
        "no such base": [adapter, "user/x", "--base-id", "user/nothing"],
        "base without code": [adapter, "user/x", "--base-id", "user/other"],
        "local base": [adapter, "user/x"],
        "taken": [adapter, "user/other", "--merged"],
        "public": [adapter, "user/public", "--merged", "--private"],
        "not mine": [adapter, "stranger/x", "--merged"],
        "licence": [adapter, "user/x", "--merged", "--license", "apache"],
        "no metrics": [adapter, "user/x", "--merged", "--results", adapter / "adapter_config.json"],
        "others' metrics": [tiny_checkpoint, "user/x", "--results", results],
        "no folder": [adapter / "nothing", "user/x"],
        "no checkpoint": [results.parent, "user/x"],
        "no name": [adapter, "a/b/c", "--merged"],
    }
    return dict(zip(commands, ferid(*commands.values()), strict=True))


@pytest.fixture(scope="module")
def elsewhere(hub, pushed, tmp_path_factory) -> tuple[Path, dict]:
    """What a process finds that runs in another folder, without this project and without a token."""
    return load_elsewhere(hub, tmp_path_factory.mktemp("elsewhere"), "user/adapter", "user/whole")


def load_elsewhere(hub: FakeHub, folder: Path, *repos: str) -> tuple[Path, dict]:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(folder / "face.png")
    face = {"box": [4, 4, 36, 36], "landmarks": rng.uniform(4, 36, (68, 2)).tolist()}
    (folder / "faces.json").write_text(json.dumps([face | {"embedding": rng.normal(size=128).tolist()}]))
    environment = hub_environment(hub, folder / "home", "")
    command = [sys.executable, "-I", "-c", BLOCK + LOAD, *repos]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return folder, json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("repo", ["user/adapter", "user/whole"])
def test_it_loads_elsewhere_and_answers_as_here(elsewhere, repo, adapter, tiny_checkpoint):
    folder, found = elsewhere
    assert found[repo] == ["EmoLlamaProcessor", "EmoLlamaForConditionalGeneration", "EmoLlamaModel", True]
    base = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint, dtype="auto")
    half = {name for name, tensor in base.named_parameters() if tensor.dtype == torch.bfloat16}
    assert half
    model = PeftModel.from_pretrained(base.float(), adapter).eval()
    if repo == "user/whole":
        model = model.merge_and_unload()
        for name, tensor in model.named_parameters():
            tensor.data = tensor.data.to(torch.bfloat16).float() if name in half else tensor.data
    picture = {"type": "image", "image": Image.open(folder / "face.png")}
    picture["faces"] = json.loads((folder / "faces.json").read_text())
    inputs = AutoProcessor.from_pretrained(adapter).apply_chat_template(
        [{"role": "user", "content": [picture, {"type": "text", "text": "How does she feel?"}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        np.testing.assert_allclose(
            np.load(folder / f"{repo.replace('/', '-')}.npy"), model(**inputs).logits.numpy(), atol=1e-5
        )


def test_what_is_sent_and_what_never_is(hub, pushed, adapter, tiny_checkpoint):
    for name in ("base", "adapter", "whole", "whole before"):
        code, words, _ = pushed[name]
        repo = f"user/{name.split()[0]}"
        load = f'AutoModelForImageTextToText.from_pretrained("{repo}", trust_remote_code=True)'
        assert code == 0 and words.splitlines() == [f"{hub.url}/{repo}", load], pushed[name]
    common = ALWAYS | PROCESSOR_FILES | MODEL_CODE
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert set(hub.files("models/user/adapter")) == common | {"adapter_config.json", "adapter_model.safetensors"}
    assert set(hub.files("models/user/whole")) == set(hub.files("models/user/base")) == common | weights
    assert [len(hub.repos[f"models/user/{name}"].commits) for name in ("base", "adapter", "whole")] == [2, 2, 3]
    assert set(hub.files("models/user/base2")) == common | weights
    assert hub.repos["models/user/base2"].private and not hub.repos["models/user/base"].private
    told = json.loads(hub.files("models/user/adapter")["adapter_config.json"])
    assert told == json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "user/base"}
    assert json.loads(hub.files("models/user/whole")["config.json"])["dtype"] == "bfloat16"
    secrets = [str(place).encode() for place in (adapter.parent, tiny_checkpoint.parent, Path.home())]
    secrets += [b"/home/somebody", b"of a training", b"hf_writer"]
    for repo in hub.repos.values():
        for name, content in repo.commits[-1][1].items():
            assert not [secret for secret in secrets if secret in content], name


def test_the_card_has_what_was_measured(hub, pushed, results):
    measured = json.loads(results.read_text())
    for name, base, licence in (("adapter", "user/base", "apache-2.0"), ("whole", None, "mit")):
        card = ModelCard(hub.files(f"models/user/{name}")["README.md"].decode())
        assert (card.data.base_model, card.data.license, card.data.pipeline_tag) == (
            base,
            licence,
            "image-text-to-text",
        )
        found = {(r.dataset_type, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
        parts = {"ferid": measured, "raf_db": measured["by_source"]["raf_db"]}
        parts["folder-ferid"] = measured["by_source"]["folder"]
        assert found == {
            (dataset, "test", key.upper()): round(part[key], 4)
            for dataset, part in parts.items()
            for key in ("war", "uar")
        }
        low, high = measured["by_source"]["raf_db"]["uar_ci95"]
        uar = measured["by_source"]["raf_db"]["uar"]
        assert "| RAF-DB, test | 60 | " in card.text and f" | {uar:.3f} [{low:.3f}, {high:.3f}] | " in card.text
        for words in (
            "| category | raf_db | train | 12,271 |",
            "| learning_rate | 0.0002 |",
            "| seed | 3 |",
            "| torch |",
        ):
            assert words in card.text
        assert f'from_pretrained("user/{name}", trust_remote_code=True)' in card.text
        assert ("`pip install peft`" in card.text) == (name == "adapter")
    card = ModelCard(hub.files("models/user/base")["README.md"].decode())
    assert card.data.eval_results is None and "Not measured yet" in card.text and "is not recorded" in card.text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wrong base", "user/base2 has other weights than"),
        ("no such base", "user/nothing, is neither a folder here nor a model on the Hub"),
        ("base without code", "user/other holds no EMO-LLaMA with its code: push the base first"),
        ("local base", "which nobody else has: add --merged to push the whole model, or --base-id user/base if"),
        ("taken", "user/other holds something else: name another repository, nothing was touched"),
        ("public", "user/public exists and is public: make it private in its settings"),
        ("not mine", "this token may not write to stranger/x"),
        ("licence", 'the Hub refuses the card of user/x: Invalid metadata in README.md. - "license" must be one of'),
        ("no metrics", "adapter_config.json holds no metrics: give the metrics.json that `ferid evaluate` wrote"),
        ("others' metrics", "was measured on "),
        ("no folder", "there is no folder "),
        ("no checkpoint", "is no checkpoint, it holds neither config.json nor adapter_config.json: give the folder"),
        ("no name", "'a/b/c' is no name of a Hub repository"),
    ],
)
def test_a_mistake_is_one_sentence(pushed, hub, name, sentence):
    code, words, [error] = pushed[name]
    assert code == 2 and not words and error.startswith("ferid: ") and sentence in error
    assert set(hub.files("models/user/other")) == {".gitattributes", "README.md", "pytorch_model.bin"}


def test_without_a_login(ferid, adapter):
    [(code, _, [error])] = ferid([adapter, "user/x", "--merged"], token="")
    assert (code, error) == (2, "ferid: there is no token for the Hub: run `hf auth login`, or set HF_TOKEN")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["whole", "adapter"])
def test_train_sft_pushes_what_it_trained(hub, pushed, form, tiny_checkpoint, tmp_path):
    """The documented command, with a base of this machine or of the Hub: trained, validated, pushed and loaded."""
    from training_runs import launch, make_training_ferid, recipe

    base, settings = (tiny_checkpoint, {"push_merged": "true"}) if form == "whole" else ("user/base", {})
    settings |= {"push_to_hub": "true", "hub_model_id": f"user/trained-{form}", "validate_steps": 3}
    words = recipe(base, make_training_ferid(tmp_path / "ferid"), tmp_path / "out", **settings)
    launch(words, **hub_environment(hub, tmp_path / "home", "hf_writer"))

    card = ModelCard(hub.files(f"models/user/trained-{form}")["README.md"].decode())
    war, uar = card.data.eval_results
    assert (war.dataset_type, war.dataset_split, war.metric_name, uar.metric_name) == (
        "raf_db",
        "validation",
        "WAR",
        "UAR",
    )
    assert (
        "| category | raf_db | train | 21 |" in card.text
        and "| RAF-DB, validation, generated answer | 6 |" in card.text
    )
    assert card.data.base_model == (None if form == "whole" else "user/base")
    weights = {"model.safetensors", "config.json"} if form == "whole" else {"adapter_model.safetensors"}
    files = hub.files(f"models/user/trained-{form}")
    assert weights <= set(files) and not [name for name in files if "checkpoint" in name or name.endswith(".bin")]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    (tmp_path / "elsewhere").mkdir()
    _, found = load_elsewhere(hub, tmp_path / "elsewhere", f"user/trained-{form}")
    assert found == {
        f"user/trained-{form}": ["EmoLlamaProcessor", "EmoLlamaForConditionalGeneration", "EmoLlamaModel", True]
    }


def test_nothing_measured_is_said_plainly(tmp_path):
    card = card_of(tmp_path, [])
    assert "## Results\n\nNot measured yet" in card.text and card.data.eval_results is None
    assert "were not measured: measure them before" in card.text


def test_drawn_faces_never_pass_for_people(tmp_path):
    drawn = figures("m", *predictions("folder", 30), drawn=True)
    card = card_of(tmp_path, [drawn], RECIPE | {"drawn": True})
    assert "**Trained and measured on drawn faces, no photographs: this says nothing about people.**" in card.text
    assert "| Drawn faces, no photographs, test | 30 |" in card.text and "Own pictures" not in card.text
    assert {r.dataset_name for r in card.data.eval_results} == {"Drawn faces, no photographs"}
    card = card_of(tmp_path, [drawn, figures("m", *predictions("folder", 30, seed=1))])
    assert "**Some of the figures are of drawn faces, no photographs: those say nothing about people.**" in card.text
    assert {r.dataset_type for r in card.data.eval_results} == {"drawn-faces", "folder-ferid"}
    assert "drawn faces" not in card_of(tmp_path, []).text


def test_results_by_group_have_counts_and_intervals(tmp_path):
    rows = [*predictions("raf_db", 40, gender="female"), *predictions("crema_d", 5, gender="male")]
    text = card_of(tmp_path, [figures("m", *rows)]).text
    assert "| All 2 sources, test | gender | female | 40 | 3 | 0." in text
    assert "| All 2 sources, test | gender | male | 5 | " in text and "| too small | too small |" in text
    assert "Look at the results by group above" in text


def test_folds_have_mean_and_spread(tmp_path):
    folds = summarise_folds([compute_metrics(predictions("dfew", 30, seed)) for seed in range(5)])
    text = card_of(tmp_path, [folds | {"model": "runs/fold-{fold}/adapter", "split": "test"}]).text
    uar = folds["uar"]
    assert "| DFEW, test, 5 folds | 150 | " in text and f" | {uar['mean']:.3f} ± {uar['std']:.3f} | " in text
    assert "each was measured on a model of its own" in text
    [_, found] = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert (found.dataset_type, found.metric_name, found.metric_value) == ("dfew", "UAR", round(uar["mean"], 4))


def test_two_results_on_rows_of_the_same_name_stay_two(tmp_path):
    both = [
        figures("m", *predictions("raf_db", 30, seed)) | {"method": m} for seed, m in enumerate(("score", "generate"))
    ]
    found = card_of(tmp_path, both).data.eval_results
    assert [r.dataset_type for r in found] == ["raf_db", "raf_db", "raf_db-2", "raf_db-2"]


def test_the_licence_is_what_can_be_known(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    recipe = RECIPE | {"base_model": str(base)}
    data = card_of(tmp_path, [], recipe).data
    assert (data.license, data.license_name, data.base_model) == ("other", "terms-of-parts-and-data", None)
    assert card_of(tmp_path, [], recipe, license="mit").data.license == "mit"
    (base / "README.md").write_text("---\nlicense: llama3\n---\n# Base\n")
    assert card_of(tmp_path, [], recipe).data.license == "llama3"
    (base / "conversion.json").write_text("{}")
    card = card_of(tmp_path, [], recipe)
    assert card.data.license == "cc-by-nc-4.0" and "not for commercial use" in card.text
    assert "- RAF-DB: non-commercial research only" in card.text
    hub_base = card_of(tmp_path, [], RECIPE | {"base_model": "somebody/emo-llama"})
    assert hub_base.data.base_model == "somebody/emo-llama" and hub_base.data.base_model_relation == "finetune"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/runs/adapter", "adapter"),
        (
            "accelerate launch /opt/x/train_sft.py --output_dir ~/runs/a",
            "accelerate launch train_sft.py --output_dir a",
        ),
        ("../runs/a and ./b/c", "a and c"),
        (r"C:\Users\me\ferid", "ferid"),
        ("https://hf.co/user/emo and/or user/emo, 1/2", "https://hf.co/user/emo and/or user/emo, 1/2"),
        (PROJECTIONS, PROJECTIONS),
    ],
)
def test_places_on_this_machine_are_cut_to_their_names(text, told):
    assert public_text(text) == told


def test_a_relative_place_is_cut_and_secrets_are_not_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ferid").mkdir(parents=True)
    settings = {"dataset_name": "runs/ferid", "hub_token": "hf_abc", "output_dir": "out/here", "pattern": "a|b"}
    text = card_of(tmp_path, [], RECIPE | {"hyperparameters": settings}).text
    assert "| dataset_name | ferid |" in text and "| pattern | a\\|b |" in text
    assert "hf_abc" not in text and "out/here" not in text and str(tmp_path) not in text
