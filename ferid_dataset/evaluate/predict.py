"""Asks a model the question of each row, and reads its answer.

    {"id": "folder/test/fear/0007", "source": "folder", "label": "fear", "prediction": "surprise", "text": "Surprise.",
     "options": ["surprise", "fear", "disgust"], "probabilities": {"surprise": 0.61, "fear": 0.37, "disgust": 0.02},
     "attributes": {"age": "20-39", "gender": null, "race": null}, "method": "generate"}

`generate` lets the model write, greedily, and `prediction` is what `parse_label` reads there; `probabilities` are the
model's own of the options, whatever it wrote. `score` takes the option that the model finds likeliest, exactly, and
writes nothing.

The prompt, the processor and the face priors of EMO-LLaMA are those of training (`collate.to_chat`). Other models of
the Hugging Face stack are asked in the same words, through their own chat template.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, Literal

from PIL import Image

from ferid_dataset.collate import encoded_or_picture, to_chat
from ferid_dataset.errors import FeridError
from ferid_dataset.labels import canonical, parse_label
from modeling_emo_llama.option_scoring import option_probabilities, score_options, sees_trees

METHODS = ("score", "generate")


def predict(
    model,
    processor,
    rows: Iterable[dict[str, Any]],
    *,
    method: Literal["score", "generate"] = "score",
    batch_size: int = 16,
    max_new_tokens: int = 16,
) -> Iterator[dict[str, Any]]:
    """
    Predictions one after the other, in the order of the rows.

    Args:
        model ([`PreTrainedModel`]):
            In eval mode, on the device that it is to run on.
        processor ([`ProcessorMixin`]):
            Its processor.
        rows (`Iterable[dict]`):
            FERID rows of the `category` config.
        method (`str`, *optional*, defaults to `"score"`):
            `"score"` or `"generate"`, as above.
        batch_size (`int`, *optional*, defaults to 16):
            Rows that run together; a batch ends early where the options change.
        max_new_tokens (`int`, *optional*, defaults to 16):
            Longest answer of `generate`, in tokens. What is cut off there is not read.

    Yields:
        `dict`: a row of `predictions.jsonl`, as above. `probabilities` is `None` where `generate` cannot tell them
        without running the prompts again (models with attention in windows or without attention).

    Raises:
        `ValueError`: another method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    batches = _batches(processor, rows, batch_size)
    for options, batch, inputs in batches if model.device.type == "cpu" else one_ahead(batches):
        inputs = _to_model(inputs, model, processor)
        answers = answer_tokens(processor, options)
        if method == "score":
            scores = score_options(model, processor.tokenizer, inputs, answers, ends=stop_tokens(model, processor))
            probabilities = option_probabilities(scores).tolist()
            texts = [options[max(range(len(options)), key=shares.__getitem__)] for shares in probabilities]
        else:
            texts, probabilities = _write(model, processor, inputs, answers, max_new_tokens)
        for row, text, shares in zip(batch, texts, probabilities, strict=True):
            yield category_line(row, text, method, shares)


def predict_conversations(
    model, processor, rows: Iterable[dict[str, Any]], *, batch_size: int = 8, max_new_tokens: int = 256
) -> Iterator[dict[str, Any]]:
    """
    Free answers, greedily, to the first question of each row.

    Args:
        model, processor, batch_size: as for [`predict`].
        rows (`Iterable[dict]`): FERID rows of the `conversation` config.
        max_new_tokens (`int`, *optional*, defaults to 256): longest answer, in tokens.

    Yields:
        `dict`: a line of `answers.jsonl`, see [`conversation_line`].
    """
    rows = iter(rows)
    batches = ((batch, ask(processor, batch)) for batch in iter(lambda: list(islice(rows, batch_size)), []))
    for batch, inputs in batches if model.device.type == "cpu" else one_ahead(batches):
        inputs = _to_model(inputs, model, processor)
        written = model.generate(**inputs, **_greedy(model, processor, max_new_tokens))
        for row, text in zip(batch, _texts(processor, inputs, written), strict=True):
            yield conversation_line(row, text)


def category_line(
    row: dict[str, Any], text: str, method: str, shares: Sequence[float] | None = None
) -> dict[str, Any]:
    """A line of `predictions.jsonl`: what was answered to a row, and how it is read."""
    labels = [canonical(option) for option in row["options"]]  # "joy" was offered, "happiness" is counted
    return {
        "id": row["id"],
        "source": row["source"],
        "label": row["label"],
        "prediction": parse_label(text, row["options"]),
        "text": text.strip(),
        "options": labels,
        "probabilities": None if shares is None else dict(zip(labels, shares, strict=True)),
        "attributes": row.get("attributes"),
        "method": method,
    }


def conversation_line(row: dict[str, Any], text: str) -> dict[str, Any]:
    """A line of `answers.jsonl`: the answer to the first question of a row, beside the one in the dataset.

    {"id": "mafw/00025", "source": "mafw", "media_type": "video", "label": "sadness", "question": "What is ...",
     "reference": "The person in the video is sad. ...", "text": "The man looks sad. ...", "attributes": {...}}
    """
    first = {message["role"]: message["content"] for message in reversed(row["messages"])}
    return {
        "id": row["id"],
        "source": row["source"],
        "media_type": row["media_type"],
        "label": row["label"],
        "question": first["user"],
        "reference": first.get("assistant"),
        "text": text.strip(),
        "attributes": row.get("attributes"),
    }


def ask(processor, rows: Sequence[dict[str, Any]]):
    """The tensors of the first question of each row, padded on the left.

    Raises:
        FeridError: the processor has no chat template.
    """
    ours = _is_ours(processor)
    chats = [to_chat(row, answers=False) if ours else plain_chat(row, processor) for row in rows]
    settings = {"padding": True, "padding_side": "left"}
    if any(block["type"] == "video" for chat in chats for block in chat[0]["content"]) and not ours:
        settings["do_sample_frames"] = False  # the row has the frames that are to be seen
    if not processor.chat_template:
        raise FeridError("the model's processor has no chat template, so it cannot be asked as a chat: take another")
    return processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=settings,
    )


def plain_chat(row: dict[str, Any], processor) -> list[dict[str, Any]]:
    """The first question of a row for any model: pictures and words, without face priors and attributes.

    A clip is one block for a processor that takes clips, and as many pictures for others.
    """
    pictures = [encoded_or_picture(image) for image in row["images"]]
    pictures = [picture.convert("RGB") if isinstance(picture, Image.Image) else picture for picture in pictures]
    if row.get("media_type") == "video" and getattr(processor, "video_processor", None) is not None:
        media = [{"type": "video", "video": pictures}]
    else:
        media = [{"type": "image", "image": picture} for picture in pictures]
    question = next(message["content"] for message in row["messages"] if message["role"] == "user")
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def answer_tokens(processor, options: Sequence[str]) -> list[list[int]]:
    """The tokens of each option as they follow a prompt of the processor's chat template.

    Some templates put a space before the answer, and some tokenizers write a word otherwise where a text begins.
    """
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    prompt = processor.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
    before = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    rows = []
    for option in options:
        reply = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        whole = processor.apply_chat_template([question, reply], tokenize=False)
        space = whole[len(prompt) :].partition(option)[0] if whole.startswith(prompt) else ""
        written = option if space.strip() else space + option  # a template may open with more than a space
        after = processor.tokenizer(prompt + written, add_special_tokens=False)["input_ids"]
        alone = processor.tokenizer(written, add_special_tokens=False)["input_ids"]
        rows.append(after[len(before) :] if after[: len(before)] == before else alone)
    return rows


def stop_tokens(model, processor) -> list[int]:
    """The tokens at which `generate` stops, each of which ends the model's turn."""
    stops = model.generation_config.eos_token_id
    stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    return sorted({*stops, processor.tokenizer.eos_token_id} - {None})


def one_ahead(items: Iterator) -> Iterator:
    """The items of an iterator, each made in a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _is_ours(processor) -> bool:
    """Whether it is an `EmoLlamaProcessor`, imported or loaded as remote code."""
    return hasattr(processor, "face_backend")


def _to_model(inputs, model, processor):
    """Our model casts pixels itself, and keeps face priors in float32; others expect their own dtype."""
    return inputs.to(model.device) if _is_ours(processor) else inputs.to(model.device, model.dtype)


def _batches(processor, rows: Iterable[dict], batch_size: int) -> Iterator[tuple[list[str], list[dict], Any]]:
    """Options, rows and tensors of one batch after the other."""
    for options, same in groupby(rows, key=itemgetter("options")):
        while batch := list(islice(same, batch_size)):
            yield options, batch, ask(processor, batch)


def _write(model, processor, inputs, answers: list[list[int]], max_new_tokens: int) -> tuple[list[str], list]:
    """What the model writes, and the probabilities of the options where they cost little."""
    written = model.generate(
        **inputs, **_greedy(model, processor, max_new_tokens), return_dict_in_generate=True, output_logits=True
    )
    texts = _texts(processor, inputs, written.sequences)
    if not sees_trees(model, inputs["input_ids"].shape[1] + max(max_new_tokens, max(map(len, answers)))):
        return texts, [None] * len(texts)  # what is left of the prompt in their caches cannot be used again
    stops = stop_tokens(model, processor)
    scores = score_options(model, processor.tokenizer, inputs, answers, prefill=written, ends=stops)  # [rows, options]
    return texts, option_probabilities(scores).tolist()


def _greedy(model, processor, max_new_tokens: int) -> dict[str, Any]:
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": processor.tokenizer.pad_token_id,
    }


def _texts(processor, inputs, sequences) -> list[str]:
    return processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
