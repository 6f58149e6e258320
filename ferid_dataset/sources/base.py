"""What every source yields: a table of samples, and what it had to leave out.

One row of `SAMPLES`:

    id "folder/train/anger/0001" · source "folder" · split "train" · media_type "image"
    paths ["/photos/train/angry/0001.jpg"] · label "anger" · options ["happiness", "anger"]
    attributes {"age": None, "gender": None, "race": None}
"""

from typing import NamedTuple

import pyarrow as pa

SPLITS = ("train", "validation", "test")

SAMPLES = pa.schema(
    {
        "id": pa.string(),  # source/split/label/name, unique
        "source": pa.string(),
        "split": pa.string(),  # one of SPLITS
        "media_type": pa.string(),  # "image" or "video"
        "paths": pa.list_(pa.string()),  # absolute; one for a still, the frames in order for a clip
        "label": pa.string(),  # canonical
        "options": pa.list_(pa.string()),  # the labels that this source knows
        "attributes": pa.struct({"age": pa.string(), "gender": pa.string(), "race": pa.string()}),
    }
)


class Rejected(NamedTuple):
    """A sample that is left out: one line of `rejected.jsonl`."""

    id: str
    path: str
    reason: str


class Reading(NamedTuple):
    """What a source found on disk. Every sample is in exactly one of the two."""

    samples: pa.Table  # SAMPLES
    rejected: list[Rejected]
