"""What a conversation must not do to become part of FERID: rules, each with a name by which rejects are counted.

    violations({"id": "mafw/00025", "label": "sadness", "media_type": "video", "options": ["anger", "sadness", ...],
                "attributes": {"gender": "female"}},
               Conversation(turns=[Turn(question="What is the emotion of the person?", answer="He looks angry.")]))
    -> ["unsupported", "contradiction", "gender"]

They read words, not meaning, so they err: they are made to let good text pass, and to catch what models really do
wrong. What a model is told of a rule that it broke stands in `prompts.py`.
"""

import re
from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any, NamedTuple

from ferid_dataset.generate.schema import Conversation, Turn
from ferid_dataset.labels import LABEL_OF_WORD, LABELS, affirmed, canonical, labels_in

MOST_TURNS = 3
WORDS_OF_QUESTION = range(3, 41)
WORDS_OF_ANSWER = range(3, 181)


class Talk(NamedTuple):
    """A conversation as the rules look at it: all in lower case, prepared once."""

    turns: list[Turn]
    text: str  # questions and answers, a line each
    answers: str  # a line each
    words: frozenset[str]  # of the text; most rules end at a look at them
    said: str  # what the answers affirm


def violations(sample: Mapping[str, Any], conversation: Conversation) -> list[str]:
    """The names of the rules that a conversation breaks, in the order of `RULES`; none: it may be used.

    Args:
        sample: a FERID row, or of it `id`, `label`, `media_type`, `attributes` and `options`.
        conversation: what a model wrote about it.
    """
    talk = _read(conversation)
    return [name for name, is_broken in RULES.items() if is_broken(sample, talk)]


_WORD = re.compile(r"[^\W\d_]+")
_EXPRESSION = "|".join(sorted(LABEL_OF_WORD, key=len, reverse=True))
# "no signs of anger, deep sadness, or joy": the commas end no clause, so the negation reaches all
_LISTING = re.compile(
    rf"\b(?:{_EXPRESSION})(?:,? (?:\w+ ){{0,2}}?(?:{_EXPRESSION})\b){{0,9}}"
    rf",? (?:or|nor) (?:\w+ ){{0,2}}?(?:{_EXPRESSION})\b"
)


def _read(conversation: Conversation) -> Talk:
    turns = [
        Turn.model_construct(question=_plain(turn.question), answer=_plain(turn.answer)) for turn in conversation.turns
    ]
    text = "\n".join(line for turn in turns for line in (turn.question, turn.answer))
    answers = "\n".join(turn.answer for turn in turns)
    said = _LISTING.sub(lambda match: match[0].replace(",", ""), answers.replace(", who ", " who "))
    return Talk(turns, text, answers, frozenset(_WORD.findall(text)), affirmed(said))


def _plain(text: str) -> str:
    return text.lower().replace("’", "'")


# --- form ---------------------------------------------------------------------------------------------------------


def turns(sample: Mapping[str, Any], talk: Talk) -> bool:
    """No turn, or more than three."""
    return not 1 <= len(talk.turns) <= MOST_TURNS


def empty(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A question or an answer without a letter."""
    return not all(_WORD.search(turn.question) and _WORD.search(turn.answer) for turn in talk.turns)


def length(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A question or an answer of too few or too many words."""
    return not all(
        len(turn.question.split()) in WORDS_OF_QUESTION and len(turn.answer.split()) in WORDS_OF_ANSWER
        for turn in talk.turns
    )


_ENDED = re.compile(r"(?<!\.\.)[.!?][\"'”’)]*\s*$")


def cut(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A question or an answer that does not end as a sentence does, or ends in dots."""
    return not all(_ENDED.search(turn.question) and _ENDED.search(turn.answer) for turn in talk.turns)


# Words that other languages in Latin letters do not have, or not as often.
_ENGLISH = frozenset(
    "the is are of and to with that this what why how where who which person people her his their she he they it its "
    "eyes eyebrows eyebrow mouth face facial expression emotion feeling looks looking appears seems suggests shows "
    "be been being not for from by at as or but also may might could cannot there image video smile smiling has have "
    "does do wide open slightly raised which while because than into out about".split()
)


def language(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A turn in other letters than English ones, or with hardly a common English word."""
    for turn in talk.turns:
        words = _WORD.findall(f"{turn.question} {turn.answer}")
        foreign = sum(not word.isascii() for word in words)
        if words and (foreign > 0.1 * len(words) or sum(word in _ENGLISH for word in words) < 0.2 * len(words)):
            return True
    return False


_MARKUP = re.compile(
    r"[*`{}\[\]|<>#\\^~\ufffd\x00-\x08\x0b\x0c\x0e-\x1f]|__|https?:|www\.|^[ \t]*(?:[-•–]|\d+[.)])\s"
    r"|^[ \t]*(?:q|a|question|answer|user|assistant|human|gpt)\s*\d*:",
    re.M,
)


def markdown(sample: Mapping[str, Any], talk: Talk) -> bool:
    """Marks of markdown, HTML or JSON, lists, links, names of roles, control characters."""
    return bool(_MARKUP.search(talk.text))


_SENTENCE_END = re.compile(r"[.!?]+\s+")
_SAME = 0.9  # share of words in common order from which on two texts say the same


def repeats(sample: Mapping[str, Any], talk: Talk) -> bool:
    """Two questions or two answers that are nearly the same, or a sentence of an answer that comes twice."""
    for texts in zip(*((turn.question, turn.answer) for turn in talk.turns[:MOST_TURNS]), strict=True):
        words = [text.split()[:200] for text in texts]
        for first, second in combinations(words, 2):
            matcher = SequenceMatcher(None, first, second, autojunk=False)
            if matcher.real_quick_ratio() > _SAME and matcher.quick_ratio() > _SAME and matcher.ratio() > _SAME:
                return True
    sentences = [tuple(_WORD.findall(sentence)) for sentence in _SENTENCE_END.split(talk.answers)]
    sentences = [sentence for sentence in sentences if len(sentence) > 2]
    return len(set(sentences)) < len(sentences)


# --- what it speaks of --------------------------------------------------------------------------------------------

_REFUSING = frozenset("sorry apologize apologise can cannot won unable able impossible possible hard".split())
_REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:very |so )?sorry\b|\bi apologi[sz]e\b|\bi (?:can't|can ?not|won't|am unable|am not able)\b"
    r"|\bi'm (?:not able|unable)\b|\b(?:can ?not|can't|unable to|not able to) (?:assist|help with|comply|provide)"
    r"|\b(?:can ?not|can't|(?:impossible|not possible|unable|not able|difficult|hard) to) (?:be )?"
    r"(?:determined?|identify|identified|tell|told|see|seen|say|know|known|discern(?:ed)?) (?:what )?"
    r"(?:(?:the|their|her|his|person's|exact|specific) )*(?:facial )?(?:expression|emotion)",
)


def refusal(sample: Mapping[str, Any], talk: Talk) -> bool:
    """An answer that refuses, or says that the expression cannot be told. Not to know the cause is no refusal."""
    return not talk.words.isdisjoint(_REFUSING) and bool(_REFUSAL.search(talk.answers))


_LABEL_WORDS = frozenset(
    "label labels labeled labelled labeling labelling annotation annotations annotated annotator metadata caption "
    "captions captioned description descriptions provided".split()
)
_TELLING = frozenset(
    "given facts instruction instructions prompt information truth described stated mentioned specified".split()
)
_LABEL_TALK = re.compile(
    r"\b(?:the|this|these|your|my|its) (?:facts|instructions?|prompt|information)\b|\bground truth\b"
    r"|\b(?:as|is|was|are|were) (?:described|stated|mentioned|specified)\b"
    r"|\b(?:expression|emotion|image|video|text) (?:that )?(?:was|were|is|are|has been) given\b"
    # to be given a present is a scene
    r"|(?<!been )(?<!being )(?<!was )(?<!were )\bgiven\b"
    r"|\b(?:been|being|was|were) given (?!an? |some |bad |good |the )"
)


def speaks_of_label(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A label, a description, instructions, or something that was given or provided."""
    return not talk.words.isdisjoint(_LABEL_WORDS) or (
        not talk.words.isdisjoint(_TELLING) and bool(_LABEL_TALK.search(talk.text))
    )


_FILE_WORDS = frozenset("raf affectnet ferplus dfew ferv mafw crema ferid dataset datasets filename filenames".split())
_FILE = re.compile(r"\.(?:jpe?g|png|bmp|tiff?|gif|webp|mp4|avi|flv|mov|mkv|webm|csv|txt|json)\b")


def speaks_of_files(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A file, a dataset, or the sample's own id."""
    name = sample["id"].rpartition("/")[2].lower()
    is_telling = len(name) > 3 and any(map(str.isdigit, name))
    return (
        not talk.words.isdisjoint(_FILE_WORDS)
        or bool(_FILE.search(talk.text))
        or (is_telling and name in talk.text and bool(re.search(rf"\b{re.escape(name)}\b", talk.text)))
    )


_AI_WORDS = frozenset("ai chatgpt assistant language training trained bot model machine computer".split())
_AI_TALK = re.compile(
    r"\bas an? (?:ai|assistant)\b|\bai (?:model|assistant|system)|\blanguage model|\bchatgpt\b|\bmy training\b"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|assistant|bot|model|machine|computer)|\bi was trained\b"
)


def speaks_as_ai(sample: Mapping[str, Any], talk: Talk) -> bool:
    """The assistant speaks of itself as a machine."""
    return not talk.words.isdisjoint(_AI_WORDS) and bool(_AI_TALK.search(talk.text))


_OTHER_MEDIUM = {
    "image": re.compile(r"\b(?:the|this) (?:video|clip|footage|frames?)\b"),
    "video": re.compile(r"\b(?:the|this) (?:still )?(?:images?|photo(?:graph)?|picture|still|(?:\w+ )?frame)\b"),
}


def wrong_medium(sample: Mapping[str, Any], talk: Talk) -> bool:
    """A clip is called an image or a frame, an image a video."""
    return bool(_OTHER_MEDIUM[sample["media_type"]].search(talk.text))


# --- the expression -----------------------------------------------------------------------------------------------

# What says the expression without naming it: "The person is smiling." Only for support: a cue contradicts nothing.
_CUES = {
    "surprise": r"stunned|taken aback|disbelief|gasp(?:s|ing)?|in awe|astonishing|dumbfounded|wide-eyed",
    "fear": r"panic\w*|horrified|horror|alarm(?:ed)?|dread|petrified|fearfully|frightening",
    "disgust": r"disgusting|grossed out|repelled|nausea(?:ted)?|distaste|aversion|revolted|repugnance|sickened",
    "happiness": r"(?<!forced )(?<!fake )(?<!bitter )(?:smil(?:e|es|ed|ing)|grin(?:s|ning)?)|laugh(?:s|ed|ing|ter)?"
    r"|delight(?:ed)?|beaming|cheery|pleased|glad|amused|amusement|elated|contentment",
    "sadness": r"unhappy|unhappiness|saddened|cry|cries|crying|weep(?:s|ing)?|tearful|in tears|sob(?:s|bing)?|grief"
    r"|grieving|mournful|melanchol(?:y|ic)|downcast|dejected|despondent|heartbroken|gloomy",
    "anger": r"mad|irritat(?:ed|ion)|annoy(?:ed|ance)|frustrat(?:ed|ion)|outraged?|enraged|irate|fury|infuriated"
    r"|scowl(?:s|ing)?|glar(?:es|ing)|hostil(?:e|ity)",
    "neutral": r"composed|impassive|unemotional|deadpan|stoic|relaxed|straight face|inexpressive|unexpressive",
    "contempt": r"sneer(?:s|ing)?|smirk(?:s|ing)?|mocking|derisi(?:on|ve)|condescending|condescension|scoff(?:s|ing)?",
    "anxiety": r"nervous(?:ly|ness)?|uneas[ey]|uneasiness|apprehensi(?:on|ve)|anxiously|on edge|tense|concerned",
    "helplessness": r"powerless(?:ness)?|helplessly|at a loss|despair(?:ing)?|hopeless(?:ness)?|desperat(?:e|ion)",
    "disappointment": r"disappointing|disappointedly|let down|dismay(?:ed)?|disheartened|dissatisfied|discouraged",
}
_CUES = {label: re.compile(rf"\b(?:{cues})\b") for label, cues in _CUES.items()}
# Negated words that affirm: they are looked for before negations are cut.
_NO_EMOTION = re.compile(
    r"(?:\b(?:no|not|without|lacks?|lack of)|n't) (?:\w+ ){0,3}?(?:emotions?|facial expression)\b"
)


def unsupported(sample: Mapping[str, Any], talk: Talk) -> bool:
    """No answer says the expression of the sample; of a compound, both."""
    missing = set(sample["label"].split(" and ")) - labels_in(talk.said)
    if "neutral" in missing and _NO_EMOTION.search(talk.answers):
        missing.remove("neutral")
    return any(not _CUES[label].search(talk.said) for label in missing)


# A word of an expression counts as the person's after a word such as "looks", and before none such as "news".
_AS_THE_PERSONS = re.compile(
    r"\b(?:is|are|was|be|being|looks?|looked|looking|appears?|appearing|seems?|feels?|feeling|felt|becomes?|gets|getting"
    r"|remains?|shows?|showing|express(?:es|ing)?|displays?|displaying|conveys?|conveying|indicat(?:es?|ing)"
    r"|suggest(?:s|ing)?|reflect(?:s|ing)?|experienc(?:es|ing)|reveals?|revealing|exhibits?|exhibiting|radiat(?:es|ing)"
    r"|(?:expression|emotion|feeling|sense|signs?|look|air|mix|mixture|blend|combination|state|hint) of"
    r"|(?:filled|overcome) with|full of|in|an?|the|person's) "
    r"(?:(?:\w+ly|very|quite|so|rather|somewhat|an?|the|bit|little|more|both|and|or|of|also|even|to|be|like|deep"
    rf"|strong|mild|clear|genuine|intense|pure|great|visible|some|their|her|his|{_EXPRESSION}) ){{0,7}}"
    rf"(?:{_EXPRESSION})\b(?!'s|-\w| (?:news|events?|occasion|situation|scene|story|memory|memories|movie|film|song"
    r"|music|party|gift|ending|times?|days?|place|background|colou?rs?|tones?|wall|room|ground|crowd|atmosphere|visit"
    r"|things?|people|faces|birthday|stare|position|posture|lighting|setting|backdrop|gr[ae]y|white|beige|family|couple))",
)
_NOT_THE_PERSONS = re.compile(
    r"\b(?:may|might|could|would|perhaps|possibly|maybe|if|whether|another|others?|someone|somebody|people|crowd"
    r"|everyone|audience|companions?|friends?|behind|beside|next to|around|opposite|background"
    r"|a surprise(?! expression| face))\b"
)
_SHADES = re.compile(r"\b(?:calm|blank|worr(?:y|ied)|emotionless|expressionless|shock(?:ed)?|startled)\b")  # of many
_CAUSE = re.compile(
    r"\bwhy\b|\bwhat (?:makes|made|causes|caused|triggered)\b|\b(?:cause|reasons?) (?:for|of|behind|why)\b"
)


def contradiction(sample: Mapping[str, Any], talk: Talk) -> bool:
    """Another expression that the source tells apart is said to be the person's, or is asked the cause of."""
    options = {part for option in sample["options"] or LABELS for part in canonical(option).split(" and ")}
    others = options - set(sample["label"].split(" and "))
    causes = affirmed("\n".join(turn.question for turn in talk.turns if _CAUSE.search(turn.question)))
    if not others & labels_in(f"{causes}\n{talk.said}"):
        return False
    clauses = (_NOT_THE_PERSONS.split(clause, maxsplit=1)[0] for clause in talk.said.split("."))
    claims = [match[0] for clause in clauses for match in _AS_THE_PERSONS.finditer(clause)]
    return bool(others & labels_in(_SHADES.sub("", "\n".join([causes, *claims]))))


_CUES_ASKED = re.compile(r"\b(?:you|we|one) (?:think|say|tell|know|believe|conclude)\b|\b(?:look|appear|seem)s?\b")
_ADMITS = re.compile(
    r"\b(?:impossible|cannot|can't|can not|not (?:possible|clear|known|certain|sure|evident)|unclear|unknown|uncertain"
    r"|difficult to|hard to|may|might|could|perhaps|possibly|probably|likely|seems?|appears?|suggests?)\b",
)


def certain_cause(sample: Mapping[str, Any], talk: Talk) -> bool:
    """The answer to "why" does not admit that the cause is not known. What makes one look so is another question."""
    return any(
        _CAUSE.search(turn.question) and not _CUES_ASKED.search(turn.question) and not _ADMITS.search(turn.answer)
        for turn in talk.turns
    )


# --- the person ---------------------------------------------------------------------------------------------------

_GENDERED = re.compile(
    r"\b(?:(he|him|his|himself|(?:the|this|(?<!there )is an?) (?:\w+ )?(?:man|boy|gentleman|guy|male))"
    r"|(?:she|her|hers|herself|(?:the|this|(?<!there )is an?) (?:\w+ )?(?:woman|girl|lady|female)))\b",
)


def gender(sample: Mapping[str, Any], talk: Talk) -> bool:
    """The first word that tells a gender is not of the known one. Later ones may speak of other people."""
    known = _attribute(sample, "gender").lower()
    told = _GENDERED.search(talk.text) if known in ("male", "female") else None
    return told is not None and known != ("male" if told[1] else "female")


_AGES = {  # the years in which one is called so
    r"baby|infant|newborn": (0, 3),
    r"toddler": (1, 5),
    r"child|kid|(?:little|young) (?:boy|girl)": (2, 16),
    r"teenager|teen|adolescent": (11, 21),
    r"young (?:man|woman|adult|person|lady)": (14, 42),
    r"middle-aged (?:man|woman|adult|person|lady|gentleman)": (35, 69),
    r"(?:elderly|old|senior) (?:man|woman|adult|person|lady|gentleman)": (52, 130),
}
_AGE_WORDS = frozenset(
    "baby infant newborn toddler child kid little young teenager teen adolescent middle elderly old senior".split()
)
_STARTS = r"(?:^(?:the|this)|\b(?<!there )(?:is|appears to be|seems to be|looks like) an?) (?:\w+ )?"
_AGES = {re.compile(rf"{_STARTS}(?:{words})\b", re.M): years for words, years in _AGES.items()}
_DECADES = ("teens", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties")
_YEARS = re.compile(
    r"\b(\d{1,3})[- ]years?[- ]olds?\b|\b(?:aged|age of) (\d{1,3})\b"
    rf"|\b(?:in|their|his|her) (?:early |mid[- ]|late )?({'|'.join(_DECADES)}|\d0'?s)\b"
)


def age(sample: Mapping[str, Any], talk: Talk) -> bool:
    """An age that is not near the known one, or one in years where none is known."""
    told = []
    if not talk.words.isdisjoint(_AGE_WORDS):
        told = [years for words, years in _AGES.items() if words.search(talk.text)]
    in_years = _YEARS.findall(talk.text)
    for *numbers, decade in in_years:
        first = 10 * (_DECADES.index(decade) + 1) if decade in _DECADES else int(decade[:2] or max(numbers))
        told.append((first, first + 9 if decade else first))
    known = [float(years) for years in re.findall(r"\d+(?:\.\d+)?", _attribute(sample, "age"))]
    if not known:
        return bool(in_years)
    youngest, oldest = known[0] - 5, known[-1] + 5 if "+" not in _attribute(sample, "age") else 200
    return any(last < youngest or first > oldest for first, last in told)


_OF_PEOPLE = r" (?:man|woman|men|women|person|people|male|female|boy|girl|child|descent|origin|heritage|features)"
_RACES = {
    "white": rf"caucasian|(?:white|european){_OF_PEOPLE}",
    "black": rf"african[- ]american|(?:black|african){_OF_PEOPLE}",
    "asian": rf"asian|(?:chinese|japanese|korean|indian|vietnamese|thai){_OF_PEOPLE}",
    "hispanic": rf"hispanic|latin[oax]|mexican{_OF_PEOPLE}",
    "other": rf"middle[- ]eastern{_OF_PEOPLE}|arab{_OF_PEOPLE}|native american|ethnicity|of mixed race",
}
_RACES = {race: re.compile(rf"\b(?:{words})\b") for race, words in _RACES.items()}
_RACE_WORDS = frozenset(
    "caucasian white european african black asian chinese japanese korean indian vietnamese thai hispanic latino "
    "latina latinx mexican eastern arab native ethnicity mixed".split()
)


def race(sample: Mapping[str, Any], talk: Talk) -> bool:
    """An ethnicity that is not the known one, or any where none is known."""
    known = _attribute(sample, "race").lower()
    return not talk.words.isdisjoint(_RACE_WORDS) and any(
        words.search(talk.text) and not words.search(known) for words in _RACES.values()
    )


def _attribute(sample: Mapping[str, Any], name: str) -> str:
    return (sample["attributes"] or {}).get(name) or ""


RULES: dict[str, Callable[[Mapping[str, Any], Talk], bool]] = {
    rule.__name__: rule
    for rule in (
        *(turns, empty, length, cut, language, markdown, repeats, refusal, speaks_of_label, speaks_of_files),
        *(speaks_as_ai, wrong_medium, unsupported, contradiction, certain_cause, gender, age, race),
    )
}
