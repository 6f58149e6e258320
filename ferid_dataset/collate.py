"""From FERID rows to what the model reads: one conversion for training and for evaluation.

{"images": [picture], "faces": [[face]], "messages": [{"role": "user", "content": "What is ..."}, ...], ...}
-> [{"role": "user", "content": [{"type": "image", "image": picture, "faces": [face]},
                                 {"type": "text", "text": "What is ..."}]}, ...]
"""

import os
from typing import Any

from datasets import Dataset, Image, List
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling


def to_chat(row: dict[str, Any], answers: bool = True) -> list[dict[str, Any]]:
    """The conversation of a FERID row as a multimodal chat: its pictures, with their faces, open the first user turn.

    Args:
        row: a FERID row; `faces` may be null (the processor then looks for them).
        answers: `False` stops before the first answer, as a prompt for the model.
    """
    faces = row.get("faces") or [None] * len(row["images"])
    pictures = [
        {"type": "image", "image": encoded_or_picture(image), "faces": found}
        for image, found in zip(row["images"], faces, strict=True)
    ]
    chat = []
    for message in row["messages"]:
        if message["role"] == "assistant" and not answers:
            break
        content = [{"type": "text", "text": message["content"]}]
        if message["role"] == "user" and pictures:
            content, pictures = pictures + content, []
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
    """TRL's vision collator over FERID rows: the faces travel beside their pictures to the processor."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        # The pictures already stand in the messages, so none are left for TRL to place.
        return super().torch_call([{"messages": to_chat(row), "images": []} for row in examples])
