"""Find the faces in pictures: box, landmarks, identity embedding.

One protocol for every backend: `analyzer(images) -> one list of `Face` a picture, the largest face first`, so that the
processor (a picture at a time) and `ferid build --faces` (in bulk) run the same code. A face of a 224 x 224 picture:

    Face(box=[47, 66, 176, 195], score=1.9, landmarks=float32[68, 2], embedding=float32[128] of unit norm)

Boxes and landmarks are pixels of the picture that was given, x to the right and y down; a box may reach a little
beyond the picture's edge. Embeddings identify people: they are biometric data and stay on the machine.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


@dataclass
class Face:
    """One face in one picture; pixels of that picture."""

    box: np.ndarray  # float32 [4]: left, top, right, bottom
    score: float  # the detector's own confidence; scales differ between backends
    landmarks: np.ndarray  # float32 [points, 2]
    embedding: np.ndarray | None = None  # float32 [size], unit norm
    age: float | None = None  # years
    gender: str | None = None  # "female" or "male"

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


class FaceAnalyzer(Protocol):
    def __call__(self, images: list[Image.Image]) -> list[list[Face]]: ...


class DlibFaceAnalyzer:
    """dlib: HOG detector, 68 landmarks (iBUG 300-W order), 128-d ResNet embedding; no age, gender or race.

    The weights arrive in the package `face-recognition-models`; only its data files are used (importing it needs
    `pkg_resources`, which setuptools has dropped). About 100 ms a picture on one core, most of it the embedding.
    """

    least_side = 320  # the detector's smallest face has 80 pixels, so smaller pictures are enlarged to this
    margin = 0.25  # edge pixels repeated around: face crops, cut at brow and chin, are found 2 % more often
    threshold = -0.4  # below dlib's 0.0: 3 % more of small photographs; only the best such find is kept

    def __init__(self):
        try:
            import dlib
        except ImportError as error:
            raise ImportError("The dlib face backend needs: pip install 'emo-llama[quickstart]'") from error
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None:
            raise ImportError("dlib's weights are missing: pip install face-recognition-models")
        models = Path(spec.origin).parent / "models"
        self.detector = dlib.get_frontal_face_detector()
        self.predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self.encoder = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, images: list[Image.Image]) -> list[list[Face]]:
        return [self.analyze(image) for image in images]

    def analyze(self, image: Image.Image) -> list[Face]:
        scale = max(1.0, self.least_side / max(image.size))
        size = round(image.width * scale), round(image.height * scale)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        margin = round(self.margin * max(size))
        pixels = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        boxes, scores, _ = self.detector.run(pixels, 0, self.threshold)  # best score first
        faces = []
        for box, score in zip(boxes, scores, strict=True):
            if faces and score < max(0.0, faces[0].score / 2):  # far less like a face than the best one: a false find
                break
            shape = self.predictor(pixels, box)
            landmarks = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
            corners = np.array([box.left(), box.top(), box.right(), box.bottom()], np.float32)
            embedding = np.array(self.encoder.compute_face_descriptor(pixels, shape), np.float32)
            embedding /= np.linalg.norm(embedding)
            faces.append(Face((corners - margin) / scale, score, (landmarks - margin) / scale, embedding))
        return sorted(faces, key=lambda face: face.area, reverse=True)


ANALYZERS = {"dlib": DlibFaceAnalyzer}


@cache
def load_face_analyzer(name: str) -> FaceAnalyzer:
    """The analyzer of that name, loaded once a process.

    Raises:
        ValueError: no backend has that name.
        ImportError: the backend's package or weights are missing; says which extra to install.
    """
    if name not in ANALYZERS:
        raise ValueError(f"no face backend is named {name!r}: choose one of {', '.join(ANALYZERS)}")
    return ANALYZERS[name]()
