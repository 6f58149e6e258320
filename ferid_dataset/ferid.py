"""The dataset builder: joins samples, instructions and face priors to FERID rows, a column at a time.

    Ferid(config_name="category", raf_db="RAF-DB", dfew="DFEW")      then .download_and_prepare() and
                                                                      .as_dataset(split="train"), or
                                                                      .as_streaming_dataset(split="train")
One row, the same columns for both configs:

    id "folder/train/anger/0001" · source "folder" · media_type "image" · images [<PIL image>] · label "anger"
    messages [{"role": "user", "content": "What is the facial expression of the person in the image? Choose one ..."},
              {"role": "assistant", "content": "anger"}]
    options ["happiness", "anger"] · attributes {"age": None, "gender": None, "race": None}
    faces [[{"box": [30, 24, 75, 70], "score": 1.2, "landmarks": [[30, 40], ...], "embedding": [0.1, ...], ...}]]

`faces` has one list a frame, its faces the largest first, boxes and landmarks in pixels of the picture as it loads; an
empty list means that no face was found, a null column that nobody looked. `label` is canonical; `options` and the
answer have the words of the source's instruction ("joy"). The file also works as a loading script of `datasets` 3.6,
hence the list syntax of features and one import a line.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import canonical
from ferid_dataset.prompts import category_question
from ferid_dataset.sources import SOURCES
from ferid_dataset.sources.base import SPLITS, Choices, Reading

logger = datasets.utils.logging.get_logger(__name__)

string = datasets.Value("string")
float32 = datasets.Value("float32")

FEATURES = datasets.Features(
    {
        "id": string,
        "source": string,
        "media_type": string,
        "images": [datasets.Image()],
        "messages": [{"role": string, "content": string}],
        "label": string,
        "options": [string],
        "attributes": {"age": string, "gender": string, "race": string},
        "faces": [
            [
                {
                    "box": datasets.Sequence(float32, length=4),
                    "score": float32,
                    "landmarks": [datasets.Sequence(float32, length=2)],
                    "embedding": [float32],
                    "age": float32,
                    "gender": string,
                }
            ]
        ],
    }
)
MESSAGES = FEATURES.arrow_schema.field("messages").type
FACES = FEATURES.arrow_schema.field("faces").type
ROWS_PER_SHARD = 10_000


@dataclass
class FeridConfig(datasets.BuilderConfig, Choices):
    """What a FERID is built from: the folders of source datasets, and all that [`Choices`] offers.

    Args:
        ferplus, raf_db, affectnet, dfew, ferv39k, mafw, crema_d: the root of each dataset, as `sources/` describe it.
        folder: a folder of your own labelled pictures.
        samples: a table of `sources.base.SAMPLES` instead, when the samples have been read already.
        annotations: a folder of `<source>/<split>.jsonl`, lines of `{"id", "messages"}`: the conversations.
        faces: a folder of `<source>/<split>.parquet`, the face priors that `faces.py` writes.
    """

    ferplus: str | None = None
    raf_db: str | None = None
    affectnet: str | None = None
    dfew: str | None = None
    ferv39k: str | None = None
    mafw: str | None = None
    crema_d: str | None = None
    folder: str | None = None
    samples: pa.Table | None = None
    annotations: str | None = None
    faces: str | None = None

    def __post_init__(self):
        super().__post_init__()
        Choices.__post_init__(self)

    def read_samples(self) -> pa.Table:
        if self.samples is not None:
            return self.samples
        readings = read_sources({name: root for name in SOURCES if (root := getattr(self, name))}, self)
        for name, reading in readings.items():
            if reading.rejected:
                logger.warning(f"{name}: {len(reading.rejected)} samples left out, such as {reading.rejected[0]}")
        return pa.concat_tables([reading.samples for reading in readings.values()])

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """`datasets` caches by arguments; here by what they point to, so that a change is never served stale."""
        self.samples = self.read_samples()
        files = [file for root in (self.annotations, self.faces) if root for file in sorted(Path(root).glob("*/*"))]
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        # The hash of `datasets` itself takes seconds for a table of this size.
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, self.samples.schema) as writer:
            writer.write_table(self.samples)
        digest = hashlib.sha256(stream.getvalue()).hexdigest()
        return super().create_config_id({"samples": digest, "files": stamps}, custom_features)


class Ferid(datasets.ArrowBasedBuilder):
    """Facial Expression Recognition Instruction Dataset: configs `category` (closed set) and `conversation`."""

    BUILDER_CONFIG_CLASS = FeridConfig
    BUILDER_CONFIGS = [
        FeridConfig(name="category", description="one closed-set question a picture; the answer is the bare label"),
        FeridConfig(name="conversation", description="generated turns about the expression and its cues"),
    ]
    DEFAULT_CONFIG_NAME = "category"

    def _info(self):
        return datasets.DatasetInfo(
            description="FERID: pictures and clips of faces with instructions about their expression.",
            features=FEATURES,
        )

    def _split_generators(self, dl_manager):
        splits = instruct(self.config.read_samples(), self.config.name, self.config.annotations)
        # A list of tables counts as shards: for num_proc and for the workers of a streaming loader. Copies, because
        # a slice would travel to a worker with the whole table behind it.
        return [
            datasets.SplitGenerator(
                name=split, gen_kwargs={"shards": [shard.take(np.arange(len(shard))) for shard in shards]}
            )
            for split, shards in splits.items()
        ]

    def _generate_tables(self, shards):
        for index, samples in enumerate(shards):
            yield index, to_rows(samples, self.config.faces)


def read_sources(roots: Mapping[str, str | os.PathLike], choices: Choices) -> dict[str, Reading]:
    """Reads each source that has a root.

    Raises:
        FeridError: there are none, or one cannot be read.
    """
    if not roots:
        raise FeridError(f"nothing to build from: give the folder of at least one of {', '.join(SOURCES)}")
    if unknown := set(roots) - set(SOURCES):
        raise FeridError(f"there is no source {sorted(unknown)[0]!r}: choose from {', '.join(SOURCES)}")
    return {name: SOURCES[name].read(os.path.abspath(root), choices) for name, root in roots.items()}


def instruct(samples: pa.Table, config: str, annotations: str | None = None) -> dict[str, list[pa.Table]]:
    """Samples with their messages, by split, in shards: slices, which share the memory of one table.

    Raises:
        FeridError: no sample has an instruction of this config.
    """
    if config == "category":
        samples = samples.append_column("messages", category_messages(samples))
    else:
        messages = conversation_messages(samples, annotations)
        samples = samples.append_column("messages", messages).filter(messages.is_valid())
    if not len(samples):
        raise FeridError(f"there are no rows of the config {config}: no annotation is of a sample here")
    codes = pc.index_in(samples["split"], pa.array(SPLITS)).to_numpy()
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1), len(codes)]  # the lists of a source are of one split each
    shards: dict[str, list[pa.Table]] = {split: [] for index, split in enumerate(SPLITS) if index in codes}
    for run, end in zip(edges, edges[1:], strict=False):
        for start in range(run, end, ROWS_PER_SHARD):
            shards[SPLITS[codes[run]]].append(samples.slice(start, min(ROWS_PER_SHARD, end - start)))
    return shards


def to_rows(samples: pa.Table, faces: str | None = None) -> pa.Table:
    """FERID rows from samples with their messages, and with the face priors in the folder `faces`."""
    columns = {name: samples[name] for name in FEATURES if name in samples.column_names}
    columns["images"] = _images(samples["paths"].combine_chunks())
    columns["faces"] = _faces(samples, faces)
    return pa.table([columns[name] for name in FEATURES], list(FEATURES))


def category_messages(samples: pa.Table) -> pa.Array:
    """One closed-set question and its answer for each sample: a column of the type of `messages`."""
    options = pc.binary_join(samples["options"], ",")
    keys = pc.binary_join_element_wise(samples["media_type"], samples["label"], options, ":")
    keys = keys.combine_chunks().dictionary_encode()
    questions, answers = [], []
    for key in keys.dictionary.to_pylist():  # the few combinations that occur, not the rows
        media_type, label, options = key.split(":")
        options = options.split(",")
        questions.append(category_question(options, media_type))
        answers.append(next(option for option in options if canonical(option) == label))

    rows = len(samples)
    first = keys.indices.to_numpy()
    texts = pa.array(questions + answers, pa.string())
    turns = texts.take(pa.array(np.stack([first, first + len(questions)], axis=1).ravel()))
    roles = pa.array(["user", "assistant"]).take(pa.array(np.tile([0, 1], rows)))
    offsets = pa.array(np.arange(0, 2 * rows + 1, 2), pa.int32())
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([roles, turns], fields=list(MESSAGES.value_type))
    )


def conversation_messages(samples: pa.Table, annotations: str | None) -> pa.ChunkedArray:
    """The annotated turns of each sample, null where it has none.

    Raises:
        FeridError: no annotations, a file that is not JSON lines of `id` and `messages`, an id that comes twice.
    """
    files = sorted(Path(annotations or "").glob("*/*.jsonl")) if annotations else []
    if not files:
        raise FeridError(
            "conversations need annotations: a folder that holds <source>/<split>.jsonl with id and messages"
        )
    table = pa.concat_tables([_read_annotations(file) for file in files])
    if pc.count_distinct(table["id"]).as_py() < len(table):
        raise FeridError(f"an id comes twice in {annotations}: keep one line for each sample")
    return table["messages"].take(pc.index_in(samples["id"], table["id"]))


def _read_annotations(file: Path) -> pa.Table:
    schema = pa.schema({"id": pa.string(), "messages": MESSAGES})
    if not file.stat().st_size:  # a generation that has just begun
        return schema.empty_table()
    try:
        table = pyarrow.json.read_json(
            file,
            # a line may be as long as a block
            read_options=pyarrow.json.ReadOptions(block_size=1 << 24),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid as error:
        raise FeridError(f'{file} is not JSON lines of {{"id", "messages"}}: {error}') from error
    if any(table[name].null_count for name in schema.names):
        raise FeridError(f"{file} has a line without id or messages: mend or remove it")
    return table.select(schema.names)


def _images(paths: pa.ListArray) -> pa.ListArray:
    """Paths to pictures: {"bytes": None, "path"}, so nothing is copied."""
    offsets = pc.subtract(paths.offsets, paths.offsets[0])
    files = paths.flatten()
    pictures = pa.StructArray.from_arrays([pa.nulls(len(files), pa.binary()), files], ["bytes", "path"])
    return pa.ListArray.from_arrays(offsets, pictures)


def _faces(samples: pa.Table, folder: str | None) -> pa.Array | pa.ChunkedArray:
    """The face priors of each sample, null where nobody looked."""
    files = set()
    if folder:
        pairs = samples.select(["source", "split"]).group_by(["source", "split"]).aggregate([]).to_pylist()
        files = {os.path.join(folder, pair["source"], f"{pair['split']}.parquet") for pair in pairs}
    files = sorted(filter(os.path.exists, files))
    if not files:
        return pa.nulls(len(samples), FACES)
    wanted = [("id", "in", samples["id"].to_pylist())]
    found = pa.concat_tables([pq.read_table(file, columns=["id", "faces"], filters=wanted) for file in files])
    return found["faces"].take(pc.index_in(samples["id"], found["id"]))
