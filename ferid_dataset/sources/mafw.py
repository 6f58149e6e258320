"""MAFW: 10,045 clips of films, series and shows; 9,172 have one of 11 expressions, 8,996 one of 43; 5 folds.

Access: by a signed form of an academic, for non-commercial research only; https://mafw-database.github.io/MAFW/
On disk:

    Train & Test Set/single/no_caption/set_1/train.txt     of folds 1 to 5, and test.txt
    Train & Test Set/single/with_caption/set_1/train.txt   clip, label, caption in Chinese and in English between tabs,
                                                           not UTF-8, no neutral clips; read for labels only without
                                                           the lists above
    Train & Test Set/compound/...                          likewise, with compound expressions such as anger_disgust
    data/frames/00025/*.jpg                                used when they are there,
    data/clips/00025.mp4                                   else these
    Labels(auto)/gender.txt                                "00019: 1"; which code means male is published nowhere

anger, disgust, fear, happiness, neutral, sadness, surprise, contempt, anxiety, helplessness, disappointment; compounds
of two or three make 43 classes. One row:

    00025.mp4 anger
"""

import os
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.labels import CLASSES, canonical
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_list, read_splits
from ferid_dataset.sources.base import ATTRIBUTES, Choices, Listed, Reading, Source, assemble, find
from ferid_dataset.sources.media_files import frame_folders, videos

SETS = "Train & Test Set"


def read(root: str, choices: Choices) -> Reading:
    """One fold; see the module's docstring for what must lie under `root`."""
    sets, fold = f"{SETS}/{choices.mafw_labels}", f"set_{choices.fold}"
    folder = find(root, "MAFW", f"{sets}/no_caption/{fold}", f"{sets}/with_caption/{fold}")
    captioned = folder.endswith(f"with_caption/{fold}")
    media = find(root, "MAFW", "data/frames", "data/clips")
    framed = media.endswith("frames")
    rows, rejected = read_splits(
        {split: f"{folder}/{split}.txt" for split in ("train", "test")},
        ["name", "code", "chinese", "english"] if captioned else ["name", "code"],
        delimiter="\t" if captioned else " ",
        keep=["name", "code"],
    )
    stems = pc.replace_substring_regex(rows["name"], r"\.mp4$", "")
    columns = {
        "id": pc.binary_join_element_wise("mafw/", stems, ""),
        "split": rows["split"],
        "code": rows["code"],
        "name": stems if framed else pc.binary_join_element_wise(stems, ".mp4", ""),
        "list": rows["list"],
        "line": rows["line"],
    }
    compounds = _compounds(rows["code"]) if choices.mafw_labels == "compound" else []
    clips = frame_folders if framed else videos
    return assemble(
        "mafw",
        "video",
        Listed(pa.table(columns), rejected),
        codes={code: code for code in (*CLASSES["mafw"], *compounds)},
        find_media=lambda names: clips(media, names, choices.frames),
        options=[*options_of("mafw"), *map(canonical, compounds)],
        attributes=_genders(root, choices.mafw_male) if choices.mafw_male else None,
        layout=f"{choices.mafw_labels} labels of fold {choices.fold}, "
        f"{'frame folders' if framed else 'video files'} of {os.path.relpath(media, root)}"
        f"{'; lists with captions, which leave out the neutral clips' if captioned else ''}",
    )


def read_captions(root: str, choices: Choices) -> dict[str, str]:
    """The English captions of a fold by id: `{"mafw/00025": "A man speaks excitedly. The deep frown."}`

    Raises:
        FeridError: a list with captions is missing.
    """
    captions = {}
    for split in ("train", "test"):
        folder = f"{SETS}/{choices.mafw_labels}/with_caption/set_{choices.fold}"
        path = find(root, "MAFW", f"{folder}/{split}.txt")
        with open(path, "rb") as lines:
            for line in lines:
                name, *others = line.strip().split(b"\t")
                if len(others) == 3:
                    captions[f"mafw/{_text(name).removesuffix('.mp4')}"] = _text(others[2])
    return captions


def _text(field: bytes) -> str:
    """UTF-8, else in the encoding of the Chinese that stands beside."""
    try:
        return field.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return field.decode("gb18030", errors="replace").strip()


def _compounds(codes: pa.ChunkedArray) -> list[str]:
    """The compound labels that occur, sorted: expressions joined by "_" in the order of their indices."""
    found = (code for code in pc.unique(codes).to_pylist() if "_" in code)
    return sorted(code for code in found if code == "_".join(c for c in CLASSES["mafw"] if c in code.split("_")))


def _genders(root: str, male: str) -> Callable[[pa.Table], pa.Array]:
    """Reads the gender of each clip; `male` is the code of men."""
    rows, _ = read_list(find(root, "MAFW", "Labels(auto)/gender.txt"), ["clip", "code"], delimiter=":")
    word = {male: "male", str(1 - int(male)): "female"}
    genders = {f"mafw/{row['clip']}": word.get(row["code"]) for row in rows.to_pylist()}
    return lambda rows: pa.array([{"gender": genders.get(name)} for name in rows["id"].to_pylist()], ATTRIBUTES)


SOURCE = Source(
    name="mafw",
    title="MAFW",
    page="https://mafw-database.github.io/MAFW/",
    access="by e-mail of a signed form to the authors, for academics",
    licence="non-commercial research only; no copying or publishing of clips",
    citation="""@inproceedings{liu2022mafw,
  title = {{MAFW}: A Large-scale, Multi-modal, Compound Affective Database for Dynamic Facial Expression Recognition in
    the Wild},
  author = {Liu, Yuanyuan and Dai, Wei and Feng, Chuanxu and Wang, Wenbin and Yin, Guanghao and Zeng, Jiabei and
    Shan, Shiguang},
  booktitle = {Proceedings of the 30th ACM International Conference on Multimedia},
  pages = {24--32},
  year = {2022}
}""",
    media_type="video",
    marks=("Train & Test Set",),
    read=read,
    counts={
        "train": dict(zip(CLASSES["mafw"], (1112, 511, 500, 993, 910, 1176, 857, 188, 732, 209, 145), strict=True)),
        "test": dict(zip(CLASSES["mafw"], (278, 128, 125, 249, 228, 294, 215, 48, 184, 53, 37), strict=True)),
    },
)
