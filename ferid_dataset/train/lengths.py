"""How many tokens a row has for the language model, known before any picture is opened.

    rows = load_dataset("runs/quickstart/ferid", "category", split="train")
    token_lengths(rows, processor)          -> [71, 71, 78, 164, ...], of `input_ids` as `FeridCollator` makes them

Rows of like length share a batch, or fill a row of packed samples to its end, only if this is exact: the picture's
placeholders and the sentence about the person count too.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ferid_dataset.errors import FeridError

_BATCH = 10_000  # rows
# Of each face, what the sentence about the person is made of; the embeddings and landmarks stay unread.
_PEOPLE = pa.list_(pa.list_(pa.struct({"age": pa.float32(), "gender": pa.string()})))


def token_lengths(rows: Dataset, processor) -> list[int]:
    """The length of `input_ids` of each row alone, without padding, exactly as `FeridCollator` makes them.

    70,000 rows of `category` a CPU-second, which share their words with others; 3,000 conversations of 180 tokens.

    Args:
        rows: rows of FERID, shuffled or selected as they may be. Their pictures are counted and never opened.
        processor: of the checkpoint that is trained.

    Raises:
        FeridError: what is said of the person depends on faces that nobody has looked for yet.
    """
    lengths, known = [], {}
    for batch in _light_batches(rows):
        keys = [_key(row, processor) for row in batch]
        new = {key: row for key, row in zip(keys, batch, strict=True) if key not in known}
        known |= zip(new, _measure(new, processor), strict=True)
        lengths += [known[key] for key in keys]
        if len(known) > 50 * _BATCH:  # conversations differ from each other; instructions soon are all known
            known = {}
    return lengths


def _light_batches(rows: Dataset) -> Iterator[list[dict]]:
    """Rows with `pictures` in number, and of the faces only age and gender.

    The columns are read where they lie: `rows[...]` would copy the bytes of the pictures out of the file.
    """
    table, given = rows.data, set(rows.column_names)
    light = {"messages": table.column("messages"), "pictures": pc.list_value_length(table.column("images"))}
    light |= {name: table.column(name) for name in ("id", "media_type", "attributes") if name in given}
    if "faces" in given:
        faces = table.column("faces")
        light["faces"] = faces if pa.types.is_null(faces.type) else faces.cast(_PEOPLE)
    light = pa.table(light)
    order = rows._indices.column(0) if rows._indices is not None else None  # of a selection or a shuffle
    for start in range(0, len(rows), _BATCH):
        batch = light.slice(start, _BATCH) if order is None else light.take(order.slice(start, _BATCH))
        yield batch.to_pylist()


def _key(row: dict, processor) -> tuple:
    """All that the length depends on: media, number of pictures, what is said of each medium, the messages."""
    clip = row.get("media_type") == "video"
    messages = tuple((message["role"], message["content"]) for message in row["messages"])
    return clip, row["pictures"], tuple(_sentences(row, clip, processor)), messages


def _sentences(row: dict, clip: bool, processor) -> list[str]:
    """What the processor says after each picture, or after the clip."""
    if not processor.use_attributes:
        return [""] * (1 if clip else row["pictures"])
    attributes, people = row.get("attributes"), row.get("faces")
    if not (processor.read_faces and processor.max_faces):
        people = [[]] * row["pictures"]
    if not people:
        if _backend_knows_people(processor) and not all((attributes or {}).get(name) for name in ("age", "gender")):
            raise FeridError(
                f"the prompt of {row.get('id', 'a row')} tells the age and gender that the face backend finds, and "
                "its faces were not looked for yet: write them into the dataset with `ferid add-faces`"
            )
        people = [[]] * row["pictures"]
    return [processor.sentence(attributes, found) for found in ([people] if clip else [[one] for one in people])]


def _backend_knows_people(processor) -> bool:
    return processor.face_backend != "dlib" and processor.face_settings.get("attributes", True)


def _measure(rows: dict[tuple, dict], processor) -> list[int]:
    """The lengths of rows with different keys, tokenised together with one placeholder a medium."""
    if not rows:
        return []
    media = {False: ("image", processor.image_token), True: ("video", processor.video_token)}
    texts = processor.apply_chat_template([_chat(key, media) for key in rows], tokenize=False)
    spoken = []
    for (clip, _, sentences, _), text in zip(rows, texts, strict=True):
        placeholder = media[clip][1]
        first, *parts = text.split(placeholder)
        spoken.append(first + "".join(placeholder + s + part for s, part in zip(sentences, parts, strict=True)))
    encoded = processor.tokenizer(spoken, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    lengths = []
    for (clip, pictures, sentences, _), ids in zip(rows, encoded, strict=True):
        tokens = pictures * (processor.frame_seq_length if clip else processor.image_seq_length)
        lengths.append(len(ids) + tokens - len(sentences))
    return lengths


def _chat(key: tuple, media: dict) -> list[dict]:
    """The conversation as `to_chat` makes it, with its media left empty."""
    clip, pictures, _, messages = key
    blocks, chat = [{"type": media[clip][0]}] * (1 if clip else pictures), []
    for role, words in messages:
        content = [{"type": "text", "text": words}]
        if role == "user":
            content, blocks = blocks + content, []
        chat.append({"role": role, "content": content})
    return chat
