"""`ferid quality`: how good free answers are, from `answers.jsonl` alone.

    {"id": "mafw/00025", "source": "mafw", "media_type": "video", "label": "sadness", "question": "What is ...?",
     "reference": "The person in the video is sad. ...", "text": "The man looks sad. ...", "attributes": {...}}

Label support says whether an answer affirms the label, contradicts it, or does not name it, by the rules that
generated conversations must keep (`generate/rules.py`). ROUGE-L says how much of the wording is the reference's. A
judge (`judge.py`), if one is asked, says how well the meaning agrees. Each line of `quality.jsonl`:

    {"id": "mafw/00025", "support": "affirmed", "rouge_l": 0.41, "rules": [],
     "judgement": {"reason": "...", "label_agreement": 10, "clue_agreement": 6}}
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ferid_dataset.errors import FeridError
from ferid_dataset.evaluate.predictions_file import check_attributes, json_lines
from ferid_dataset.generate.rules import violations
from ferid_dataset.generate.schema import Conversation, Turn
from ferid_dataset.labels import CLASSES, canonical

SUPPORTS = ("affirmed", "contradicted", "not_named")
SCORES = ("label_agreement", "clue_agreement")
REQUIRED = ("id", "label", "text")
RESAMPLES = 2000


def measure_quality(
    answers: Sequence[dict[str, Any]], judgements: Mapping[str, dict[str, Any]] | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    All figures of a list of answers.

    Args:
        answers (`Sequence[dict]`):
            As [`read_answers`] returns them.
        judgements (`Mapping[str, dict]`, *optional*):
            By id, what a judge said; an answer without one has no scores, never scores of zero.
        seed (`int`, *optional*, defaults to 0):
            Seed of the bootstrap.

    Returns:
        `tuple[dict, list[dict]]`: the figures, ready for JSON, and a line of `quality.jsonl` for each answer.
            - **n** (`int`).
            - **label_support** (`{"affirmed": {"rate", "ci95", "n"}, "contradicted": ..., "not_named": ...}`): of the
              answers. **reference_support**: of the references, which is what a perfect imitator would reach.
            - **rouge_l** (`{"mean", "ci95", "n"}`): over the answers that have a reference; see [`rouge_l`].
            - **rules** (`{rule: int}`): how many answers break each rule of generated conversations.
            - **label_agreement**, **clue_agreement** (`{"mean", "ci95", "n"}` or `None`): over the judged answers.
            - **by_source** (`{source: dict}`): all of these for each source.

    Raises:
        [`FeridError`]: there are no answers.
    """
    if not answers:
        raise FeridError("There are no answers to measure; check that the split holds rows.")
    lines = [_line(row, (judgements or {}).get(row["id"])) for row in answers]
    sources: dict[str, list[int]] = {}
    for index, row in enumerate(answers):
        sources.setdefault(row.get("source") or "unknown", []).append(index)
    figures = _figures(lines, seed) | {
        "by_source": {
            source: _figures([lines[index] for index in sources[source]], seed) for source in sorted(sources)
        }
    }
    for line in lines:
        del line["reference_support"]
    return figures, lines


def _line(row: dict[str, Any], judgement: dict[str, Any] | None) -> dict[str, Any]:
    reference = row.get("reference")
    support, rules = label_support(row, row["text"])
    return {
        "id": row["id"],
        "support": support,
        "reference_support": label_support(row, reference)[0] if reference else None,
        "rouge_l": rouge_l(row["text"], reference) if reference else None,
        "rules": rules,
        "judgement": judgement,
    }


def _figures(lines: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    judged = [line["judgement"] for line in lines if line["judgement"]]
    return {
        "n": len(lines),
        "label_support": _shares([line["support"] for line in lines], seed),
        "reference_support": _shares([line["reference_support"] for line in lines if line["reference_support"]], seed),
        "rouge_l": _mean([line["rouge_l"] for line in lines if line["rouge_l"] is not None], seed),
        "rules": dict(Counter(rule for line in lines for rule in line["rules"]).most_common()),
        **{name: _mean([judgement[name] for judgement in judged], seed) for name in SCORES},
    }


def label_support(row: Mapping[str, Any], text: str) -> tuple[str, list[str]]:
    """
    Whether a text says the label of its row, by the rules of generated conversations.

    Args:
        row (`Mapping`):
            With `id` and `label`; with `question`, `source`, `media_type`, `options` and `attributes` where known.
        text (`str`):
            The answer.

    Returns:
        `tuple[str, list[str]]`: "contradicted" (another expression that the source tells apart is said to be the
            person's, be the right one named or not), "affirmed", or "not_named"; and all rules that the text breaks.
    """
    sample = {
        "id": row["id"],
        "label": row["label"],
        "media_type": row.get("media_type") or "image",
        "options": row.get("options") or CLASSES.get(row.get("source")),
        "attributes": row.get("attributes"),
    }
    question = row.get("question") or "What is the facial expression of the person?"
    rules = violations(sample, Conversation(turns=[Turn(question=question, answer=text)]))
    if "contradiction" in rules:
        return "contradicted", rules
    return "not_named" if "unsupported" in rules else "affirmed", rules


_TOKEN = re.compile(r"[a-z0-9]+")  # of the package rouge-score, without stemming


def rouge_l(text: str, reference: str) -> float:
    """
    ROUGE-L: the F-measure of the longest common subsequence of words.

    With that subsequence of length l, precision is l / words of the text, recall l / words of the reference, and F
    their harmonic mean (Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", with beta = 1). Words
    are those of Google's package rouge-score without stemming, and so are the values; a text without words has 0.

    Args:
        text, reference (`str`):
            English texts; letters other than a to z end a word.
    """
    words, wanted = _TOKEN.findall(text.lower()), _TOKEN.findall(reference.lower())
    common = longest_common_subsequence(words, wanted)
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """
    The length of the longest common subsequence, by rows of bits (Hyyrö, 2004, "Bit-parallel LCS-length computation
    revisited"): a zero in `row` stands where the length grows, and one addition does the work of a row of the table.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & every
    return len(first) - row.bit_count()


def _shares(supports: Sequence[str], seed: int) -> dict[str, dict[str, Any]] | None:
    """The rate of each kind of support, with a 95 % bootstrap interval; None where there is nothing."""
    if not supports:
        return None
    counts = np.array([supports.count(support) for support in SUPPORTS])
    drawn = np.random.default_rng(seed).multinomial(len(supports), counts / len(supports), size=RESAMPLES)
    intervals = np.percentile(drawn / len(supports), [2.5, 97.5], axis=0).T.tolist()
    return {
        support: {"rate": float(n / len(supports)), "ci95": interval, "n": int(n)}
        for support, n, interval in zip(SUPPORTS, counts, intervals, strict=True)
    }


def _mean(values: Sequence[float], seed: int) -> dict[str, Any] | None:
    """The mean with a 95 % percentile bootstrap interval; None where there is nothing."""
    if not values:
        return None
    array, generator = np.array(values, float), np.random.default_rng(seed)
    means = [array[generator.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    return {"mean": float(array.mean()), "ci95": np.percentile(means, [2.5, 97.5]).tolist(), "n": len(array)}


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """
    Read and check an `answers.jsonl`.

    Args:
        path (`str` or `Path`):
            The file, one JSON object a line, or the folder of an evaluation, in which it is called `answers.jsonl`.

    Returns:
        `list[dict]`: the rows as they stand in the file.

    Raises:
        [`FeridError`]: the file is missing or empty, or a line is malformed; names the line.
    """
    path = Path(path) / "answers.jsonl" if Path(path).is_dir() else Path(path)
    rows: dict[str, dict[str, Any]] = {}
    for place, row in json_lines(path, REQUIRED, "an answer"):
        _check(row, place)
        if row["id"] in rows:
            raise FeridError(f"{place}: the id {row['id']!r} occurs twice; keep one of the lines.")
        rows[row["id"]] = row
    if not rows:
        raise FeridError(f"{path} holds no answers; run the evaluation again.")
    return list(rows.values())


def _check(row: dict[str, Any], place: str) -> None:
    for key in (*REQUIRED, "question", "reference", "source", "media_type"):
        if not isinstance(row.get(key), str | None) or (key in REQUIRED and row[key] is None):
            raise FeridError(f"{place}: the {key} {row[key]!r} is no text; write it in quotes.")
    if row.get("media_type") not in (None, "image", "video"):
        raise FeridError(f'{place}: the media_type {row["media_type"]!r} is neither "image" nor "video".')
    check_attributes(row, place)
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise FeridError(f"{place}: the options {options!r} are no list of expressions; remove them.")
    try:
        row["label"] = canonical(row["label"])
        for option in options:
            canonical(option)
    except FeridError as error:
        raise FeridError(f"{place}: {error}") from error


def write_quality(figures: dict[str, Any], lines: Sequence[dict[str, Any]], output: str | Path) -> None:
    """Write `quality.json` and `quality.jsonl` into a folder, which is made when missing."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with (output / "quality.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    text = json.dumps(figures, indent=2, allow_nan=False, ensure_ascii=False)
    (output / "quality.json").write_text(text + "\n", encoding="utf-8")
