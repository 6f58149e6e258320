"""FERPlus: FER2013's 48 x 48 grey stills, judged anew by ten annotators each; 8 expressions.

Access: the votes with Microsoft's code, the pictures with Kaggle's FER2013; https://github.com/microsoft/FERPlus
On disk, as the official generate_training_data.py leaves it (`data/` may also be the root itself), or the two lists
that it reads, of which row 17 of the one belongs to row 17 of the other:

    data/FER2013{Train,Valid,Test}/label.csv            name, in older versions a box, and ten votes
    data/FER2013{Train,Valid,Test}/fer0000000.png

    fer2013.csv       emotion,pixels,Usage              the pictures as text; unpacked to PNG files once
    fer2013new.csv    Usage,Image name,neutral,...,NF   the votes; a row without a face has no name

Votes, in order: neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, no face. `label_rule`
says what they make the label; of votes that tie, the first wins. It leaves these rows to train, validation and test by
the votes of the older label.csv, and by those of fer2013new.csv, which differ for 1,601 pictures and come twice for 4:

    argmax8   most votes of the 8 expressions           28,558  3,579  3,573      28,561  3,579  3,574
    argmax10  most votes of all 10                      28,385  3,555  3,545      28,389  3,553  3,546
    majority  without single votes, more than half      25,045  3,191  3,137      25,060  3,199  3,153

argmax8 is FERID's rule; it calls even those few pictures neutral in which all ten saw no face. One row of label.csv:

    fer0000000.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0
"""

import hashlib
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils import tqdm
from PIL import Image

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_list, read_splits
from ferid_dataset.sources.base import Choices, Listed, Reading, Rejected, Source, assemble, find
from ferid_dataset.sources.media_files import stills

FOLDERS = {"FER2013Train": "train", "FER2013Valid": "validation", "FER2013Test": "test"}
USAGES = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
PICTURE = re.compile(r"fer[0-9]{1,9}\.png")
BOX = ("left", "top", "right", "bottom")
VOTES = (*CLASSES["ferplus"], "unknown", "no face")
LEFT_OUT = {
    "unknown": "most votes are for unknown",
    "no face": "most votes are for no face",
    "no majority": "no expression has more than half of the votes",
}


def read(root: str, choices: Choices) -> Reading:
    """Either shape; see the module's docstring for what must lie under `root`."""
    path = find(root, "FERPlus", "data/FER2013Train/label.csv", "FER2013Train/label.csv", "fer2013.csv")
    folder = os.path.dirname(path)
    # The official repository holds label.csv without the pictures.
    if path.endswith("label.csv") and any(name.endswith(".png") for name in os.listdir(folder)):
        pictures, layout = os.path.dirname(folder), "the pictures and label.csv of generate_training_data.py"
        listed = _read_generated(pictures)
    else:
        listed, pictures = _read_pair(root, choices.pictures)
        layout = "fer2013.csv, unpacked to pictures, and fer2013new.csv"
    return assemble(
        "ferplus",
        "image",
        _label(listed, choices.ferplus_label_rule),
        codes={label: label for label in CLASSES["ferplus"]},
        find_media=partial(stills, pictures),
        options=options_of("ferplus"),
        excluded=LEFT_OUT,
        layout=f"{layout}; labels by {choices.ferplus_label_rule}",
    )


def _label(listed: Listed, rule: str) -> Listed:
    """The rows with `id` and `code`; those whose votes cannot be counted are rejected."""
    rows, rejected = listed
    rows = rows.append_column(
        "id", pc.binary_join_element_wise("ferplus", pc.replace_substring_regex(rows["name"], r"^.*/|\.\w+$", ""), "/")
    )
    ballots = pc.binary_join_element_wise(*(rows[vote] for vote in VOTES), ",")
    counted = pc.match_substring_regex(ballots, r"^[0-9]{1,2}(,[0-9]{1,2}){9}$")
    rejected = rejected + [
        Rejected(row["id"], f"{row['list']}:{row['line']}", "the votes are not ten whole numbers")
        for row in rows.filter(pc.invert(counted)).to_pylist()
    ]
    rows = rows.filter(counted)
    votes = np.stack([rows[vote].cast(pa.int64()).to_numpy() for vote in VOTES], axis=1)  # (rows, 10)
    no_face = VOTES.index("no face")
    nameless = pc.equal(rows["name"], "").to_numpy() & (votes.argmax(1) == no_face)
    chosen = np.where(nameless, no_face, _choose(votes, rule))
    codes = pa.array([*VOTES, "no majority"]).take(pa.array(chosen))
    return Listed(rows.append_column("code", codes), rejected)


def _choose(votes: np.ndarray, rule: str) -> np.ndarray:
    """The index into VOTES that each row of `votes` (rows, 10) is for, or 10 where there is no majority."""
    if rule == "argmax8":
        return votes[:, :8].argmax(1)
    if rule == "argmax10":
        return votes.argmax(1)
    votes = np.where(votes > 1, votes, 0)
    return np.where(2 * votes.max(1) > votes.sum(1), votes.argmax(1), 10)


def _read_generated(data: str) -> Listed:
    lists = {split: find(data, "FERPlus", f"{folder}/label.csv") for folder, split in FOLDERS.items()}
    with open(lists["train"], "rb") as stream:
        box = BOX if b'"(' in stream.read(200) else ()
    rows, rejected = read_splits(lists, ["name", *box, *VOTES], delimiter=",", keep=["name", *VOTES])
    folders = pc.replace_substring_regex(rows["list"], r"^.*/(\w+)/label\.csv$", r"\1")
    return Listed(rows.set_column(0, "name", pc.binary_join_element_wise(folders, rows["name"], "/")), rejected)


def _read_pair(root: str, pictures: str | None) -> tuple[Listed, str]:
    """The rows of fer2013new.csv, and the folder that the pictures of fer2013.csv are unpacked to.

    Raises:
        FeridError: the two do not belong together, or no folder is named.
    """
    pixels, votes = (find(root, "FERPlus", name) for name in ("fer2013.csv", "fer2013new.csv"))
    if pictures is None:
        raise FeridError(f"{pixels} holds the pictures as text: name a folder to unpack them to with `pictures`")
    rows, rejected = read_list(votes, ["usage", "name", *VOTES], delimiter=",", header="Usage")
    shown, torn = read_list(pixels, ["emotion", "pixels", "usage"], delimiter=",", header="emotion", keep=["usage"])
    usages = shown["usage"].take(pc.index_in(rows["line"], shown["line"]))  # null where a line is torn
    if len(rows) + len(rejected) != len(shown) + len(torn) or pc.any(pc.not_equal(rows["usage"], usages)).as_py():
        raise FeridError(
            f"{pixels} and {votes} differ in their rows or their Usage: restore both as they were published"
        )

    digest = hashlib.sha256(Path(votes).read_bytes())
    digest.update(Path(pixels).read_bytes())
    # Named by what they hold, so that other lists never meet these pictures.
    folder = os.path.join(os.path.abspath(pictures), f"ferplus-{digest.hexdigest()[:16]}")
    os.makedirs(folder, exist_ok=True)
    there = {entry.name for entry in os.scandir(folder) if entry.stat().st_size}
    named = zip(rows["line"].to_pylist(), rows["name"].to_pylist(), strict=True)
    missing = {line: name for line, name in named if PICTURE.fullmatch(name) and name not in there}
    broken = _unpack(pixels, missing, folder) if missing else []
    fits = pc.and_(usages.is_valid(), pc.invert(pc.is_in(rows["line"], pa.array(broken, pa.int32()))))
    rejected += [
        Rejected("", f"{pixels}:{line}", "the line holds no 48 x 48 numbers from 0 to 255")
        for line in rows["line"].filter(pc.invert(fits)).to_pylist()
    ]
    splits = pa.array(USAGES.values()).take(pc.index_in(usages.combine_chunks(), pa.array(USAGES, pa.string())))
    return Listed(rows.append_column("split", splits).filter(fits), rejected), folder


def _unpack(pixels: str, names: dict[int, str], folder: str) -> list[int]:
    """Writes the pictures of these lines, each whole or not at all; returns the lines that hold none."""
    broken = []
    with open(pixels, "rb") as stream, tqdm(total=len(names), desc="unpack fer2013.csv", unit=" pictures") as bar:
        for line, text in enumerate(stream, 1):
            if line not in names:
                continue
            try:
                picture = np.frombuffer(bytes(map(int, text.split(b",")[1].split())), np.uint8).reshape(48, 48)
            except (IndexError, ValueError):
                broken.append(line)
            else:
                path = f"{folder}/{names[line]}"
                Image.fromarray(picture).save(f"{path}.part", "PNG")
                os.replace(f"{path}.part", path)
            bar.update()
    return broken


SOURCE = Source(
    name="ferplus",
    title="FERPlus",
    page="https://github.com/microsoft/FERPlus",
    access="votes free, pictures with an account at Kaggle (FER2013)",
    licence="votes MIT; pictures under the terms of FER2013 at Kaggle",
    citation="""@inproceedings{barsoum2016training,
  title = {Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution},
  author = {Barsoum, Emad and Zhang, Cha and Canton Ferrer, Cristian and Zhang, Zhengyou},
  booktitle = {Proceedings of the 18th ACM International Conference on Multimodal Interaction},
  pages = {279--283},
  year = {2016}
}""",
    media_type="image",
    marks=("data/FER2013Train/label.csv", "FER2013Train/label.csv", "fer2013.csv"),
    read=read,
    counts={
        "train": dict(zip(CLASSES["ferplus"], (10379, 7537, 3583, 3559, 2476, 195, 659, 170), strict=True)),
        "validation": dict(zip(CLASSES["ferplus"], (1341, 899, 461, 419, 326, 34, 72, 27), strict=True)),
        "test": dict(zip(CLASSES["ferplus"], (1274, 929, 450, 449, 322, 21, 98, 30), strict=True)),
    },
)
