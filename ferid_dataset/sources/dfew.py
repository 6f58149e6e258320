"""DFEW: 16,372 clips of films, ten annotators each; 11,697 show a face and have one of 7 expressions; 5 folds.

Access: the password of the archives comes by e-mail, for non-commercial research; https://dfew-dataset.github.io/
On disk:

    EmoLabel_DataSplit/train(single-labeled)/set_1.csv   of folds 1 to 5, and test(single-labeled)/ likewise;
                                                         "(single_labeled)", as the official README has it, also goes
    Clip/clip_224x224/02522/*.jpg                        aligned faces, every frame; used when they are there,
    Clip/clip_224x224_16f/02522/*.jpg                    else these, interpolated to 16 frames,
    Clip/original/2522.mp4                               else the clips themselves, all in this one folder

1 happiness, 2 sadness, 3 neutral, 4 anger, 5 surprise, 6 disgust, 7 fear. The lists have the header video_name,label.
One row, of which the id is "dfew/02522" whatever the media:

    2522,5
"""

import os

import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_splits
from ferid_dataset.sources.base import Choices, Listed, Reading, Source, assemble, find
from ferid_dataset.sources.media_files import frame_folders, videos


def read(root: str, choices: Choices) -> Reading:
    """One fold; see the module's docstring for what must lie under `root`."""
    folder, file = "EmoLabel_DataSplit", f"set_{choices.fold}.csv"
    lists = {
        split: find(
            root, "DFEW", f"{folder}/{split}(single-labeled)/{file}", f"{folder}/{split}(single_labeled)/{file}"
        )
        for split in ("train", "test")
    }
    media = find(root, "DFEW", "Clip/clip_224x224", "Clip/clip_224x224_16f", "Clip/original")
    original = media.endswith("original")
    rows, rejected = read_splits(lists, ["name", "code"], delimiter=",", header="video_name")
    padded = pc.utf8_lpad(rows["name"], 5, padding="0")
    plain = pc.utf8_ltrim(padded, characters="0")
    columns = {
        "id": pc.binary_join_element_wise("dfew/", padded, ""),
        "split": rows["split"],
        "code": rows["code"],
        "name": pc.binary_join_element_wise(plain, ".mp4", "") if original else padded,
        "list": rows["list"],
        "line": rows["line"],
    }
    clips = videos if original else frame_folders
    return assemble(
        "dfew",
        "video",
        Listed(pa.table(columns), rejected),
        codes=dict(zip("1234567", CLASSES["dfew"], strict=True)),
        find_media=lambda names: clips(media, names, choices.frames),
        options=options_of("dfew"),
        layout=f"fold {choices.fold}, "
        f"{'video files' if original else 'frame folders'} of {os.path.relpath(media, root)}",
    )


SOURCE = Source(
    name="dfew",
    title="DFEW",
    page="https://dfew-dataset.github.io/",
    access="by e-mail request to the authors, who send the password of the archives",
    licence="non-commercial research and education only; the authors do not own the clips",
    citation="""@inproceedings{jiang2020dfew,
  title = {{DFEW}: A Large-Scale Database for Recognizing Dynamic Facial Expressions in the Wild},
  author = {Jiang, Xingxun and Zong, Yuan and Zheng, Wenming and Tang, Chuangao and Xia, Wanchuang and Lu, Cheng and
    Liu, Jiateng},
  booktitle = {Proceedings of the 28th ACM International Conference on Multimedia},
  pages = {2881--2889},
  year = {2020}
}""",
    media_type="video",
    marks=("EmoLabel_DataSplit",),
    read=read,
    counts={
        "train": dict(zip(CLASSES["dfew"], (1956, 1515, 2135, 1738, 1175, 116, 721), strict=True)),
        "test": dict(zip(CLASSES["dfew"], (489, 379, 534, 435, 294, 29, 181), strict=True)),
    },
)
