"""AffectNet: 291,651 stills found on the Internet, 8 expressions, one annotator each.

Access: by request of a professor or the head of a laboratory, for research only;
http://mohammadmahoor.com/pages/databases/affectnet/
On disk, the lists as they were first given out, or an array file for each picture (the numbers of the two folders
repeat, hence the folder in the id):

    Manually_Annotated_file_lists/{training,validation}.csv              the second, in many copies, without its header
    Manually_Annotated/Manually_Annotated_Images/689/737db2.jpg

    {train_set,val_set}/images/0.jpg
    {train_set,val_set}/annotations/0_exp.npy                            one string or integer

0 neutral, 1 happiness, 2 sadness, 3 surprise, 4 fear, 5 disgust, 6 anger, 7 contempt; 8 to 10 are no expression and
left out. The test set was never given out: by convention the validation set is tested on, and is our split "test".
One row of a list (face box, 68 landmarks, expression, valence, arousal):

    689/737db2.jpg,134,134,899,899,181.64;530.91;...;530.34;768.58,1,0.785714,-0.055556
"""

import os
import re
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils import tqdm

from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_splits
from ferid_dataset.sources.base import Choices, Listed, Reading, Rejected, Source, assemble, find
from ferid_dataset.sources.media_files import stills

LISTS = "Manually_Annotated_file_lists"
LIST_SPLITS = {"training": "train", "validation": "test"}
ARRAY_SPLITS = {"train_set": "train", "val_set": "test"}
COLUMNS = ("name", "x", "y", "width", "height", "landmarks", "code", "valence", "arousal")
LEFT_OUT = {"8": "labelled as none", "9": "labelled as uncertain", "10": "labelled as no face"}
# An array file of one value, as numpy writes it: version, length of the header, header, value.
ARRAY = re.compile(
    rb"\x93NUMPY.{4}\{'descr': '[<|]([Uiu])(\d\d?)', 'fortran_order': False, 'shape': \((?:1,)?\), \} *\n(.+)",
    re.DOTALL,
)


def read(root: str, choices: Choices) -> Reading:
    """Either release; see the module's docstring for what must lie under `root`."""
    if find(root, "AffectNet", f"{LISTS}/training.csv", "train_set/annotations/").endswith(".csv"):
        images = find(root, "AffectNet", "Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images")
        listed, layout = _read_lists(root), "the release with lists, training.csv and validation.csv"
    else:
        images, listed, layout = os.path.abspath(root), _read_arrays(root), "the release with a file for each label"
    classes = choices.affectnet_classes  # contempt is the last
    return assemble(
        "affectnet",
        "image",
        listed,
        codes=dict(zip("01234567"[:classes], CLASSES["affectnet"], strict=False)),
        find_media=partial(stills, images),
        options=options_of("affectnet")[:classes],
        excluded=LEFT_OUT | ({"7": "contempt, which is not of the 7 classes"} if classes == 7 else {}),
        layout=layout,
    )


def _read_lists(root: str) -> Listed:
    lists = {split: find(root, "AffectNet", f"{LISTS}/{name}.csv") for name, split in LIST_SPLITS.items()}
    rows, rejected = read_splits(lists, COLUMNS, delimiter=",", header="subDirectory_filePath", keep=["name", "code"])
    stems = pc.replace_substring_regex(rows["name"], r"\.\w+$", "")
    return Listed(rows.append_column("id", pc.binary_join_element_wise("affectnet/", stems, "")), rejected)


def _read_arrays(root: str) -> Listed:
    tables, rejected = [], []
    for folder, split in ARRAY_SPLITS.items():
        annotations = find(root, "AffectNet", f"{folder}/annotations/")
        pictures = os.listdir(find(root, "AffectNet", f"{folder}/images/"))
        numbers = {name.removesuffix(".jpg") for name in pictures if name.endswith(".jpg")}
        numbers |= {name.removesuffix("_exp.npy") for name in os.listdir(annotations) if name.endswith("_exp.npy")}
        codes = {}
        for number in tqdm(sorted(numbers), f"AffectNet {folder}", unit=" labels"):
            path = f"{annotations}/{number}_exp.npy"
            try:
                with open(path, "rb") as stream:
                    codes[number] = parse_array(stream.read())
            except (OSError, ValueError) as error:
                reason = "the file of its label is missing" if isinstance(error, FileNotFoundError) else str(error)
                rejected.append(Rejected(f"affectnet/{folder}/{number}", path, reason))
        found = pa.array(codes, pa.string())
        columns = {
            "id": pc.binary_join_element_wise(f"affectnet/{folder}", found, "/"),
            "split": pa.repeat(split, len(found)),
            "code": pa.array(codes.values(), pa.string()),
            "name": pc.binary_join_element_wise(f"{folder}/images/", found, ".jpg", ""),
            "list": pc.binary_join_element_wise(f"{annotations}/", found, "_exp.npy", ""),
            "line": pa.nulls(len(found), pa.int32()),
        }
        tables.append(pa.table(columns))
    return Listed(pa.concat_tables(tables), rejected)


def parse_array(content: bytes) -> str:
    """The one value of an array file. Numpy's own reader takes four times as long, and fails on broken headers in ways
    that cannot all be named.

    Raises:
        ValueError: it is no file of one string or integer.
    """
    match = ARRAY.fullmatch(content)
    kind, size, value = match.groups() if match else (None, 0, b"")
    if kind == b"U" and len(value) == 4 * int(size):
        return value.decode("utf-32-le", "replace").rstrip("\0")
    if kind in (b"i", b"u") and len(value) == int(size):
        return str(int.from_bytes(value, "little", signed=kind == b"i"))
    raise ValueError("the label is no array file of one string or integer")


SOURCE = Source(
    name="affectnet",
    title="AffectNet",
    page="http://mohammadmahoor.com/pages/databases/affectnet/",
    access="by request of a professor or the head of a laboratory",
    licence="research only; no copying or publishing of pictures",
    citation="""@article{mollahosseini2019affectnet,
  title = {{AffectNet}: A Database for Facial Expression, Valence, and Arousal Computing in the Wild},
  author = {Mollahosseini, Ali and Hasani, Behzad and Mahoor, Mohammad H.},
  journal = {IEEE Transactions on Affective Computing},
  volume = {10},
  number = {1},
  pages = {18--31},
  year = {2019}
}""",
    media_type="image",
    marks=(f"{LISTS}/training.csv", "train_set/annotations"),
    read=read,
    counts={
        "train": dict(zip(CLASSES["affectnet"], (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750), strict=True)),
        "test": dict.fromkeys(CLASSES["affectnet"], 500),
    },
)
