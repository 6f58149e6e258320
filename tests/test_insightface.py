"""The insightface backend on a pack of tiny ONNX models, made here, whose answers are known.

The detector takes a cell of 16 x 16 pixels that is all green for the middle of a face of 48 x 48, and one of 32 x 32
that is all red for that of a face of 96 x 96; the landmark model always tells the same face, `SHAPE`.
"""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from modeling_emo_llama.cli import app
from modeling_emo_llama.configuration_emo_llama import EYE_POINTS, LANDMARK_REGIONS
from modeling_emo_llama.create_checkpoint import create_checkpoint
from modeling_emo_llama.face_analysis import FaceSettings, InsightFaceAnalyzer, load_face_analyzer

pytest.importorskip("insightface")
pytestmark = pytest.mark.filterwarnings("ignore:.estimate. is deprecated:FutureWarning")  # pytest undoes the backend's

QUARTERS = ["lower_left_quarter", "lower_right_quarter", "upper_left_quarter", "upper_right_quarter"]
EYE = ["bottom", "center", "left_corner", "pupil", "right_corner", "top", *QUARTERS]
NAMES = ["contour_chin", "nose_middle_contour", "nose_tip", *(f"nose_bridge{number}" for number in (1, 2, 3))]
for side, other in ("left", "right"), ("right", "left"):
    corners = [f"{side}_corner", f"lower_{other}_corner", f"upper_{other}_corner"]
    NAMES += [f"contour_{side}{number}" for number in range(1, 17)]
    NAMES += [f"{side}_eye_{point}" for point in EYE]
    NAMES += [f"{side}_eyebrow_{point}" for point in (*corners, "lower_middle", "upper_middle", *QUARTERS)]
    NAMES += [f"nose_{side}_contour{number}" for number in range(1, 6)]
    NAMES += [f"mouth_{side}_corner"]
    NAMES += [f"mouth_lower_lip_{side}_contour{number}" for number in (1, 2, 3)]
    NAMES += [f"mouth_upper_lip_{side}_contour{number}" for number in (1, 2, 3, 4)]
NAMES += [f"mouth_{lip}_lip_{edge}" for lip in ("lower", "upper") for edge in ("bottom", "top")]
NAMES.sort()  # Face++'s names of the 106 landmarks by their alphabet; left and right are those of the picture


def place(name: str) -> tuple[float, float]:
    """Where a point lies in a plain face, in -1..1 of the landmark model's input."""
    heights = {"contour_": 0.4, "eyebrow": -0.35, "eye_": -0.2, "nose": 0.1, "mouth": 0.35}
    part = next(part for part in heights if part in name)
    detail = name.removeprefix("left_").removeprefix("right_")
    x = 0.28 * (name.startswith("right") - name.startswith("left"))
    x += (0.6 if part == "contour_" else 0.08) * (("right" in detail) - ("left" in detail))
    return x, heights[part] + 0.04 * (("lower" in detail) - ("upper" in detail))


SHAPE = np.array([place(name) for name in NAMES], np.float32)


def save(path, data: list, outputs: list, nodes: list, weights: dict) -> None:
    """An ONNX file; nodes are (operator, inputs, output, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, data)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def save_detector(path) -> None:
    nodes, weights, outputs = [], {"none": np.zeros(3, np.float32)}, []
    tells = {"score": [0.0], "bbox": [1, 1, 2, 2], "kps": [0.25, 0.25, 0.75, 0.25, 0.5, 0.5, 0.25, 0.75, 0.75, 0.75]}
    for kind, values in tells.items():
        for stride, color in (8, [0, 0, 0]), (16, [0, 1, 0]), (32, [1, 0, 0]):
            name, two = f"{kind}_{stride}", 2 * len(values)  # two anchors a cell, of which the second tells the same
            looks = kind == "score"
            mix = np.tile(np.float32(color if looks else [0, 0, 0]), (two, 1)).reshape(two, 3, 1, 1)
            weights |= {f"{name}_mix": mix, f"{name}_add": np.tile(np.float32(values), 2).reshape(1, two, 1, 1)}
            weights |= {f"{name}_shape": np.array([-1, len(values)])}
            nodes += [
                ("AveragePool", ["data"], f"{name}_cells", {"kernel_shape": [stride] * 2, "strides": [stride] * 2}),
                ("Conv", [f"{name}_cells", f"{name}_mix"], f"{name}_mixed", {}),
                ("Add", [f"{name}_mixed", f"{name}_add"], f"{name}_map", {}),
                ("Transpose", [f"{name}_map"], f"{name}_last", {"perm": [0, 2, 3, 1]}),
                ("Reshape", [f"{name}_last", f"{name}_shape"], name, {}),
            ]
            outputs.append((name, ["anchors", len(values)]))
    save(path, [1, 3, "height", "width"], outputs, nodes, weights)


def save_head(path, side: int, bias: np.ndarray, slope: float = 0.0) -> None:
    """`bias` + `slope` x noise x the mean colour of the input."""
    noise = slope * np.random.default_rng(0).standard_normal((3, bias.size)).astype(np.float32)
    nodes = [
        ("ReduceMean", ["data"], "mean", {"axes": [2, 3], "keepdims": 0}),
        ("MatMul", ["mean", "noise"], "product", {}),
        ("Add", ["product", "bias"], "out", {}),
    ]
    weights = {"noise": noise, "bias": bias.reshape(1, -1).astype(np.float32)}
    save(path, ["N", 3, side, side], [("out", ["N", bias.size])], nodes, weights)


def make_pack(folder, without: str = "") -> str:
    """A pack named and shaped as buffalo_s, and the name that `load_face_analyzer` takes for it."""
    folder.mkdir(parents=True)
    save_detector(folder / "det_tiny.onnx")
    save_head(folder / "2d106det.onnx", 192, SHAPE)
    save_head(folder / "1k3d68.onnx", 192, np.zeros(3309))
    save_head(folder / "w600k_tiny.onnx", 112, np.ones(512), slope=1)
    save_head(folder / "genderage.onnx", 96, np.array([0.2, 0.8, 0.34]))
    for file in folder.glob(without or "nothing"):
        file.unlink()
    return f"insightface:{folder}"


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> str:
    return make_pack(tmp_path_factory.mktemp("packs") / "tiny")


def picture(*squares: tuple[str, int, int], size=(320, 256)) -> Image.Image:
    """Squares of the detector's colours at (left, top), on grey noise."""
    noise = np.random.default_rng(0).integers(0, 60, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for color, left, top in squares:
        side = 16 if color == "lime" else 32
        image.paste(Image.new("RGB", (side, side), color), (left, top))
    return image


def expected_landmarks(box) -> np.ndarray:
    """The model sees the square of 1.5 times the box's longer side around it."""
    left, top, right, bottom = box
    half = 0.75 * max(right - left, bottom - top)
    return SHAPE * half + ((left + right) / 2, (top + bottom) / 2)


def test_the_regions_are_where_their_names_say():
    assert len(NAMES) == len(set(NAMES)) == 106
    parts = {"jaw": "contour_", "brows": "eyebrow", "eyes": "_eye_", "mouth": "mouth_"}
    regions = {region: [name for name in NAMES if part in name] for region, part in parts.items()}
    regions["jaw"] = [name for name in NAMES if name.startswith("contour_")]
    regions["nose"] = [name for name in NAMES if name.startswith("nose_")]
    assert {region: [NAMES[i] for i in points] for region, points in LANDMARK_REGIONS[106].items()} == regions
    assert list(LANDMARK_REGIONS[106]) == list(LANDMARK_REGIONS[68])
    assert sorted(i for points in LANDMARK_REGIONS[106].values() for i in points) == list(range(106))

    middle = {region: SHAPE[list(points)].mean(0) for region, points in LANDMARK_REGIONS[106].items()}
    assert middle["brows"][1] < middle["eyes"][1] < middle["nose"][1] < middle["mouth"][1] < middle["jaw"][1]
    for points, side in zip(EYE_POINTS[106], ("left", "right"), strict=True):
        eye = [name for name in NAMES if name.startswith(f"{side}_eye_")]
        assert [NAMES[i] for i in points] == [name for name in eye if not name.endswith("pupil")]
    left, right = (SHAPE[list(points)].mean(0) for points in EYE_POINTS[106])
    assert left[0] < 0 < right[0] and left[1] == right[1]
    five = ["left_eye_center", "right_eye_center", "nose_tip", "mouth_left_corner", "mouth_right_corner"]
    assert [NAMES[i] for i in InsightFaceAnalyzer.alignment_points] == five


def test_faces_of_a_picture(pack):
    analyze = load_face_analyzer(pack)
    [faces, nobody] = analyze([picture(("lime", 48, 64), ("red", 192, 96)), picture()])
    assert nobody == []
    assert [face.box.tolist() for face in faces] == [[160, 64, 256, 160], [32, 48, 80, 96]], "the largest first"
    for face in faces:
        assert face.box.dtype == face.landmarks.dtype == face.embedding.dtype == np.float32
        assert face.score == pytest.approx(127.5 / 128)
        np.testing.assert_allclose(face.landmarks, expected_landmarks(face.box), atol=1e-3)
        assert face.embedding.shape == (512,) and np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-6)
        assert (face.age, face.gender) == (34, "male")
    assert abs(faces[0].embedding - faces[1].embedding).max() > 1e-3, "each face is recognised by its own pixels"


def test_coordinates_are_of_the_picture_that_was_given(pack):
    small = picture(("red", 64, 32), size=(320, 160))
    large = small.resize((960, 480), Image.Resampling.NEAREST)
    [[face]], [[same]] = load_face_analyzer(pack)([small]), load_face_analyzer(pack)([large])
    np.testing.assert_allclose(same.box, 3 * face.box, atol=1e-3)
    np.testing.assert_allclose(same.landmarks, 3 * face.landmarks, atol=1e-2)


def test_colours_and_modes(pack):
    image = picture(("red", 64, 32))
    [[face]] = load_face_analyzer(pack)([image])
    [[again]] = load_face_analyzer(pack)([image.convert("RGBA")])
    np.testing.assert_array_equal(face.embedding, again.embedding)
    blue = Image.merge("RGB", image.split()[::-1])
    assert load_face_analyzer(pack)([blue]) == [[]], "red and blue are not swapped"
    assert load_face_analyzer(pack)([Image.new("RGB", (2000, 3))]) == [[]]


def test_same_as_insightface_itself(pack):
    from insightface.app import FaceAnalysis

    image = picture(("lime", 48, 64), ("red", 192, 96), size=(320, 200))
    app = FaceAnalysis(pack.partition(":")[2], providers=["CPUExecutionProvider"])
    app.prepare(-1, det_size=(320, 320))
    theirs = sorted(app.get(np.asarray(image)[..., ::-1].copy()), key=lambda face: -face.bbox[2] + face.bbox[0])
    [ours] = load_face_analyzer(pack)([image])
    assert len(ours) == len(theirs) == 2
    for face, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(face.box, other.bbox)
        np.testing.assert_array_equal(face.landmarks, other.landmark_2d_106)
        np.testing.assert_array_equal(face.embedding, other.normed_embedding)
        assert (face.score, face.age, face.gender[0].upper()) == (other.det_score, other.age, other.sex)


def test_deterministic(pack):
    image = picture(("red", 64, 32))
    [[first]] = InsightFaceAnalyzer(FaceSettings(), pack.partition(":")[2])([image])
    [[second]] = InsightFaceAnalyzer(FaceSettings(), pack.partition(":")[2])([image])
    for name in ("box", "landmarks", "embedding"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_detector_size(pack):
    image = picture(("red", 64, 64), size=(640, 640))  # 16 x 16 to a detector of 320: too little red
    assert load_face_analyzer(pack)([image]) == [[]]
    [[face]] = load_face_analyzer(pack, detector_size=640)([image])
    assert face.box.tolist() == [32, 32, 128, 128]
    with pytest.raises(ValueError, match="detector_size=100 is no multiple of 32"):
        load_face_analyzer(pack, detector_size=100)


def test_max_faces(pack):
    image = picture(("lime", 48, 64), ("red", 192, 96), ("lime", 32, 160))
    assert len(load_face_analyzer(pack)([image])[0]) == 3
    [[face]] = load_face_analyzer(pack, max_faces=1)([image])
    assert face.box.tolist() == [160, 64, 256, 160]


def test_cropped(pack):
    crop = picture(size=(100, 80))
    [[face]] = load_face_analyzer(pack, assume_cropped=True)([crop])
    assert face.box.tolist() == [0, 0, 100, 80] and face.score == 1
    np.testing.assert_allclose(face.landmarks, expected_landmarks(face.box), atol=1e-3)
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-6), "aligned by the landmarks"


@pytest.mark.parametrize(
    ("settings", "opened"),
    [
        ({}, {"det_tiny", "2d106det", "w600k_tiny", "genderage"}),
        ({"attributes": False}, {"det_tiny", "2d106det", "w600k_tiny"}),
        ({"embeddings": False}, {"det_tiny", "2d106det", "genderage"}),
        ({"embeddings": False, "attributes": False, "assume_cropped": True}, {"2d106det"}),
    ],
)
def test_only_needed_models_are_opened(pack, monkeypatch, settings, opened):
    sessions, open_session = [], onnxruntime.InferenceSession

    def record(file, *arguments, **kwargs):
        if not isinstance(file, bytes):  # insightface makes one more of the detector, for the size of its input
            sessions.append(file.stem)
        return open_session(file, *arguments, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    [[face]] = InsightFaceAnalyzer(FaceSettings(**settings), pack.partition(":")[2])([picture(("red", 64, 32))])
    assert set(sessions) == opened and len(sessions) == len(opened)
    assert (face.embedding is None) == (not settings.get("embeddings", True))
    assert (face.age is None) == (face.gender is None) == (not settings.get("attributes", True))


def test_pack_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_pack(tmp_path / ".insightface" / "models" / "buffalo_l")
    [[face]] = InsightFaceAnalyzer(FaceSettings())([picture(("red", 64, 32))])
    assert len(face.landmarks) == 106
    make_pack(tmp_path / ".insightface" / "models" / "buffalo_s")
    assert load_face_analyzer("insightface:buffalo_s")([picture()]) == [[]]


@pytest.mark.parametrize("pack", ["insightface", "insightface:buffalo_l", "insightface:/nowhere/pack"])
def test_missing_pack(tmp_path, monkeypatch, pack):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = pack.partition(":")[2] or "buffalo_l"
    folder = tmp_path / ".insightface" / "models" / name
    with pytest.raises(ValueError, match=f"no InsightFace model pack '{name}'.*non-commercial") as error:
        load_face_analyzer.__wrapped__(pack)
    assert str(folder) in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is downloaded"


def test_missing_models(tmp_path):
    no_recognition = make_pack(tmp_path / "no_recognition", without="w600k*")
    with pytest.raises(ValueError, match="no_recognition has no model for recognition"):
        load_face_analyzer(no_recognition)
    [[face]] = load_face_analyzer(no_recognition, embeddings=False)([picture(("red", 64, 32))])
    assert face.embedding is None and face.gender == "male"

    with pytest.raises(ValueError, match="no model for landmark_2d_106"):  # the 68 in 3-D are none
        load_face_analyzer(make_pack(tmp_path / "no_landmarks", without="2d106*"))
    no_detector = make_pack(tmp_path / "no_detector", without="det*")
    with pytest.raises(ValueError, match="no model for detection"):
        load_face_analyzer(no_detector)
    assert len(load_face_analyzer(no_detector, assume_cropped=True)([picture()])[0]) == 1
    [[face]] = load_face_analyzer(make_pack(tmp_path / "no_age", without="gender*"))([picture(("red", 64, 32))])
    assert face.age is None and face.gender is None, "what a pack cannot tell is left out"


def test_other_files_in_a_pack_do_no_harm(tmp_path):
    pack = make_pack(tmp_path / "more")
    two = ["data", "other"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in (*two, "out")]
    graph = helper.make_graph([helper.make_node("Add", two, ["out"])], "other", values[:2], values[2:])
    onnx.save(helper.make_model(graph), tmp_path / "more" / "other.onnx")  # the smallest: looked at first
    assert len(load_face_analyzer(pack)([picture(("red", 64, 32))])[0]) == 1


def test_missing_package(pack, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.app.common", None)
    with pytest.raises(ImportError, match="insightface face backend needs: pip install insightface"):
        load_face_analyzer.__wrapped__(pack)


def test_broken_model(tmp_path):
    pack = make_pack(tmp_path / "cut")
    file = tmp_path / "cut" / "w600k_tiny.onnx"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="w600k_tiny.onnx is not whole, copy it again"):
        load_face_analyzer(pack)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, pack):
    out = tmp_path_factory.mktemp("checkpoints") / "insightface"
    create_checkpoint(out, preset="tiny-random", face_backend=pack)
    return out


def test_checkpoint_of_106_points(checkpoint, pack):
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(checkpoint),
        AutoProcessor.from_pretrained(checkpoint),
    )
    assert (model.config.face_config.num_landmarks, model.config.face_config.embedding_size) == (106, 512)
    assert processor.face_backend == pack

    image = picture(("red", 96, 96), ("lime", 32, 32))
    content = [{"type": "image", "image": image}, {"type": "text", "text": "How does she feel?"}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    assert inputs["face_landmarks"].shape == (1, 1, 106, 2) and inputs["face_embeddings"].shape == (1, 1, 512)
    assert inputs["face_mask"].all()
    content[0]["faces"] = load_face_analyzer(pack)([image])[0]
    given = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    assert all(torch.equal(inputs[name], given[name]) for name in inputs)

    faces = torch.from_numpy(np.stack([expected_landmarks([0, 0, 96, side]) for side in (90, 96, 99)])).float()
    model.model.face_info_mining.set_prior_statistics(faces, torch.randn(3, 512))
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    moved = model(**inputs | {"face_landmarks": inputs["face_landmarks"].flip(2)}).logits
    assert (moved - logits).abs().max() > 1e-4, "the landmarks are read"
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_settings_travel_with_the_processor(checkpoint, tmp_path):
    processor = AutoProcessor.from_pretrained(checkpoint, face_settings={"assume_cropped": True})
    processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(images=picture(size=(64, 64)), return_tensors="pt")
    assert inputs["face_boxes"].tolist() == [[[0, 0, 1, 1]]] and inputs["face_mask"].all()


def test_recognition_is_off_where_no_branch_reads_it(pack, tmp_path):
    create_checkpoint(tmp_path / "local", preset="tiny-random", face_backend=pack, without=["global_branch"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "local")
    processor = AutoProcessor.from_pretrained(tmp_path / "local")
    assert processor.face_settings == {"embeddings": False}
    inputs = processor(text="<image> Is she sad?", images=picture(("red", 96, 96)), return_tensors="pt")
    assert inputs["face_mask"].all() and not inputs["face_embeddings"].any()
    assert model(**inputs).logits.isfinite().all()


def test_command_faces(pack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(("red", 96, 96)).save("face.png")
    result = CliRunner().invoke(app, ["faces", "face.png", "--backend", pack])
    assert result.exit_code == 0 and "106" in result.output and "male" in result.output and "34" in result.output
    with Image.open("face_faces.png") as drawn:
        colors = {color for _, color in drawn.getcolors(drawn.width * drawn.height)}
    assert {(86, 180, 233), (240, 228, 66), (0, 158, 115), (204, 121, 167)} <= colors, "a colour a region"
    result = CliRunner().invoke(app, ["faces", "face.png", "--backend", "insightface:/nowhere"])
    assert result.exit_code == 2 and "no InsightFace model pack" in result.output
