"""Find the faces in pictures: box, landmarks, identity embedding, age and gender.

One protocol for every backend: `analyzer(images) -> one list of `Face` a picture, the largest face first`, so that the
processor (a picture at a time) and `ferid build --faces` (in bulk) run the same code. A face of a 224 x 224 picture:

    Face(box=[47, 66, 176, 195], score=1.9, landmarks=float32[68, 2], embedding=float32[128] of unit norm)

    load_face_analyzer("dlib")                         68 landmarks, embedding of 128; weights arrive in a package
    load_face_analyzer("insightface")                  106, 512, age, gender; models of ~/.insightface/models/buffalo_l
    load_face_analyzer("insightface:/models/mine", assume_cropped=True, embeddings=False)

Boxes and landmarks are pixels of the picture that was given, x to the right and y down; a box may reach a little
beyond the picture's edge. Embeddings identify people: they are biometric data and stay on the machine.
"""

import importlib.util
import warnings
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
    score: float  # the detector's own confidence; scales differ between backends; 1 where no detector looked
    landmarks: np.ndarray  # float32 [points, 2]
    embedding: np.ndarray | None = None  # float32 [size], unit norm
    age: float | None = None  # years
    gender: str | None = None  # "female" or "male"

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return float((right - left) * (bottom - top))


@dataclass(frozen=True)
class FaceSettings:
    """What an analyzer does; what is off is neither run nor loaded.

    Args:
        detector_size (`int`, defaults to 320): pixels of the longer side of what the detector sees. insightface fits
            every picture into a square of that side, a multiple of 32 (a detector exported for one size keeps its
            own). dlib enlarges smaller pictures to it and leaves larger ones as they are.
        assume_cropped (`bool`, defaults to `False`): the pictures are face crops (aligned RAF-DB, AffectNet), so no
            detector looks: each picture has one face, and its box is the picture.
        embeddings (`bool`, defaults to `True`): tell the identity embedding.
        attributes (`bool`, defaults to `True`): tell age and gender, if the backend or the pack has a model for them.
        max_faces (`int`, *optional*): only the largest faces of a picture are looked at closely and told.
    """

    detector_size: int = 320
    assume_cropped: bool = False
    embeddings: bool = True
    attributes: bool = True
    max_faces: int | None = None


class FaceAnalyzer(Protocol):
    def __call__(self, images: list[Image.Image]) -> list[list[Face]]: ...


class DlibFaceAnalyzer:
    """dlib: HOG detector, 68 landmarks (iBUG 300-W order), 128-d ResNet embedding; no age, gender or race.

    The weights arrive in the package `face-recognition-models`; only its data files are used (importing it needs
    `pkg_resources`, which setuptools has dropped). About 100 ms a picture on one core, most of it the embedding.
    """

    num_landmarks, embedding_size = 68, 128
    margin = 0.25  # edge pixels repeated around: face crops, cut at brow and chin, are found 2 % more often
    threshold = -0.4  # below dlib's 0.0: 3 % more of small photographs; only the best such find is kept

    def __init__(self, settings: FaceSettings):
        try:
            import dlib
        except ImportError as error:
            raise ImportError("The dlib face backend needs: pip install 'emo-llama[quickstart]'") from error
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None:
            raise ImportError("dlib's weights are missing: pip install face-recognition-models")
        models = Path(spec.origin).parent / "models"
        self.settings = settings
        self.rectangle = dlib.rectangle
        self.detector = None if settings.assume_cropped else dlib.get_frontal_face_detector()
        self.predictor = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))
        self.encoder = None
        if settings.embeddings:
            self.encoder = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, images: list[Image.Image]) -> list[list[Face]]:
        return [self.analyze(image) for image in images]

    def analyze(self, image: Image.Image) -> list[Face]:
        scale = max(1.0, self.settings.detector_size / max(image.size))
        size = round(image.width * scale), round(image.height * scale)
        pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        margin = round(self.margin * max(size))
        pixels = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        faces = []
        for box, score in self.boxes(pixels, margin):
            shape = self.predictor(pixels, box)
            landmarks = np.array([(point.x, point.y) for point in shape.parts()], np.float32)
            corners = np.array([box.left(), box.top(), box.right(), box.bottom()], np.float32)
            embedding = None
            if self.encoder:
                embedding = np.array(self.encoder.compute_face_descriptor(pixels, shape), np.float32)
                embedding /= np.linalg.norm(embedding)
            faces.append(Face((corners - margin) / scale, score, (landmarks - margin) / scale, embedding))
        return faces

    def boxes(self, pixels: np.ndarray, margin: int) -> list:
        """(dlib's rectangle, score) of each face, the largest first."""
        if self.settings.assume_cropped:
            height, width = pixels.shape[:2]
            return [(self.rectangle(margin, margin, width - margin, height - margin), 1.0)]
        boxes, scores, _ = self.detector.run(pixels, 0, self.threshold)  # best score first
        found = [
            (box, score)
            for rank, (box, score) in enumerate(zip(boxes, scores, strict=True))
            if rank == 0 or score >= max(0.0, scores[0] / 2)  # far less like a face than the best one: a false find
        ]
        return sorted(found, key=lambda item: item[0].area(), reverse=True)[: self.settings.max_faces]


class InsightFaceAnalyzer:
    """insightface: SCRFD detector, 106 landmarks, 512-d ArcFace embedding, age and gender.

    The models are the user's: InsightFace's pretrained packs (buffalo_l, buffalo_s, antelopev2) are for non-commercial
    research only, so none arrives with this project and none is downloaded. insightface's own classes prepare a
    model's input and read its output; only the models that the settings need are opened, on the CPU and on one thread
    (many pictures: many processes). The order of the points: `LANDMARK_REGIONS[106]`.

    Args:
        settings (`FaceSettings`).
        pack (`str`, defaults to `"buffalo_l"`): a folder of ONNX files, or the name of one in `~/.insightface/models`.

    Raises:
        ValueError: there is no such pack, it lacks a model that is needed, or a file of it cannot be read.
        ImportError: insightface is not installed.
    """

    num_landmarks, embedding_size = 106, 512
    threshold = 0.5  # insightface's own
    # The input's side in pixels tells what a model is for; a detector, which takes any size, has 6 outputs or more.
    tasks_by_side = {192: "landmark_2d_106", 112: "recognition", 96: "genderage"}
    # Of the 106 points those that ArcFace aligns by: centres of the eyes, tip of the nose, corners of the mouth.
    alignment_points = [34, 88, 86, 52, 61]

    def __init__(self, settings: FaceSettings, pack: str = "buffalo_l"):
        if settings.detector_size < 32 or settings.detector_size % 32:
            raise ValueError(f"detector_size={settings.detector_size} is no multiple of 32, as insightface needs it")
        folder = Path(pack).expanduser()
        if not folder.is_dir():
            folder = Path.home() / ".insightface" / "models" / pack
        files = sorted(folder.glob("*.onnx"), key=lambda file: file.stat().st_size)  # the large ones last
        if not files:
            raise ValueError(
                f"there is no InsightFace model pack {pack!r}: unpack its .onnx files into {folder}, or name their "
                f"folder with insightface:FOLDER (InsightFace's pretrained packs, such as buffalo_l, are for "
                f"non-commercial research only; github.com/deepinsight/insightface tells where they are)"
            )
        needed = {"landmark_2d_106"}
        needed |= set() if settings.assume_cropped else {"detection"}
        needed |= {"recognition"} if settings.embeddings else set()
        self.settings = settings
        self.models = self.open_models(files, needed | ({"genderage"} if settings.attributes else set()))
        if missing := needed - self.models.keys():
            raise ValueError(
                f"the InsightFace model pack {folder} has no model for {', '.join(sorted(missing))}: copy its files "
                f"again, or name another pack with insightface:NAME"
            )
        # insightface calls a function that scikit-image has renamed, once a face
        warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")

    def open_models(self, files: list[Path], wanted: set[str]) -> dict:
        """The wanted models, by insightface's names of their tasks; of `files` no more is opened than is needed."""
        try:
            import onnx
            import onnxruntime
            from google.protobuf.message import DecodeError
            from insightface.app.common import Face as FoundFace
            from insightface.model_zoo import arcface_onnx, attribute, landmark, scrfd
        except ImportError as error:
            raise ImportError("The insightface face backend needs: pip install insightface") from error
        self.found_face = FoundFace
        classes = {
            "detection": scrfd.SCRFD,
            "landmark_2d_106": landmark.Landmark,
            "recognition": arcface_onnx.ArcFaceONNX,
            "genderage": attribute.Attribute,
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        models = {}
        for file in files:
            if wanted <= models.keys():
                break
            try:
                graph = onnx.load(file, load_external_data=False).graph
            except DecodeError as error:
                raise ValueError(f"{file} is not whole, copy it again ({error})") from error
            weights = {weight.name for weight in graph.initializer}  # old exports list them among the inputs
            inputs = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in weights]
            side = inputs[0][2].dim_value if len(inputs[0]) == 4 else None
            task = "detection" if len(graph.output) > 5 else self.tasks_by_side.get(side)
            if task in wanted - models.keys():
                session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
                model = classes[task](str(file), session)
                if model.taskname == task:  # and not the 68 landmarks in 3-D, whose input is as large
                    models[task] = model
        return models

    def __call__(self, images: list[Image.Image]) -> list[list[Face]]:
        return [self.analyze(image) for image in images]

    def analyze(self, image: Image.Image) -> list[Face]:
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])  # blue first, as in OpenCV
        faces = []
        for box, score, points in self.boxes(pixels):
            found = self.found_face(bbox=box, kps=points)
            landmarks = self.models["landmark_2d_106"].get(pixels, found)
            face = Face(box, score, landmarks)
            if "recognition" in self.models:
                if points is None:
                    found.kps = landmarks[self.alignment_points]
                self.models["recognition"].get(pixels, found)
                face.embedding = found.normed_embedding
            if "genderage" in self.models:
                gender, age = self.models["genderage"].get(pixels, found)
                face.age, face.gender = float(age), ("female", "male")[gender]
            faces.append(face)
        return faces

    def boxes(self, pixels: np.ndarray) -> list[tuple[np.ndarray, float, np.ndarray | None]]:
        """(box, score, five points, if the detector tells them) of each face, the largest first."""
        height, width = pixels.shape[:2]
        if self.settings.assume_cropped:
            return [(np.array([0, 0, width, height], np.float32), 1.0, None)]
        side = self.settings.detector_size
        if side * min(height, width) < max(height, width):  # nothing would be left of such a strip
            return []
        found, points = self.models["detection"].detect(pixels, (side, side), det_thresh=self.threshold)
        points = [None] * len(found) if points is None else points
        boxes = [(box[:4], float(box[4]), five) for box, five in zip(found, points, strict=True)]
        return sorted(boxes, key=lambda item: -np.prod(item[0][2:] - item[0][:2]))[: self.settings.max_faces]


ANALYZERS = {"dlib": DlibFaceAnalyzer, "insightface": InsightFaceAnalyzer}


def analyzer_class(name: str) -> type:
    """The class of a backend, which knows how many landmarks and how long an embedding it tells.

    Args:
        name: "dlib", "insightface", or "insightface:" and a model pack's name or folder.

    Raises:
        ValueError: no backend has that name.
    """
    backend, _, pack = name.partition(":")
    if backend not in ANALYZERS or (pack and backend != "insightface"):
        raise ValueError(f"no face backend is named {name!r}: choose one of {', '.join(ANALYZERS)}")
    return ANALYZERS[backend]


@cache
def load_face_analyzer(name: str, **settings) -> FaceAnalyzer:
    """The analyzer of that name, loaded once a process.

    Args:
        name: "dlib", "insightface", or "insightface:" and a model pack's name or folder.
        settings: fields of [`FaceSettings`].

    Raises:
        ValueError: no backend has that name, or its model pack is missing or not whole.
        ImportError: the backend's package or weights are missing; says which extra to install.
    """
    pack = name.partition(":")[2]
    return analyzer_class(name)(FaceSettings(**settings), *[pack] if pack else [])
