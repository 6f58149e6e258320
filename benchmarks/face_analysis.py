"""Face priors: what our analyzers cost a picture, against insightface's `FaceAnalysis` with every model of its pack.

    OMP_NUM_THREADS=1 python benchmarks/face_analysis.py
    OMP_NUM_THREADS=1 python benchmarks/face_analysis.py photos     with the error on the photographs in that folder

Cost. InsightFace's packs cannot be shipped: ONNX files of random weights stand in for them, with the same kinds of
layers, the same input sizes and about the same arithmetic. buffalo_l: SCRFD-10G at 640, 2d106, 1k3d68 (ResNet-50),
gender and age, IResNet-50. buffalo_s, of which we read no 1k3d68: SCRFD-500M at 320, 2d106, gender and age, a wide
MobileFaceNet. Each detector tells one face. The code around them is the real one on both sides: `FaceAnalysis.get`,
as insightface's own examples call it, with all models of buffalo_l; and ours with the settings that each line names.
dlib, the quickstart's backend, runs with its real weights. All take the same 512 x 512 photograph in turn, in one
process on one thread; a ratio is the median over the rounds of CPU time to CPU time.

Error. What a small input of the detector costs in landmarks needs real weights, so it is measured on dlib: the
distance of its 68 landmarks, detected at the quickstart's 320 pixels or with `assume_cropped`, to those of the same
picture detected at 640 (once more enlarged). Mean over points and faces, in percent of the distance of the eyes. The
photographs are those that scikit-image and insightface carry, each face cut out by its box, as datasets of faces have
them, at 224 pixels; or those of the folder, as they are.

Expected: buffalo_s at 320 costs less than a tenth of `FaceAnalysis`, embedding, age and gender included, and about a
thirtieth without. The smaller networks do most of that: with buffalo_l at 640, ours saves only 1k3d68 (1.1 x), or all
that is not detector and landmarks (1.6 x). dlib takes a fifth with its embedding, a twentieth without. On photographs
that faces fill, an error of about 2 % at 320, and 4 % (median 2 %) with `assume_cropped`.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import insightface
import numpy as np
import onnx
import onnxruntime
from insightface.app import FaceAnalysis
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from skimage.data import astronaut

from modeling_emo_llama.configuration_emo_llama import EYE_POINTS
from modeling_emo_llama.face_analysis import load_face_analyzer

ROUNDS = 7
FACE = np.array([180, 75, 278, 185]) / 512  # of the photograph, in its size

DEPTHWISE = 0


def separable(channels: int, stride: int = 1) -> list[tuple[int, int, int]]:
    return [(DEPTHWISE, 3, stride), (channels, 1, 1)]


def basic(channels: int, blocks: int) -> list[tuple[int, int, int]]:
    return [(channels, 3, 1), (channels, 3, 2)] + (blocks - 1) * [(channels, 3, 1), (channels, 3, 1)]


def bottleneck(channels: int, blocks: int, stride: int = 2) -> list[tuple[int, int, int]]:
    first, later = ([(channels, 1, 1), (channels, 3, step), (4 * channels, 1, 1)] for step in (stride, 1))
    return first + (blocks - 1) * later


def inverted(middle: int, channels: int, blocks: int) -> list[tuple[int, int, int]]:
    first, later = ([(middle, 1, 1), (DEPTHWISE, 3, step), (channels, 1, 1)] for step in (2, 1))
    return first + (blocks - 1) * later


def mobilenet(width: int) -> list[tuple[int, int, int]]:
    """MobileNet v1 whose first layer has `width` channels."""
    layers = [(width, 3, 2), *separable(2 * width)]
    for channels, blocks in (4, 2), (8, 2), (16, 6), (32, 2):
        layers += separable(channels * width, 2) + (blocks - 1) * separable(channels * width)
    return layers


# (channels, kernel, stride) of each layer
SCRFD_10G = [(28, 3, 2), (28, 3, 1), (56, 3, 1)] + [(56, 3, 2)] + 5 * [(56, 3, 1)] + [(88, 3, 2)] + 7 * [(88, 3, 1)]
SCRFD_10G += [(88, 3, 2)] + 3 * [(88, 3, 1)] + [(224, 3, 2)] + 5 * [(224, 3, 1)]
SCRFD_500M = [(16, 3, 2), *separable(16), *separable(40, 2), *(3 * separable(40)), *separable(72, 2)]
SCRFD_500M += [*(4 * separable(72)), *separable(152, 2), *(3 * separable(152)), *separable(288, 2), *separable(288)]
RESNET_50 = [(64, 7, 2), *bottleneck(64, 3), *bottleneck(128, 4), *bottleneck(256, 6), *bottleneck(512, 3)]
IRESNET_50 = [(64, 3, 1), *basic(64, 3), *basic(128, 4), *basic(256, 14), *basic(512, 3)]
MOBILEFACENET = [(128, 3, 2), *separable(96), *inverted(192, 96, 5), *inverted(384, 192, 7), *inverted(768, 192, 3)]
MOBILEFACENET += [(512, 1, 1)]


class Network:
    """Convolutions with activations in a row, of random weights, as an ONNX graph."""

    def __init__(self, side: int, layers: list[tuple[int, int, int]], activation: str):
        self.nodes, self.weights, self.outputs = [], [], []
        self.side, self.stride, self.activation, self.macs = side, 1, activation, 0
        self.random = np.random.default_rng(0)
        self.name, self.channels, self.at_stride = "data", 3, {}
        for channels, kernel, stride in layers:
            self.stride *= stride
            self.convolve(channels, kernel, stride)
            self.at_stride[self.stride] = self.name, self.channels

    def weight(self, *shape: int, fill: float | None = None) -> str:
        array = np.full(shape, fill) if fill is not None else self.random.standard_normal(shape)
        array = array if fill is not None else array * np.sqrt(2 / max(1, np.prod(shape[1:])))
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def constant(self, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, operator: str, *inputs: str, **attributes) -> None:
        output = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        self.name = output

    def convolve(self, channels: int, kernel: int, stride: int) -> None:
        groups = self.channels if channels == DEPTHWISE else 1
        channels = channels or self.channels
        weight = self.weight(channels, self.channels // groups, kernel, kernel)
        settings = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        self.add("Conv", self.name, weight, **settings)
        self.macs += channels * self.channels // groups * kernel**2 * (self.side // self.stride) ** 2
        slopes = [self.weight(channels, 1, 1, fill=0.25)] if self.activation == "PRelu" else []
        self.add(self.activation, self.name, *slopes)
        self.channels = channels

    def regress(self, size: int) -> "Network":
        """Ends in `size` numbers."""
        self.add("GlobalAveragePool", self.name)
        self.add("Flatten", self.name)
        self.add("MatMul", self.name, self.weight(self.channels, size))
        self.outputs.append((self.name, [1, size]))
        return self

    def detect(self, width: int) -> "Network":
        """Ends in SCRFD's scores, boxes and points at three strides, which tell one face where `FACE` says."""
        taps = {stride: self.at_stride[stride] for stride in (8, 16, 32)}
        heads = {}
        for self.stride, (self.name, self.channels) in taps.items():
            for _ in range(2):
                self.convolve(width, 3, 1) if width > 64 else [self.convolve(*layer) for layer in separable(width)]
            heads[self.stride] = self.name
        left, top, right, bottom = FACE * self.side
        for kind, size in ("score", 1), ("box", 4), ("points", 10):
            for stride, name in heads.items():
                cells = self.side // stride
                told = np.zeros((2 * cells**2, size), np.float32)
                if kind == "score" and stride == 32:
                    told[2 * (int((top + bottom) / 64) * cells + int((left + right) / 64))] = 0.9
                elif kind == "box":
                    told[:] = (right - left) / 2 / stride
                elif kind == "points":
                    told[:] = np.array([-1, -1, 1, -1, 0, 0, -1, 1, 1, 1]) * (right - left) / 6 / stride
                self.add("Conv", name, self.weight(2 * size, width, 1, 1))
                self.add("Transpose", self.name, perm=[0, 2, 3, 1])
                self.add("Reshape", self.name, self.constant(np.array([-1, size])))
                self.add("Mul", self.name, self.weight(1, fill=0))
                self.add("Add", self.name, self.constant(told))
                self.outputs.append((self.name, list(told.shape)))
        return self

    def save(self, file: Path) -> None:
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.outputs]
        data = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, self.side, self.side])
        graph = helper.make_graph(self.nodes, "network", [data], outputs, self.weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
        print(f"    {file.parent.name}/{file.stem:12} {self.macs / 1e9:7.3f} GMAC {file.stat().st_size / 1e6:6.1f} MB")


def make_packs(root: Path) -> tuple[Path, Path]:
    """Folders like buffalo_l and buffalo_s."""
    large, small = root / "buffalo_l", root / "buffalo_s"
    for folder in (large, small):
        folder.mkdir()
        Network(192, mobilenet(16), "PRelu").regress(212).save(folder / "2d106det.onnx")
        Network(96, mobilenet(8), "PRelu").regress(3).save(folder / "genderage.onnx")
    Network(640, SCRFD_10G, "Relu").detect(80).save(large / "det_10g.onnx")
    Network(192, RESNET_50, "Relu").regress(3309).save(large / "1k3d68.onnx")
    Network(112, IRESNET_50, "PRelu").regress(512).save(large / "w600k_r50.onnx")
    Network(320, SCRFD_500M, "Relu").detect(64).save(small / "det_500m.onnx")
    Network(112, MOBILEFACENET, "PRelu").regress(512).save(small / "w600k_mbf.onnx")
    return large, small


def face_analysis(folder: Path) -> Callable[[Image.Image], list]:
    """insightface's own way, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with contextlib.redirect_stdout(io.StringIO()):
        app = FaceAnalysis(str(folder), providers=["CPUExecutionProvider"], sess_options=options)
        app.prepare(0, det_size=(640, 640))
    return lambda image: app.get(np.ascontiguousarray(np.asarray(image)[..., ::-1]))


def compare_costs(root: Path) -> None:
    print("networks of random weights")
    large, small = make_packs(root)
    priors = {"embeddings": False, "attributes": False}
    image = Image.fromarray(astronaut())
    left, top, right, bottom = (FACE * 512).astype(int)
    crop = image.crop((left, top, right, bottom)).resize((100, 100))  # as RAF-DB's aligned faces
    theirs = face_analysis(large)
    ways = {"FaceAnalysis.get, buffalo_l at 640, all models": lambda: theirs(image)}
    ours, cropped, face = f"insightface:{small}", {"assume_cropped": True}, crop.resize((224, 224))
    for name, backend, settings, picture in [
        ("ours, buffalo_l at 640", f"insightface:{large}", {}, image),
        ("ours, buffalo_l at 640, landmarks only", f"insightface:{large}", priors, image),
        ("ours, buffalo_s at 320", ours, {}, image),
        ("ours, buffalo_s at 320, landmarks only", ours, priors, image),
        ("ours, buffalo_s, face crop", ours, cropped, crop),
        ("ours, buffalo_s, face crop, landmarks only", ours, priors | cropped, crop),
        ("dlib as in the quickstart, 224 pixels", "dlib", {}, face),
        ("dlib, 224 pixels, landmarks only", "dlib", priors, face),
        ("dlib, face crop, landmarks only", "dlib", priors | cropped, face),
    ]:
        analyze = load_face_analyzer(backend, **settings)
        ways[name] = lambda analyze=analyze, picture=picture: analyze([picture])[0]
    for name, run in ways.items():
        if len(run()) != 1:
            raise RuntimeError(f"{name} found {len(run())} faces, not the one")
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    print(f"CPU milliseconds a picture of one face, and how much cheaper; median of {ROUNDS} rounds")
    for name, times in seconds.items():
        ratios = [other / own for other, own in zip(next(iter(seconds.values())), times, strict=True)]
        print(f"    {name:48} {1000 * statistics.median(times):8.1f} ms {statistics.median(ratios):7.1f} x")


def packaged_faces() -> list[Image.Image]:
    """The faces in photographs that packages carry, cut out by their boxes."""
    folder = Path(insightface.__file__).parent / "data" / "images"
    photos = [Image.fromarray(astronaut()), *(Image.open(folder / name) for name in ("t1.jpg", "Tom_Hanks_54745.png"))]
    crops = []
    for photo in photos:
        for face in load_face_analyzer("dlib", embeddings=False, detector_size=1280)([photo.convert("RGB")])[0]:
            left, top, right, bottom = face.box
            width, height = right - left, bottom - top
            box = (left - 0.1 * width, top - 0.2 * height, right + 0.1 * width, bottom + 0.05 * height)
            crops.append(photo.convert("RGB").crop(tuple(map(round, box))).resize((224, 224)))
    return crops


def compare_landmarks(photos: list[Image.Image]) -> None:
    reference = load_face_analyzer("dlib", embeddings=False, detector_size=640)
    found = [(photo, faces[0]) for photo, faces in zip(photos, reference(photos), strict=True) if faces]
    print(f"landmark error on {len(found)} real faces, % of the distance of the eyes")
    for name, settings in {
        "detector at 320, as in the quickstart": {},
        "no detector (assume_cropped)": {"assume_cropped": True},
    }.items():
        analyze, errors = load_face_analyzer("dlib", embeddings=False, **settings), []
        for photo, face in found:
            for other in analyze([photo])[0][:1]:
                left, right = (face.landmarks[list(points)].mean(0) for points in EYE_POINTS[68])
                distance = np.linalg.norm(other.landmarks - face.landmarks, axis=1).mean()
                errors.append(100 * distance / np.linalg.norm(right - left))
        told = f"mean {statistics.mean(errors):.1f}, median {statistics.median(errors):.1f}"
        print(f"    {name:40} {told}, {len(errors)} found")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", nargs="?", type=Path, help="folder of photographs of one face each")
    folder = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as root:
        compare_costs(Path(root))
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".png")) if folder else []
    compare_landmarks([Image.open(file).convert("RGB") for file in files] if folder else packaged_faces())


if __name__ == "__main__":
    main()
