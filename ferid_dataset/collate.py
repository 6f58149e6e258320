"""From FERID rows to what the model reads: one conversion for training and for evaluation.

{"images": [picture], "faces": [[face]], "messages": [{"role": "user", "content": "What is ..."}, ...], ...}
-> [{"role": "user", "content": [{"type": "image", "image": picture, "faces": [face], "attributes": {"age": ...}},
                                 {"type": "text", "text": "What is ..."}]}, ...]

A clip is one block: {"type": "video", "video": [picture, ...], "faces": [[face], ...], "attributes": {...}}.
"""

import os
from typing import Any

from datasets import Dataset, Image, List
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


def to_chat(row: dict[str, Any], answers: bool = True) -> list[dict[str, Any]]:
    """The conversation of a FERID row as a multimodal chat: the picture or clip opens the first user turn.

    Args:
        row: a FERID row; `faces` may be null (the processor then looks for them), and so may `attributes`.
        answers: `False` stops before the first answer, as a prompt for the model.
    """
    pictures, faces = [encoded_or_picture(image) for image in row["images"]], row.get("faces")
    attributes = row.get("attributes")
    if row.get("media_type") == "video":
        media = [{"type": "video", "video": pictures, "faces": faces, "attributes": attributes}]
    else:
        media = [
            {"type": "image", "image": picture, "faces": found, "attributes": attributes}
            for picture, found in zip(pictures, faces or [None] * len(pictures), strict=True)
        ]
    chat = []
    for message in row["messages"]:
        if message["role"] == "assistant" and not answers:
            break
        content = [{"type": "text", "text": message["content"]}]
        if message["role"] == "user":
            content, media = media + content, []
        chat.append({"role": message["role"], "content": content})
    return chat


def encoded_or_picture(image: Any) -> Any:
    """A picture for the processor: bytes or a path that it opens itself, or a picture that `datasets` opened."""
    if not isinstance(image, dict):
        return image
    if image["bytes"] is not None:
        return image["bytes"]
    if os.path.isfile(image["path"]):
        return image["path"]
    return Image().decode_example(image)  # a frame of a clip, or a picture elsewhere


def rows_for(processor, rows: Dataset) -> Dataset:
    """The rows, with their pictures left encoded for a processor that decodes JPEGs itself (`fast_jpeg`).

    `datasets` writes a copy of the rows to its cache for that, once (3 s a million rows without pictures in them).
    """
    if not getattr(processor.image_processor, "fast_jpeg", False):
        return rows
    return rows.cast_column("images", List(Image(decode=False)))


class FeridCollator(DataCollatorForVisionLanguageModeling):
    """TRL's vision collator over FERID rows: clips, faces and attributes travel in the messages to the processor."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        # The pictures already stand in the messages, so none are left for TRL to place. It knows of no clips.
        return super().torch_call([{"messages": to_chat(row), "images": []} for row in examples])
