"""The expression vocabulary: canonical labels, their synonyms, and how a model's answer becomes a label.

Folders, annotation lists and models spell expressions in many ways; every other file knows only the canonical nouns.

    canonical("Happy")                                                -> "happiness"
    parse_label("The man looks surprised.", ["surprise", "fear"])     -> "surprise"
    parse_label("He is not angry.", ["surprise", "anger"])            -> None
"""

import difflib
import re
import unicodedata
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

# The expressions of each source in the order of its official indices.
CLASSES: dict[str, tuple[str, ...]] = {
    "raf_db": ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"),
    "affectnet": ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"),
    "ferplus": ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    "dfew": ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"),
    "ferv39k": ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"),
    "mafw": (
        "anger",
        "disgust",
        "fear",
        "happiness",
        "neutral",
        "sadness",
        "surprise",
        "contempt",
        "anxiety",
        "helplessness",
        "disappointment",
    ),
    "crema_d": ("anger", "disgust", "fear", "happiness", "neutral", "sadness"),
}

LABEL_OF_WORD = {word: label for label in LABELS for word in (label, *SYNONYMS[label])}

# A negation reaches from its word to the end of the clause: "does not look angry or sad, but calm" -> neutral.
_CLAUSE_END = re.compile(r"[.,;:!?()\n]|(?<!anything )\bbut\b|\b(?:however|yet|because|although|though)\b")
_NEGATION = re.compile(
    r"\b(?:not(?! (?:only|just))|no(?! doubt)|without(?! (?:a |any )?doubt)|never|neither|nor|none|non|un|cannot|"
    r"lacks?|lacking|absence|rather than|instead of|\w+n't|hardly|scarcely|far from|anything but|"
    r"(?:hard|difficult|impossible|unable) to (?:tell|say|know|see|judge|determine|identify)|"
    r"un(?:clear|sure|certain) (?:if|whether))\b"
)
_WORD = re.compile(r"[^\W_]+")
_COMPOUND = re.compile(r"_| and ")
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.S)
_QUESTION = re.compile(r"(?:^|(?<=[.!?\n]))[^.!?\n]*\?")
# Letters that are neither Latin nor punctuation or pictures: Greek to Georgian and beyond, CJK, Hangul.
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1dff\u1f00-\u1fff\u2e80-\u2fdf\u3040-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")


def canonical(name: str) -> str:
    """The canonical label that `name` means, whatever its case: "Happy", "JOY" and "happiness" are "happiness".

    A compound expression keeps the order of its parts: "angry_disgusted" is "anger and disgust".

    Raises:
        FeridError: nothing known is spelt so; names the closest known spellings.
    """
    parts = _COMPOUND.split(name.strip().casefold())
    if len(parts) > 1:
        return " and ".join(canonical(part) for part in parts)
    word = parts[0]
    if word in LABEL_OF_WORD:
        return LABEL_OF_WORD[word]
    close = difflib.get_close_matches(word, LABEL_OF_WORD, n=2)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(LABELS)} and their synonyms"
    raise FeridError(f"{name!r} is no expression that FERID knows: {hint}")


def parse_label(text: str, options: Iterable[str]) -> str | None:
    """The one label that an answer names, or None when it names none, several, or one that was not offered.

    Whole words count, in any case and with any punctuation ("unhappy" is not happiness). A mention that is negated
    within its clause does not count ("not angry", "hard to tell whether he is angry"). Two different labels, such as a
    listing of the options, are no answer, unless a compound of just these was offered. Where a model thinks aloud in
    <think> tags, or answers in <answer> tags, only the answer is read.

    English is read, and the options are English. A clause with letters of another script is not understood, so that
    neither a word of it nor its negation is guessed at: "快乐 (happiness)" is happiness, "不是 happiness" is None.

    The result is canonical, however the options are spelt.

    Args:
        text: what the model wrote, such as "Happiness." or "The person is angry, not sad."
        options: the labels that were offered, such as `["surprise", "anger"]`.

    Raises:
        FeridError: an option is no expression that FERID knows.
    """
    offered = {frozenset(label.split(" and ")): label for label in map(canonical, options)}
    clauses = affirmed(_answer_in(text)).split(".")
    return offered.get(frozenset(labels_in(".".join(each for each in clauses if not _OTHER_SCRIPT.search(each)))))


def _answer_in(text: str) -> str:
    """What a model answers, without its thoughts, its tags and the questions that it asks itself, in lower case."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("。", ".").replace("、", ",")
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    if tagged := _ANSWER.findall(text):
        text = "\n".join(tagged)
    answers_itself = _WORD.search(text.rpartition("?")[2])  # "Anger? No, disgust.", but not "Anger? Fear?"
    return _QUESTION.sub(" ", text) if answers_itself else text


def affirmed(text: str) -> str:
    """A text in lower case, each clause cut where a negation begins; a full stop stands for each clause's end.

    "It is not fear, but Anger!" is "it is . . anger.".
    """
    clauses = []
    for clause in _CLAUSE_END.split(text.casefold().replace("’", "'")):
        clause = clause.replace("_", " ")
        negation = _NEGATION.search(clause)
        clauses.append(clause[: negation.start()] if negation else clause)
    return ".".join(clauses)


def labels_in(text: str) -> set[str]:
    """The canonical labels of which a text in lower case has a whole word: "sad, unhappy" has {"sadness"}."""
    return {LABEL_OF_WORD[word] for word in _WORD.findall(text) if word in LABEL_OF_WORD}
