"""The dlib backend on a photograph that scikit-image carries: NASA's portrait of Eileen Collins (public domain)."""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut, coffee
from transformers.dynamic_module_utils import get_imports

from modeling_emo_llama import face_analysis
from modeling_emo_llama.face_analysis import DlibFaceAnalyzer, FaceSettings, load_face_analyzer

EYES, MOUTH = slice(36, 48), slice(48, 68)  # of the 68 points


@pytest.fixture(scope="module")
def analyzer():
    return load_face_analyzer("dlib")


@pytest.fixture(scope="module")
def portrait():
    return Image.fromarray(astronaut())


@pytest.fixture(scope="module")
def face(analyzer, portrait):
    [[face]] = analyzer([portrait])
    return face


def test_one_face_inside_the_picture(face, portrait):
    left, top, right, bottom = face.box
    assert 0 <= left < right <= portrait.width and 0 <= top < bottom <= portrait.height
    assert face.area == (right - left) * (bottom - top) > 60**2
    assert face.landmarks.shape == (68, 2) and face.landmarks.dtype == face.box.dtype == np.float32
    assert (face.landmarks >= 0).all() and (face.landmarks < portrait.size).all()
    assert face.landmarks[EYES, 1].max() < face.landmarks[MOUTH, 1].min(), "y points down, eyes are above the mouth"
    assert (left < face.landmarks[EYES, 0]).all() and (face.landmarks[EYES, 0] < right).all()
    assert face.score > 0 and face.age is None and face.gender is None


def test_embedding_tells_the_person(face, analyzer, portrait):
    assert face.embedding.shape == (128,) and face.embedding.dtype == np.float32
    assert np.linalg.norm(face.embedding) == pytest.approx(1, abs=1e-5)
    [[mirrored]] = analyzer([portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert face.embedding @ mirrored.embedding > 0.9


def test_picture_without_face(analyzer, portrait):
    found = analyzer([Image.fromarray(coffee()), portrait])
    assert found[0] == [] and len(found[1]) == 1, "one answer a picture, in order"


def test_coordinates_are_of_the_picture_that_was_given(face, analyzer, portrait):
    [[half]] = analyzer([portrait.resize((256, 256))])  # is enlarged for the detector
    assert np.abs(2 * half.landmarks - face.landmarks).max() < 4
    assert np.abs(2 * half.box - face.box).max() < 0.3 * (face.box[2] - face.box[0]), "the detector's steps are coarse"

    cut = portrait.crop((160, 40, 300, 220))  # gets a margin, and is not square
    [[inside]] = analyzer([cut])
    assert np.abs(inside.landmarks + (160, 40) - face.landmarks).max() < 4


def test_colour_modes(face, analyzer, portrait):
    for mode in ("L", "RGBA", "P"):
        [[found]] = analyzer([portrait.convert(mode)])
        assert np.abs(found.landmarks - face.landmarks).max() < 4, mode


def test_largest_face_first(analyzer, portrait):
    head = portrait.crop((140, 20, 320, 220))
    canvas = Image.new("RGB", (600, 360), "gray")
    canvas.paste(head, (20, 20))
    canvas.paste(head.resize((288, 320)), (280, 20))
    [found] = analyzer([canvas])
    assert len(found) == 2
    assert found[0].area > found[1].area and found[0].box[0] > 280 > found[1].box[2]


def test_only_the_largest(analyzer, portrait):
    head = portrait.crop((140, 20, 320, 220))
    canvas = Image.new("RGB", (600, 360), "gray")
    canvas.paste(head, (20, 20))
    canvas.paste(head.resize((288, 320)), (280, 20))
    [[largest]] = load_face_analyzer("dlib", max_faces=1)([canvas])
    np.testing.assert_array_equal(largest.landmarks, analyzer([canvas])[0][0].landmarks)


def test_no_embedding_where_none_is_wanted(face, portrait):
    analyzer = load_face_analyzer("dlib", embeddings=False)
    [[found]] = analyzer([portrait])
    assert found.embedding is None and analyzer.encoder is None
    np.testing.assert_array_equal(found.landmarks, face.landmarks)


def test_face_crops_need_no_detector(face, portrait):
    left, top, right, bottom = (int(x) for x in face.box)
    crop = portrait.crop((left - 8, top - 14, right + 8, bottom + 4))
    analyzer = load_face_analyzer("dlib", assume_cropped=True)
    [[found]] = analyzer([crop])
    np.testing.assert_allclose(found.box, [0, 0, *crop.size], atol=0.1)
    assert found.score == 1 and analyzer.detector is None
    assert np.abs(found.landmarks + (left - 8, top - 14) - face.landmarks).max() < 8
    assert found.embedding @ face.embedding > 0.9
    [[found]] = analyzer([Image.fromarray(coffee())])
    assert found.box.tolist() == [0, 0, 600, 400], "nobody looks whether it is a face"


def test_detector_size(portrait):
    crowd = portrait.crop((99, 0, 355, 256)).resize((96, 96))  # a face of 33 pixels: enlarged to 320 it has 110
    assert len(load_face_analyzer("dlib")([crowd])[0]) == 1
    assert load_face_analyzer("dlib", detector_size=96)([crowd]) == [[]]


@pytest.mark.parametrize("name", ["deepface", "dlib:pack", ""])
def test_unknown_backend(name):
    with pytest.raises(ValueError, match=f"no face backend is named '{name}': choose one of dlib, insightface"):
        load_face_analyzer(name)


def test_nothing_of_a_backend_is_needed_to_read_the_file():
    needed = set(get_imports(face_analysis.__file__)) - sys.stdlib_module_names
    assert needed == {"numpy", "PIL"}, "as transformers asks of remote code"


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ImportError, match=r"pip install 'emo-llama\[quickstart\]'"):
        DlibFaceAnalyzer(FaceSettings())


def test_missing_weights_name_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install face-recognition-models"):
        DlibFaceAnalyzer(FaceSettings())
