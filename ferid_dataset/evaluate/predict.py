"""Asks a model the question of each row, and reads its answer.

    {"id": "folder/test/fear/0007", "source": "folder", "label": "fear", "prediction": "surprise", "text": "Surprise.",
     "options": ["surprise", "fear", "disgust"], "probabilities": {"surprise": 0.61, "fear": 0.37, "disgust": 0.02}}

The prompt, the processor and the face priors are those of training (`collate.to_chat`). `prediction` is what the model
wrote, as `parse_label` reads it; `probabilities` are the model's own of the options, whatever it wrote.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from ferid_dataset.collate import to_chat
from ferid_dataset.labels import canonical, parse_label
from modeling_emo_llama.option_scoring import option_probabilities, score_options


def predict(
    model, processor, dataset: Iterable[dict[str, Any]], *, batch_size: int = 16, max_new_tokens: int = 16
) -> Iterator[dict[str, Any]]:
    """
    Predictions one after the other, in the order of the rows.

    Args:
        model ([`PreTrainedModel`]):
            In eval mode, on the device that it is to run on.
        processor ([`ProcessorMixin`]):
            Its processor, padding on the left.
        dataset (`Iterable[dict]`):
            FERID rows of the `category` config.
        batch_size (`int`, *optional*, defaults to 16):
            Rows that run together; a batch ends early where the options change.
        max_new_tokens (`int`, *optional*, defaults to 16):
            Longest answer, in tokens. What is cut off there is not read.

    Yields:
        `dict`: a row of `predictions.jsonl`, as above.
    """
    for options, rows in groupby(dataset, key=itemgetter("options")):
        while batch := list(islice(rows, batch_size)):
            yield from _predict_batch(model, processor, batch, options, max_new_tokens)


def _predict_batch(model, processor, rows: list[dict], options: list[str], max_new_tokens: int) -> Iterator[dict]:
    inputs = processor.apply_chat_template(
        [to_chat(row, answers=False) for row in rows],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True},
    ).to(model.device)
    answers = model.generate(
        **inputs, do_sample=False, max_new_tokens=max_new_tokens, return_dict_in_generate=True, output_logits=True
    )
    texts = processor.batch_decode(answers.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    scores = score_options(model, processor.tokenizer, inputs, options, prefill=answers)  # [rows, options]
    probabilities = option_probabilities(scores).tolist()
    labels = [canonical(option) for option in options]  # "joy" was offered, "happiness" is counted
    for row, text, shares in zip(rows, texts, probabilities, strict=True):
        yield {
            "id": row["id"],
            "source": row["source"],
            "label": row["label"],
            "prediction": parse_label(text, options),
            "text": text.strip(),
            "options": labels,
            "probabilities": dict(zip(labels, shares, strict=True)),
        }
