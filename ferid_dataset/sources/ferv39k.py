"""FERV39k: 38,935 clips of about 4,000 videos, in 22 scenes such as Crime and Talkshow, with 7 expressions.

Access: by e-mail from a university address, for non-commercial research only; https://github.com/wangyanckxx/FERV39k
On disk:

    4_setups/All_scenes/train_All.csv                 and test_All.csv, without a header; also All_scenes/ alone
    2_ClipsforFaceCrop/Action/Happy/0267/*.jpg        <scene>/<expression>/<clip>/, face crops, every frame;
                                                      also 2_ClipsforFaceCrop/2_ClipsforFaceCrop/

Happy, Sad, Neutral, Angry, Surprise, Disgust, Fear. The folder of a clip tells its label a second time; a row in which
the two differ is rejected. One row:

    Action/Happy/0267 Happy
"""

import os

import pyarrow.compute as pc

from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_splits
from ferid_dataset.sources.base import Choices, Listed, Reading, Rejected, Source, assemble, find
from ferid_dataset.sources.media_files import frame_folders

CODES = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")


def read(root: str, choices: Choices) -> Reading:
    """The setup of all scenes; see the module's docstring for what must lie under `root`."""
    lists = {
        split: find(root, "FERV39k", f"4_setups/All_scenes/{split}_All.csv", f"All_scenes/{split}_All.csv")
        for split in ("train", "test")
    }
    media = find(root, "FERV39k", "2_ClipsforFaceCrop/2_ClipsforFaceCrop", "2_ClipsforFaceCrop")
    rows, rejected = read_splits(lists, ["name", "code"], delimiter=" ")
    rows = rows.append_column("id", pc.binary_join_element_wise("ferv39k/", rows["name"], ""))
    agrees = pc.equal(pc.replace_substring_regex(rows["name"], r"^[^/]+/([^/]+)/[^/]+$", r"\1"), rows["code"])
    for row in rows.filter(pc.invert(agrees)).to_pylist():
        reason = f"its folder is not one of its label: {row['code']}"
        rejected.append(Rejected(row["id"], f"{row['list']}:{row['line']}", reason))
    return assemble(
        "ferv39k",
        "video",
        Listed(rows.filter(agrees), rejected),
        codes=dict(zip(CODES, CLASSES["ferv39k"], strict=True)),
        find_media=lambda names: frame_folders(media, names, choices.frames),
        options=options_of("ferv39k"),
        layout=f"all scenes, frame folders of {os.path.relpath(media, root)}",
    )


SOURCE = Source(
    name="ferv39k",
    title="FERV39k",
    page="https://github.com/wangyanckxx/FERV39k",
    access="by e-mail request to the authors from a university address",
    licence="non-commercial research only; no copying or publishing of clips",
    citation="""@inproceedings{wang2022ferv39k,
  title = {{FERV39k}: A Large-Scale Multi-Scene Dataset for Facial Expression Recognition in Videos},
  author = {Wang, Yan and Sun, Yixuan and Huang, Yiwen and Liu, Zhongying and Gao, Shuyong and Zhang, Wei and
    Ge, Weifeng and Zhang, Wenqiang},
  booktitle = {CVPR},
  pages = {20922--20931},
  year = {2022}
}""",
    media_type="video",
    marks=("4_setups/All_scenes", "All_scenes", "2_ClipsforFaceCrop"),
    read=read,
    counts={
        "train": dict(zip(CLASSES["ferv39k"], (5854, 5523, 7790, 5906, 2502, 1833, 1680), strict=True)),
        "test": dict(zip(CLASSES["ferv39k"], (1473, 1393, 1958, 1487, 638, 467, 431), strict=True)),
    },
)
