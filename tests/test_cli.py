"""The commands `emo-llama` and `ferid` as a user meets them: what they print, and one sentence for every mistake."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers.utils import logging

from ferid_dataset import cli as ferid_cli
from ferid_dataset.build import build_ferid
from ferid_dataset.drawn_faces import draw_face, draw_faces
from modeling_emo_llama import cli as emo_llama_cli
from modeling_emo_llama import create_checkpoint, face_analysis, load_checkpoint

pytest.importorskip("dlib")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command line in this process: (exit code, what it printed, what it said on stderr)."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            module.main()
        return stop.value.code or 0, *capsys.readouterr()

    verbosity = logging.get_verbosity()
    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def emo_llama(command):
    return lambda *arguments: command(emo_llama_cli, *arguments)


@pytest.fixture
def ferid(command):
    return lambda *arguments: command(ferid_cli, *arguments)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_checkpoint):
    """Good and bad input of every kind."""
    root = tmp_path_factory.mktemp("files")
    draw_face("happiness", np.random.default_rng(0)).save(root / "face.png")
    Image.new("RGB", (64, 64)).save(root / "black.png")
    (root / "words.jpg").write_text("no picture")
    (root / "words.avi").write_text("no clip")
    (root / "cut.png").write_bytes((root / "face.png").read_bytes()[:3000])
    for name, config in {"empty": None, "bert": '{"model_type": "bert"}', "no_json": "{"}.items():
        (root / name).mkdir()
        if config:
            (root / name / "config.json").write_text(config)
    shutil.copytree(tiny_checkpoint, root / "no_weights", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(tiny_checkpoint, root / "cut_weights")
    weights = root / "cut_weights" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    for name, config in {"lost_base": '{"base_model_name_or_path": "a/b/c"}', "cut_adapter": "{"}.items():
        (root / name).mkdir()
        (root / name / "adapter_config.json").write_text(config)
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("built")
    draw_faces(root / "pictures", count=35)
    build_ferid(root / "ferid", folder=root / "pictures", configs=["category"], num_proc=1)
    return root / "ferid"


def assert_sentence(result, name, *parts):
    """Exit code 2 and, last on stderr, one line that begins with the name of the command and holds these parts."""
    code, out, err = result
    assert code == 2, (out, err)
    *bars, sentence = err.removesuffix("\n").split("\n")
    assert sentence.startswith(f"{name}: ") and "Traceback" not in err + out
    assert all("%" in bar or "examples/s" in bar for bar in bars), bars
    for part in parts:
        assert str(part) in sentence


# ---- emo-llama ----


def test_create_says_where_it_lies_and_how_large_it_is(emo_llama, tmp_path):
    code, out, _ = emo_llama("create", tmp_path / "new", "--preset", "tiny-random", "--compress-type", "mean")
    assert code == 0
    assert f"{tmp_path / 'new'} holds an EMO-LLaMA: 2.5M parameters, 10 MB" in out
    assert json.loads((tmp_path / "new/config.json").read_text())["compress_type"] == "mean"


def test_create_takes_no_wrong_order(emo_llama, files, tmp_path):
    create = ("create", tmp_path / "new")
    assert_sentence(emo_llama(*create, "--preset", "big"), "emo-llama", "unknown preset 'big'", "quickstart")
    assert_sentence(emo_llama(*create), "emo-llama", "--preset", "--vision and --text")
    assert_sentence(
        emo_llama(*create, "--preset", "tiny-random", "--compress-type", "x"), "emo-llama", "'x'", "'grid:n'"
    )
    assert_sentence(emo_llama("create", files, "--preset", "tiny-random"), "emo-llama", files, "another folder")
    assert not (tmp_path / "new").exists()


def test_missing_packages_are_named_with_their_remedy(emo_llama, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "dlib", None)
    monkeypatch.setattr(face_analysis, "load_face_analyzer", face_analysis.load_face_analyzer.__wrapped__)
    for arguments in ("create", tmp_path / "new", "--preset", "quickstart"), ("faces", files / "face.png"):
        assert_sentence(emo_llama(*arguments), "emo-llama", "pip install 'emo-llama[quickstart]'")


def test_ask_prints_question_answer_and_options_best_first(emo_llama, files, tiny_checkpoint):
    options = ("--options", "happiness, sadness,fear,")
    code, out, _ = emo_llama("ask", files / "face.png", "--model", tiny_checkpoint, *options)
    assert code == 0
    assert out.startswith("Question  What is the facial expression of the person in the image?\nAnswer    ")
    lines = [line.split() for line in out.splitlines() if "%" in line][-3:]
    assert {line[0] for line in lines} == {"happiness", "sadness", "fear"}
    shares = [float(line[1].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.2)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_ask_about_a_clip(emo_llama, files, tiny_checkpoint, tmp_path, form, monkeypatch):
    """The answer is the model's own to the frames of the clip, and is told as it comes."""
    av = pytest.importorskip("av")
    face = Image.open(files / "face.png").convert("RGB").resize((112, 112))
    if form == "file":
        clip = tmp_path / "CLIP.MP4"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.height = stream.width = 112
            for _ in range(9):
                container.mux(stream.encode(av.VideoFrame.from_image(face)))
            container.mux(stream.encode())
    else:
        clip = tmp_path
        for index in range(3):
            face.save(tmp_path / f"{index}.png")
    asked = []
    model, processor = load_checkpoint.load_checkpoint(tiny_checkpoint)
    monkeypatch.setattr(load_checkpoint, "load_checkpoint", lambda _: (model, processor))
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **inputs: asked.append(inputs) or generate(**inputs))
    ask = ("ask", clip, "--model", tiny_checkpoint)
    code, out, _ = emo_llama(*ask, "--options", "yes,no")
    assert code == 0 and out.startswith("Question  What is the facial expression of the person in the video?\n")
    monkeypatch.setattr(processor, "num_frames", 2)
    code, out, _ = emo_llama(*ask[:2], "Why?", *ask[2:])
    assert code == 0 and out.startswith("Question  Why?\nAnswer    ")
    assert [len(inputs["pixel_values_videos"]) for inputs in asked] == [8, 2]
    assert all(inputs["face_mask"].all() for inputs in asked)


def test_ask_an_adapter(emo_llama, files, tiny_checkpoint, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, processor = load_checkpoint.load_checkpoint(tiny_checkpoint)
    adapted = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*_proj", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    assert load_checkpoint.base_checkpoint(tmp_path / "adapter") == str(tiny_checkpoint)

    ask = ("ask", files / "face.png", "Sad?", "--options", "yes,no", "--model")
    code, out, _ = emo_llama(*ask, tmp_path / "adapter")
    assert code == 0 and out.startswith("Question  Sad?\n")
    without = emo_llama(*ask, tiny_checkpoint)[1]
    assert out != without  # the adapter is in use


def test_ask_needs_a_face_or_leave_to_do_without(emo_llama, files, tiny_checkpoint):
    ask = ("ask", files / "black.png", "--model", tiny_checkpoint)
    assert_sentence(emo_llama(*ask), "emo-llama", files / "black.png", "crop it closer", "--no-faces")
    code, out, _ = emo_llama(*ask, "--no-faces")
    assert code == 0 and "Answer" in out


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("nothing.png", ["there is no file", "nothing.png"]),
        ("words.jpg", ["words.jpg is not a picture"]),
        ("cut.png", ["cut.png cannot be read", "truncated"]),
    ],
)
def test_pictures_that_are_none(emo_llama, files, tiny_checkpoint, name, parts):
    for arguments in ("ask", files / name, "--model", tiny_checkpoint), ("faces", files / name):
        assert_sentence(emo_llama(*arguments), "emo-llama", *parts)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("empty", ["empty holds no picture"]),
        ("nothing.mp4", ["there is no clip", "nothing.mp4"]),
        ("words.avi", ["words.avi"]),
    ],
)
def test_clips_that_are_none(emo_llama, files, tiny_checkpoint, name, parts):
    assert_sentence(emo_llama("ask", files / name, "--model", tiny_checkpoint), "emo-llama", *parts)


BAD_MODELS = [
    ("empty", ["empty is no checkpoint", "config.json", "emo-llama create"]),
    ("words.jpg", ["words.jpg is no checkpoint", "emo-llama create"]),
    ("nothing/at/all", ["nothing/at/all is no checkpoint", "emo-llama create"]),
    ("bert", ["is a 'bert' and no EMO-LLaMA", "emo-llama create"]),
    ("no_json", ["no_json is no checkpoint that can be read", "not a valid JSON file"]),
    ("no_weights", ["no_weights is not whole", "model.safetensors"]),
    ("cut_weights", ["cut_weights is not whole"]),
    ("lost_base", ["lost_base is an adapter on a/b/c", "emo-llama create"]),
    ("cut_adapter", ["adapter_config.json is not whole"]),
]


@pytest.mark.parametrize(("name", "parts"), BAD_MODELS, ids=[name for name, _ in BAD_MODELS])
def test_models_that_are_none(emo_llama, ferid, files, built, tmp_path, name, parts):
    assert_sentence(emo_llama("ask", files / "face.png", "--model", files / name), "emo-llama", *parts)
    assert_sentence(
        ferid("evaluate", "--model", files / name, "--data", built, "--output", tmp_path / "new"), "ferid", *parts
    )
    assert not (tmp_path / "new").exists()


def test_faces_are_listed_and_drawn(emo_llama, files, tmp_path):
    code, out, _ = emo_llama("faces", files / "face.png", "--draw", tmp_path / "drawn.png")
    assert code == 0 and "landmarks" in out and " 68 " in out
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.width == 900 < drawn.height, "enlarged, and with a legend"
        assert (np.asarray(drawn) == (86, 180, 233)).all(axis=-1).sum() > 200, "the jaw in its colour"

    assert_sentence(emo_llama("faces", files / "black.png"), "emo-llama", files / "black.png", "crop it closer")
    lost = tmp_path / "no_folder" / "drawn.png"
    code, _, err = emo_llama("faces", files / "face.png", "--draw", lost)
    assert code == 2 and str(lost) in err


def test_interrupt_and_real_bugs(emo_llama, files, tiny_checkpoint, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    def bug(*_):
        raise TypeError("a bug of ours")

    monkeypatch.setattr(create_checkpoint, "create_checkpoint", stop)
    code, _, err = emo_llama("create", "new", "--preset", "tiny-random")
    assert code == 130 and err.endswith("emo-llama: stopped\n")
    monkeypatch.setattr(load_checkpoint, "load_checkpoint", bug)
    with pytest.raises(TypeError, match="a bug of ours"):
        emo_llama_cli.ask(files / "face.png", model=tiny_checkpoint)


def test_no_traceback_in_a_process_of_its_own(files):
    done = subprocess.run(
        [sys.executable, "-m", "modeling_emo_llama.cli", "ask", files / "face.png", "--model", files / "empty"],
        capture_output=True,
        text=True,
    )
    assert_sentence((done.returncode, done.stdout, done.stderr), "emo-llama", "is no checkpoint")


# ---- ferid ----


def test_draw_fills_a_new_folder(ferid, tmp_path):
    out = tmp_path / "drawn"
    out.mkdir()
    code, printed, _ = ferid("draw", out, "--count", 35, "--seed", 3)
    assert code == 0 and str(out) in printed and len(list(out.rglob("*.png"))) == 35
    assert os.listdir(tmp_path) == ["drawn"]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    assert_sentence(ferid("draw", out), "ferid", out, "not an empty folder")
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    assert_sentence(ferid("draw", tmp_path / "few", "--count", 3), "ferid", "35 or more")


def test_a_stopped_drawing_can_be_drawn_again(ferid, tmp_path, monkeypatch):
    from datasets import utils

    def stop_after_three(indices, **_):
        yield from indices[:3]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(utils, "tqdm", stop_after_three)
        assert ferid("draw", tmp_path / "drawn", "--count", 35)[0] == 130
    assert not (tmp_path / "drawn").exists()
    assert ferid("draw", tmp_path / "drawn", "--count", 35)[0] == 0
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 35


def test_evaluate_prints_the_figures(ferid, built, tiny_checkpoint, tmp_path):
    order = ("evaluate", "--model", tiny_checkpoint, "--data", built, "--output", tmp_path / "results")
    code, out, _ = ferid(*order, "--batch-size", 4)
    assert code == 0
    metrics = json.loads((tmp_path / "results/metrics.json").read_text())
    for words in (
        "WAR",
        "UAR",
        "invalid answers",
        "recall of happiness",
        "drawn faces",
        f"{metrics['invalid_rate']:.3f}",
    ):
        assert words in out
    assert f"{tmp_path / 'results'} holds metrics.json, predictions.jsonl and confusion_matrix.png." in out


def test_evaluate_takes_no_wrong_order(ferid, built, files, tiny_checkpoint, tmp_path):
    order = ("evaluate", "--model", tiny_checkpoint, "--output", tmp_path / "new", "--data")
    for name in "empty", "nothing":
        assert_sentence(ferid(*order, files / name), "ferid", f"{files / name} is no FERID", "ferid build")
    assert_sentence(ferid(*order, built.parent / "pictures"), "ferid", "is no FERID", "'category' not found")
    assert_sentence(ferid(*order, built, "--split", "val"), "ferid", "no split 'val': choose from train, test")
    assert_sentence(ferid(*order, built, "--source", "dfew"), "ferid", "no source 'dfew' in test: choose from folder")
    order = ("evaluate", "--model", tiny_checkpoint, "--data", built, "--output", files / "words.jpg")
    assert_sentence(ferid(*order), "ferid", "words.jpg is a file")
