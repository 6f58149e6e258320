"""What is sent: the body of a chat completion with prompt and picture, for single requests and batches alike.

{"model": "gpt-5-mini",
 "messages": [{"role": "system", "content": "You write training conversations ..."},
              {"role": "user", "content": [{"type": "text", "text": "Facts about the person in the image: ..."},
                                           {"type": "image_url", "image_url": {"url": "data:image/jpeg;..."}}]}],
 "response_format": {"type": "json_schema", "json_schema": {"name": "conversation", "strict": True, ...}}}
"""

import base64
import io
from typing import Any

from ferid_dataset.generate.schema import Conversation
from ferid_dataset.prompts import description_prompt, generation_prompt

JPEG_QUALITY = 90
STRUCTURED = {
    "type": "json_schema",
    "json_schema": {"name": "conversation", "strict": True, "schema": Conversation.model_json_schema()},
}
JSON_MODE = {"type": "json_object"}


class UnreadablePicture(Exception):
    """A picture that cannot be decoded; the message says why."""


def conversation_request(
    sample: dict[str, Any],
    model: str,
    picture_side: int,
    *,
    description: str | None = None,
    rejected_reason: str | None = None,
    json_mode: bool = False,
) -> dict[str, Any]:
    """The request for the conversation of a sample, which sees a still, or the centre frame of a clip.

    Raises:
        UnreadablePicture: its picture cannot be decoded.
    """
    images = sample["images"]
    system, user = generation_prompt(
        sample["label"], sample["media_type"], description, sample["attributes"], rejected_reason
    )
    body = _body(model, system, user, [images[len(images) // 2]], picture_side)
    return body | {"response_format": JSON_MODE if json_mode else STRUCTURED}


def description_request(sample: dict[str, Any], model: str, picture_side: int) -> dict[str, Any]:
    """The request for the description of a clip, which sees all its frames.

    Raises:
        UnreadablePicture: a frame cannot be decoded.
    """
    return _body(model, *description_prompt(), sample["images"], picture_side)


def _body(model: str, system: str, user: str, images: list[dict], picture_side: int) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": data_url(image, picture_side)}} for image in images]
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user}, *pictures]},
        ],
    }


def data_url(image: dict[str, Any], picture_side: int) -> str:
    """The picture as a JPEG data URL, scaled down where its longer side has more than `picture_side` pixels.

    Args:
        image: as a FERID row holds it: {"bytes": ..., "path": ...}.

    Raises:
        UnreadablePicture: it cannot be decoded.
    """
    from datasets import Image  # reads frames of clips as well

    try:
        picture = Image().decode_example(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise anything from OSError to struct.error on broken bytes
        raise UnreadablePicture(f"{image['path']}: {error or type(error).__name__}") from error
    picture.thumbnail((picture_side, picture_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
