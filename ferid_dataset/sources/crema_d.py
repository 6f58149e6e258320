"""CREMA-D: 7,442 clips of 91 actors, who speak 12 sentences with 6 expressions at up to 4 levels.

Access: open; git clone with git-lfs, 7.6 GB; https://github.com/CheyneyComputerScience/CREMA-D
On disk:

    VideoFlash/1001_DFA_ANG_XX.flv     actor, sentence, expression, level (low, medium, high or not specified)
    VideoMP4/1001_DFA_ANG_XX.mp4       your own conversion, used instead of VideoFlash when it is there
    VideoDemographics.csv              age in years, sex, race and ethnicity of the actors

ANG anger, DIS disgust, FEA fear, HAP happiness, NEU neutral, SAD sadness. This is what the actors were asked to show,
not what viewers saw: their votes, in processedResults/, are not used. There is no official split. These are 5 folds of
our own, in which nobody is both trained on and tested: actor 1001 is tested in fold 1, 1002 in fold 2, 1006 in fold 1
again. Race and ethnicity are one attribute here: "African-American", or "Caucasian, Hispanic"; "Unknown" is left away.
One row of the demographics:

    1001,51,"Male","Caucasian","Not Hispanic"
"""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import CLASSES
from ferid_dataset.prompts import options_of
from ferid_dataset.sources.annotation_lists import read_list
from ferid_dataset.sources.base import ATTRIBUTES, Choices, Listed, Media, Reading, Rejected, Source, assemble, find
from ferid_dataset.sources.media_files import videos

NAME = re.compile(r"[0-9]{4}_[A-Z]{3}_[A-Z]{3}_(LO|MD|HI|XX)\.(flv|mp4)")
ACTOR, CODE = slice(0, 4), slice(9, 12)
POINTER = b"version https://git-lfs"  # what lies in the place of a clip until git-lfs has fetched it
GENDERS = {"Male": "male", "Female": "female"}
RACES = {"African American": "African-American", "Asian": "Asian", "Caucasian": "Caucasian"}


def read(root: str, choices: Choices) -> Reading:
    """One fold; see the module's docstring for what must lie under `root`."""
    folder = find(root, "CREMA-D", "VideoMP4/", "VideoFlash/")
    people, rejected = _read_people(find(root, "CREMA-D", "VideoDemographics.csv"))
    clips = {}
    for name in sorted(os.listdir(folder)):  # an .mp4 comes after the .flv that it was made of, and wins
        if NAME.fullmatch(name):
            clips[name[:-4]] = name
        elif not name.startswith("."):
            reason = "the name is not <actor>_<sentence>_<emotion>_<level>.flv or .mp4"
            rejected.append(Rejected("", f"{folder}/{name}", reason))
    if not clips:
        raise FeridError(f"{folder} holds no clip with a name like 1001_DFA_ANG_XX.flv: clone CREMA-D with git-lfs")
    folds = np.array([(int(clip[ACTOR]) - 1001) % 5 + 1 for clip in clips])
    names = pa.array(clips.values(), pa.string())
    columns = {
        "id": pa.array([f"crema_d/{clip}" for clip in clips]),
        "split": np.where(folds == choices.fold, "test", "train"),
        "code": pa.array([clip[CODE] for clip in clips]),
        "name": names,
        "list": pc.binary_join_element_wise(folder, names, "/"),
        "line": pa.nulls(len(names), pa.int32()),
    }
    return assemble(
        "crema_d",
        "video",
        Listed(pa.table(columns), rejected),
        codes=dict(zip(("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"), CLASSES["crema_d"], strict=True)),
        find_media=lambda names: _fetched(folder, names, choices.frames),
        options=options_of("crema_d"),
        attributes=lambda rows: pa.array(
            [people.get(clip.removeprefix("crema_d/")[ACTOR], {}) for clip in rows["id"].to_pylist()], ATTRIBUTES
        ),
        layout=f"fold {choices.fold} of our own, the clips of {os.path.basename(folder)}",
    )


def _read_people(path: str) -> tuple[dict[str, dict[str, str | None]], list[Rejected]]:
    """Age, gender and race of each actor, and the lines that tell none."""
    rows, rejected = read_list(path, ["actor", "age", "sex", "race", "ethnicity"], delimiter=",", header="ActorID")
    people = {}
    for row in rows.to_pylist():
        actor, age, sex, race, ethnicity = (row[name].strip('"') for name in rows.column_names[:5])
        origins = [RACES[race]] if race in RACES else []
        origins += ["Hispanic"] if ethnicity == "Hispanic" else []
        age = age if age.isdecimal() else None
        people[actor] = {"age": age, "gender": GENDERS.get(sex), "race": ", ".join(origins) or None}
    return people, rejected


def _fetched(folder: str, names: pa.Array, frames: int) -> Media:
    """The clips; a pointer of git-lfs is none."""
    media = videos(folder, names, frames)
    problems = media.problems.to_pylist()
    for index, name in enumerate(names.to_pylist()):
        if problems[index] is None:
            try:
                with open(f"{folder}/{name}", "rb") as stream:
                    if stream.read(len(POINTER)) == POINTER:
                        problems[index] = "only a pointer to the clip is there: fetch the clips with git lfs pull"
            except OSError as error:
                problems[index] = f"the file cannot be opened: {error.strerror}"
    return media._replace(problems=pa.array(problems, pa.string()))


SOURCE = Source(
    name="crema_d",
    title="CREMA-D",
    page="https://github.com/CheyneyComputerScience/CREMA-D",
    access="open; git clone with git-lfs",
    licence="Open Database License (ODbL) 1.0, contents under the Database Contents License (DbCL) 1.0",
    citation="""@article{cao2014cremad,
  title = {{CREMA-D}: Crowd-Sourced Emotional Multimodal Actors Dataset},
  author = {Cao, Houwei and Cooper, David G. and Keutmann, Michael K. and Gur, Ruben C. and Nenkova, Ani and
    Verma, Ragini},
  journal = {IEEE Transactions on Affective Computing},
  volume = {5},
  number = {4},
  pages = {377--390},
  year = {2014}
}""",
    media_type="video",
    marks=("VideoFlash", "VideoMP4"),
    read=read,
)
