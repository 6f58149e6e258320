"""The drawn sample: reproducible, balanced, no two alike, and close enough to faces for a detector to find them."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferid_dataset.drawn_faces import ACTION_UNITS, FaceParameters, draw_face, draw_faces, face_curves, sample_face
from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS

EXPRESSIONS = LABELS[:7]


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*.png")
    }


def average_face(expression: str, strength: float = 1.0) -> FaceParameters:
    return FaceParameters({number: level * strength for number, level in ACTION_UNITS[expression].items()})


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """70 faces of full size: ten of each expression."""
    root = tmp_path_factory.mktemp("drawn")
    draw_faces(root, count=70)
    return root


def test_the_600_of_the_quickstart_are_balanced_split_and_all_different(tmp_path):
    draw_faces(tmp_path, size=48)
    found = digests(tmp_path)
    assert len(set(found.values())) == len(found) == 600
    for expression in EXPRESSIONS:
        train, test = (sum(name.startswith(f"{split}/{expression}/") for name in found) for split in ("train", "test"))
        assert train + test in (85, 86) and test == 17
    assert {name.split("/")[1] for name in found} == set(EXPRESSIONS)
    assert sorted(name[-9:-4] for name in found) == [f"{number:05d}" for number in range(1, 601)]


def test_a_picture_depends_on_seed_and_index_alone(sample, tmp_path):
    seen = []
    draw_faces(tmp_path / "again", count=35, progress=lambda pictures: (seen.append(i) or i for i in pictures))
    draw_faces(tmp_path / "other", count=35, seed=1)
    longer, again, other = digests(sample), digests(tmp_path / "again"), digests(tmp_path / "other")
    assert len(again) == 35 and again.items() <= longer.items()
    assert other.keys() == again.keys() and not set(other.values()) & set(again.values())
    assert seen == list(range(35))  # a progress bar may wrap the pictures


def test_pictures_are_what_a_folder_of_photographs_would_hold(sample):
    for path in sample.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (224, 224))
            assert np.asarray(picture).std() > 15
    readme = (sample / "README.txt").read_text(encoding="utf-8")
    assert "drawn sample, not photographs" in readme and "nothing about real faces" in readme


def test_mistakes_are_named():
    with pytest.raises(FeridError, match="35"):
        draw_faces("unused", count=34)
    with pytest.raises(FeridError, match="boredom.*happiness"):
        draw_face("boredom", np.random.default_rng(0))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_geometry_follows_the_action_units(strength):
    curves = {expression: face_curves(average_face(expression, strength)) for expression in EXPRESSIONS}

    def corners_above_middle(expression: str) -> float:
        """Height of the mouth's corners above the middle of the lips' opening (y points down)."""
        mouth = curves[expression]["mouth"]
        return mouth[[15, 46], 1].mean() - mouth[[0, 30], 1].mean()

    def opening(expression: str, name: str) -> float:
        return np.ptp(curves[expression][name][:, 1])

    def inner_brow(expression: str) -> float:
        return curves[expression]["right_brow"][0, 1]

    assert corners_above_middle("happiness") > 0.1 > -0.05 > corners_above_middle("sadness")
    assert opening("surprise", "mouth") > 1.6 * opening("fear", "mouth")
    assert np.ptp(curves["fear"]["mouth"][:, 0]) > 1.3 * np.ptp(curves["surprise"]["mouth"][:, 0])
    assert opening("fear", "left_eye") > opening("neutral", "left_eye") > opening("happiness", "left_eye")
    assert inner_brow("surprise") < inner_brow("neutral") < inner_brow("anger")
    assert inner_brow("sadness") < inner_brow("neutral") < inner_brow("disgust")


def test_people_differ_within_an_expression():
    rng = np.random.default_rng(0)
    faces = [sample_face("happiness", rng) for _ in range(40)]
    assert len({face.hair_style for face in faces}) == 6
    assert min(face.skin.mean() for face in faces) < 100 and max(face.skin.mean() for face in faces) > 180
    assert np.std([face.yaw for face in faces]) > 0.06
    smiles = [face.unit(12) for face in faces]
    assert 0.5 < min(smiles) < 0.7 and max(smiles) > 0.9


def test_dlib_finds_the_faces_and_their_features(sample):
    dlib = pytest.importorskip("dlib")
    weights = importlib.util.find_spec("face_recognition_models")
    if weights is None:
        pytest.skip("the landmark weights are not installed")
    detector = dlib.get_frontal_face_detector()
    models = Path(weights.origin).parent / "models"
    predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
    smile: dict[str, list[float]] = {expression: [] for expression in EXPRESSIONS}
    paths = sorted(sample.rglob("*.png"), key=lambda path: path.stem)[:42]
    for path in paths:
        picture = np.asarray(Image.open(path))
        boxes = detector(picture, 0)
        if not boxes:
            continue
        points = np.array([(point.x, point.y) for point in predictor(picture, boxes[0]).parts()])
        brows, eyes, nose, mouth = points[17:27], points[36:48], points[30], points[48:60]
        assert brows[:, 1].mean() < eyes[:, 1].mean() < nose[1] < mouth[:, 1].mean() < points[8, 1]
        assert 35 < eyes[6:, 0].mean() - eyes[:6, 0].mean() < 70  # pixels between the eyes: about 0.235 x 224
        lift = (points[[51, 57], 1].mean() - points[[48, 54], 1].mean()) / np.ptp(mouth[:, 0])
        smile[path.parent.name].append(lift)
    assert sum(map(len, smile.values())) >= 0.9 * len(paths)
    assert np.mean(smile["happiness"]) > np.mean(smile["neutral"]) > np.mean(smile["sadness"])
