"""The expression vocabulary: canonical labels, their synonyms, and how a model's answer becomes a label.

Folders, annotation lists and models spell expressions in many ways; every other file knows only the canonical nouns.

    canonical("Happy")                                                -> "happiness"
    parse_label("The man looks surprised.", ["surprise", "fear"])     -> "surprise"
    parse_label("He is not angry.", ["surprise", "anger"])            -> None
"""

import difflib
import re
from collections.abc import Iterable

from ferid_dataset.errors import FeridError

LABELS: tuple[str, ...] = (
    # RAF-DB's order, in which FERID lists the options; then what AffectNet and MAFW add.
    "surprise",
    "fear",
    "disgust",
    "happiness",
    "sadness",
    "anger",
    "neutral",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)

SYNONYMS: dict[str, tuple[str, ...]] = {
    "surprise": ("surprised", "astonished", "astonishment", "amazed", "amazement", "shock", "shocked", "startled"),
    "fear": ("fearful", "afraid", "scared", "frightened", "fright", "terror", "terrified"),
    "disgust": ("disgusted", "revulsion", "repulsion", "repulsed"),
    "happiness": ("happy", "happily", "joy", "joyful", "joyous", "cheerful"),
    "sadness": ("sad", "sadly", "sorrow", "sorrowful"),
    "anger": ("angry", "angrily", "angered", "furious", "rage"),
    "neutral": ("neutrality", "calm", "blank", "expressionless", "emotionless"),
    "contempt": ("contemptuous", "scorn", "scornful", "disdain", "disdainful"),
    "anxiety": ("anxious", "worried", "worry"),
    "helplessness": ("helpless",),
    "disappointment": ("disappointed",),
}

_LABEL_OF_WORD = {word: label for label in LABELS for word in (label, *SYNONYMS[label])}

# A negation reaches from its word to the end of the clause: "does not look angry or sad, but calm" -> neutral.
_CLAUSE_END = re.compile(r"[.,;:!?()\n]|\b(?:but|however|yet|because|although|though)\b")
_NEGATION = re.compile(
    r"\b(?:not(?! (?:only|just))|no(?! doubt)|without(?! (?:a |any )?doubt)|never|neither|nor|none|non|un|cannot|"
    r"lacks?|lacking|absence|rather than|instead of|\w+n't)\b"
)
_WORD = re.compile(r"[^\W_]+")


def canonical(name: str) -> str:
    """The canonical label that `name` means, whatever its case: "Happy", "JOY" and "happiness" are "happiness".

    Raises:
        FeridError: nothing known is spelt so; names the closest known spellings.
    """
    word = name.strip().casefold()
    if word in _LABEL_OF_WORD:
        return _LABEL_OF_WORD[word]
    close = difflib.get_close_matches(word, _LABEL_OF_WORD, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(LABELS)} and their synonyms"
    raise FeridError(f"{name!r} is no expression that FERID knows: {hint}")


def parse_label(text: str, options: Iterable[str]) -> str | None:
    """The one label that an answer names, or None when it names none, several, or one that was not offered.

    Whole words count, in any case and with any punctuation ("unhappy" is not happiness). A mention that is negated
    within its clause does not count ("not angry"). Two different labels, such as a listing of the options, are no
    answer. The result is canonical, however the options are spelt.

    Args:
        text: what the model wrote, such as "Happiness." or "The person is angry, not sad."
        options: the labels that were offered, such as `["surprise", "anger"]`.

    Raises:
        FeridError: an option is no expression that FERID knows.
    """
    named = set()
    for clause in _CLAUSE_END.split(text.casefold().replace("’", "'")):
        clause = clause.replace("_", " ")
        negation = _NEGATION.search(clause)
        affirmed = clause[: negation.start()] if negation else clause
        named |= {_LABEL_OF_WORD[word] for word in _WORD.findall(affirmed) if word in _LABEL_OF_WORD}
    if len(named) != 1:
        return None
    label = named.pop()
    return label if label in {canonical(option) for option in options} else None
