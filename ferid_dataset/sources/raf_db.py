"""RAF-DB, the basic set: 15,339 stills found on the Internet, 7 expressions, each judged by about 40 people.

Access: by e-mail request, for non-commercial research only; http://www.whdeng.cn/RAF/model1.html
On disk (`basic/` may also be the root itself):

    basic/EmoLabel/list_patition_label.txt               its name is spelt so
    basic/Image/aligned/train_00001_aligned.jpg          100 x 100 pixels; used when they are there,
    basic/Image/original/train_00001.jpg                 else these
    basic/Annotation/manual/train_00001_manu_attri.txt   optional: 5 landmarks, then gender, race, age, a line each

1 surprise, 2 fear, 3 disgust, 4 happiness, 5 sadness, 6 anger, 7 neutral. Gender: 0 male, 1 female, 2 unsure. Race:
0 Caucasian, 1 African-American, 2 Asian. Age: 0 to 4 are 0-3, 4-19, 20-39, 40-69 and 70+ years. One row of the list:

    train_00001.jpg 5
"""

import os
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_list
from ferid_dataset.sources.base import ATTRIBUTES, Choices, Listed, Reading, Source, assemble, find
from ferid_dataset.sources.media_files import stills

LIST = "EmoLabel/list_patition_label.txt"
GENDERS = {"0": "male", "1": "female"}
RACES = {"0": "Caucasian", "1": "African-American", "2": "Asian"}
AGES = {"0": "0-3", "1": "4-19", "2": "20-39", "3": "40-69", "4": "70+"}


def read(root: str, choices: Choices) -> Reading:
    """The basic set; see the module's docstring for what must lie under `root`."""
    path = find(root, "RAF-DB", f"basic/{LIST}", LIST)
    basic = path.removesuffix(f"/{LIST}")
    images = find(basic, "RAF-DB", "Image/aligned", "Image/original")
    rows, rejected = read_list(path, ["name", "code"], delimiter=" ")
    stems = pc.replace_substring_regex(rows["name"], r"\.jpg$", "")
    aligned = images.endswith("aligned")
    columns = {
        "id": pc.binary_join_element_wise("raf_db/", stems, ""),
        "split": pc.struct_field(pc.extract_regex(rows["name"], r"^(?P<split>train|test)_"), "split"),
        "code": rows["code"],
        "name": pc.binary_join_element_wise(stems, "_aligned.jpg" if aligned else ".jpg", ""),
        "list": rows["list"],
        "line": rows["line"],
    }
    return assemble(
        "raf_db",
        "image",
        Listed(pa.table(columns), rejected),
        codes=dict(zip("1234567", CLASSES["raf_db"], strict=True)),
        find_media=partial(stills, images),
        options=options_of("raf_db"),
        attributes=lambda rows: _attributes(os.path.join(basic, "Annotation/manual"), rows["id"]),
        layout=f"{'aligned' if aligned else 'original'} pictures of the basic set",
    )


def _attributes(folder: str, ids: pa.ChunkedArray) -> pa.Array:
    """Age group, gender and race where an annotation has been unpacked, else null."""
    if not os.path.isdir(folder):
        return pa.nulls(len(ids), ATTRIBUTES)
    found = []
    for name in ids.to_pylist():
        try:
            with open(
                f"{folder}/{name.removeprefix('raf_db/')}_manu_attri.txt", encoding="ascii", errors="replace"
            ) as f:
                gender, race, age = [line.strip() for line in f][5:8]
        except (OSError, ValueError):
            gender = race = age = None
        found.append({"age": AGES.get(age), "gender": GENDERS.get(gender), "race": RACES.get(race)})
    return pa.array(found, ATTRIBUTES)


SOURCE = Source(
    name="raf_db",
    title="RAF-DB",
    page="http://www.whdeng.cn/RAF/model1.html",
    access="by e-mail request to the authors",
    licence="non-commercial research only; no copying or publishing of pictures",
    citation="""@inproceedings{li2017reliable,
  title = {Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild},
  author = {Li, Shan and Deng, Weihong and Du, JunPing},
  booktitle = {CVPR},
  year = {2017}
}""",
    media_type="image",
    marks=(f"basic/{LIST}", LIST),
    read=read,
    counts={
        "train": dict(zip(CLASSES["raf_db"], (1290, 281, 717, 4772, 1982, 705, 2524), strict=True)),
        "test": dict(zip(CLASSES["raf_db"], (329, 74, 160, 1185, 478, 162, 680), strict=True)),
    },
)
