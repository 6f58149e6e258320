"""The words for expressions: synonyms to labels, answers to labels."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferid_dataset.errors import FeridError
from ferid_dataset.labels import LABELS, SYNONYMS, canonical, parse_label

SEVEN = LABELS[:7]
WORDS = [(label, word) for label in SEVEN for word in (label, *SYNONYMS[label])]


def test_labels_stand_in_the_order_of_rafdb_then_mafw():
    assert " ".join(SEVEN) == "surprise fear disgust happiness sadness anger neutral"
    assert " ".join(LABELS[7:]) == "contempt anxiety helplessness disappointment"


def test_no_word_means_two_labels():
    words = [word for label in LABELS for word in (label, *SYNONYMS[label])]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("name", "label"),
    [("happy", "happiness"), ("Happiness", "happiness"), ("JOY", "happiness"), ("angry", "anger"), ("Sad ", "sadness")]
    + [("surprised", "surprise"), ("fearful", "fear"), ("Disgusted", "disgust"), ("anxious", "anxiety")],
)
def test_canonical(name, label):
    assert canonical(name) == label


def test_an_unknown_name_is_an_error_that_names_what_is_close():
    with pytest.raises(FeridError, match="'hapiness' is no expression .* did you mean happiness"):
        canonical("hapiness")
    with pytest.raises(FeridError, match="'xyz' is no expression .* known are surprise, fear"):
        canonical("xyz")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("happiness", "happiness"),
        ("Happiness.", "happiness"),
        ("  **JOY**!\n", "happiness"),
        ("The person has a surprised expression. She feels shocked or startled.", "surprise"),
        ("The person in the video is expressing sadness.", "sadness"),
        ("an angry-looking man", "anger"),
        ("Answer: anger", "anger"),
        ("It is anger, not fear.", "anger"),
        ("Not angry, but sad.", "sadness"),
        ("No, the person is angry.", "anger"),
        ("anger rather than fear", "anger"),
        ("This is no doubt anger", "anger"),
        ("There is no sign of anger; the face is neutral", "neutral"),
        ("unhappy", None),
        ("un-happy", None),
        ("The person is not angry.", None),
        ("The person doesn't look like he is happy", None),
        ("She isn’t sad", None),
        ("neither angry nor sad", None),
        ("non-neutral", None),
        ("happiness or surprise", None),
        (", ".join(SEVEN), None),
        ("{" + ", ".join(SEVEN) + "}", None),
        ("I cannot tell whether this person is happy.", None),
        ("I'm sorry, I can't help with that.", None),
        ("", None),
        (" \n", None),
        ("contempt", None),  # not among the options
        ("angerful sadden", None),  # no whole word
    ],
)
def test_parse_label(text, label):
    assert parse_label(text, SEVEN) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        # negated
        ("not angry", None),
        ("NOT ANGRY", None),
        ("unhappy, not sad", None),
        ("I think happiness, not sadness", "happiness"),
        ("I don't think he is happy; he is sad.", "sadness"),
        ("Not only sad but angry", None),
        ("far from happy", None),
        ("anything but happy", None),
        ("hardly a happy face", None),
        # two, or all
        ("sadness/anger", None),
        ("happy, but also surprised", None),
        ("It's a sad, sad face.", "sadness"),
        ("surprised (shocked)", "surprise"),
        ("1. surprise 2. fear", None),
        ("Options: " + "; ".join(SEVEN) + ".", None),
        ("\n".join(f"- {label}" for label in SEVEN), None),
        ("Anger? Fear?", None),
        ("Anger? No, disgust.", "disgust"),
        ("Is the person happy? No.", None),
        ("What is it? Fear!", "fear"),
        ("Sadness?", "sadness"),
        # refusals
        ("I'm unable to determine if the person is happy.", None),
        ("It is impossible to tell whether this is fear.", None),
        ("It is hard to say whether the person is sad.", None),
        ("It is unclear if the person is sad.", None),
        ("As an AI, I cannot identify emotions such as anger.", None),
        ("None of the above", None),
        ("The expression is hard to read, but I see anger.", "anger"),
        # other models' forms
        ("<answer>happiness</answer>", "happiness"),
        ("<ANSWER> Sad </ANSWER>", "sadness"),
        ("<think>Sad or angry? The brows are low.</think>\n<answer>anger</answer>", "anger"),
        ("<think>Could be sad.</think>Happiness.", "happiness"),
        ("sad or angry, the brows are low</think> anger", "anger"),  # a template that opens the thought itself
        ("<think>Could be sad, no, the person", None),  # cut off
        ("The brows are sad. <answer>fear", "fear"),
        ("<answer>happy or sad</answer>", None),
        ("<answer></answer>", None),
        ('{"emotion": "Happiness", "confidence": 0.9}', "happiness"),
        ('```json\n["sadness"]\n```', "sadness"),
        ('{"happiness": 0.9, "sadness": 0.1}', None),
        ("**Happiness**", "happiness"),
        ("# Answer: `anger`", "anger"),
        ("_fearful_", "fear"),
        ("\\boxed{anger}", "anger"),
        ("Happiness 😊", "happiness"),
        ("hApPy!!!...", "happiness"),
        ("ＨＡＰＰＹ", "happiness"),
        # other languages
        ("高兴", None),
        ("悲しみ", None),
        ("행복", None),
        ("грусть", None),
        ("سعيد", None),
        ("la tristesse", None),
        ("Freude", None),
        ("alegría", None),
        ("不是 happiness", None),
        ("答案是 happiness", None),
        ("答案：happiness。", "happiness"),
        ("快乐（happiness）", "happiness"),
        ("Not anger。Happiness。", "happiness"),
        ("a naïve, happy face", "happiness"),
        # words of many meanings
        ("normal", None),
        ("none", None),
        ("fearless, joyless", None),
    ],
)
def test_what_other_models_write(text, label):
    assert parse_label(text, SEVEN) == label


def test_options_in_other_languages_are_an_error():
    with pytest.raises(FeridError, match="'高兴' is no expression that FERID knows"):
        parse_label("高兴", ["高兴", "悲伤"])


def test_options_in_a_sources_own_words():
    assert parse_label("joy", ["sadness", "joy"]) == "happiness"
    assert parse_label("Happiness", ["sadness", "joy"]) == "happiness"
    assert parse_label("contempt", ["sadness", "Contempt"]) == "contempt"
    assert parse_label("anger", []) is None


@given(st.sampled_from(WORDS), st.sampled_from([str.upper, str.lower, str.title]), st.text("!?.,;:'\"*{}() \n"))
def test_case_and_punctuation_do_not_matter(label_and_word, case, around):
    label, word = label_and_word
    assert parse_label(around + case(word) + around, SEVEN) == label


@given(
    st.sampled_from(WORDS), st.sampled_from(["not", "never", "isn't", "is not very", "shows no sign of", "without"])
)
def test_a_negated_word_is_no_answer(label_and_word, negation):
    assert parse_label(f"The person {negation} {label_and_word[1]}.", SEVEN) is None


@given(st.sampled_from(WORDS), st.sampled_from(WORDS))
def test_two_labels_are_no_answer(first, second):
    assert parse_label(f"{first[1]} and {second[1]}", SEVEN) == (first[0] if first[0] == second[0] else None)


@given(st.sampled_from(WORDS), st.text("abcdefghijklmnopqrstuvwxyzé", min_size=1, max_size=3))
def test_a_part_of_a_word_is_no_answer(label_and_word, letters):
    known = {word for _, word in WORDS}
    for word in (label_and_word[1] + letters, letters + label_and_word[1]):
        if word not in known:
            assert parse_label(word, SEVEN) is None


PIECES = [word for _, word in WORDS] + ["not ", "n't", "un", "<think>", "</think>", "<answer>", "</answer>", "but "]
PIECES += [
    '{"',
    '": ',
    "**",
    "\n",
    ". ",
    ", ",
    "? ",
    "。",
    "不是",
    "É",
    "ß",
    "İ",
    "\ud800",
    "_",
    " and ",
    "’",
    "\x00",
    " ",
]


@given(
    st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join),
    st.sets(st.sampled_from(LABELS)),
)
@settings(max_examples=500, deadline=None)
def test_any_text_gives_an_option_or_none(text, options):
    assert parse_label(text, options) in options | {None}


@given(st.sampled_from(WORDS), st.text(max_size=200))
def test_a_thought_does_not_change_the_answer(label_and_word, thought):
    label, word = label_and_word
    assert parse_label(f"<think>{thought}</think><answer>{word}</answer>", SEVEN) == label


@pytest.mark.parametrize("piece", ["a", "?", "<think>", "<answer>", "not ", "happy ", "un-", "a?", "</think>", "n't"])
def test_long_answers_are_read_in_no_time(piece):
    start = time.process_time()
    parse_label(piece * (200_000 // len(piece)), SEVEN)
    assert time.process_time() - start < 1
