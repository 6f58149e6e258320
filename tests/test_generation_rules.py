"""What the rules let pass and what they reject, by example; bad text is rejected by the rule that it is bad for."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferid_dataset.generate.rules import RULES, violations
from ferid_dataset.generate.schema import Conversation, Turn, parse_reply, to_messages
from ferid_dataset.labels import CLASSES, LABELS, SYNONYMS
from ferid_dataset.prompts import rejection_reason

WHAT = "What is the facial expression of the person?"
WHY = "Why does the person feel like this?"
CUES = " The eyes, the eyebrows and the mouth show this."


def sample(label="happiness", media_type="image", options=LABELS[:7], id="raf_db/train_00001", **attributes):
    return {
        "id": id,
        "source": id.partition("/")[0],
        "label": label,
        "media_type": media_type,
        "options": list(options),
        "attributes": {"age": None, "gender": None, "race": None} | attributes,
    }


def talk(*texts):
    """A conversation of questions and answers in turn; a single text is the answer to `WHAT`."""
    texts = (WHAT, *texts) if len(texts) == 1 else texts
    return Conversation(turns=[Turn(question=q, answer=a) for q, a in zip(texts[::2], texts[1::2], strict=True)])


MAFW = CLASSES["mafw"]
SEED = [  # the examples of FERID's figure; where it breaks off, the rest is ours
    (
        sample("surprise"),
        talk(
            "What is the facial expression of the person?",
            "The person has a surprised facial expression. Her eyes and mouth are both wide open. Her eyebrows are "
            "raised and her forehead is furrowed. This expression suggests that she is feeling shocked or startled.",
        ),
    ),
    (
        sample("happiness"),
        talk(
            "What is the person's facial expression?",
            "The person is smiling. The happiness is expressed through the person's raised cheeks and the smile.",
        ),
    ),
    (
        sample("happiness", "video", CLASSES["dfew"], "dfew/00017"),
        talk(
            "What is the emotion of the person in the video?",
            "The person in the video is happy. The corners of the mouth are turned up.",
            "What is the person doing in the video?",
            "The person is sitting in a chair and talking to someone. They look around the room.",
        ),
    ),
    (
        sample("sadness", "video", MAFW, "mafw/00025", gender="female"),
        talk(
            "What is the emotion of the person in the video?",
            "The person in the video is expressing sadness. Her eyebrows are slightly furrowed, her eyes are looking "
            "down, and the corners of her mouth are turned down.",
            "Why is she sad?",
            "It is not possible to know for sure why the person in the video is sad. However, the dim room suggests "
            "that she may have received bad news.",
        ),
    ),
]

GOOD_ANSWERS = {  # one answer about a still, by label
    "surprise": [
        "The person looks surprised. The eyebrows are high and the jaw has dropped.",
        "This is surprise: wide eyes, raised eyebrows and an open mouth.",
        "The person seems astonished, with round eyes and parted lips.",
        "They look stunned. Both hands cover the open mouth, and the eyebrows are raised.",
        "The person appears taken aback, their eyes wide open.",
        "It is surprise, not fear. The forehead is wrinkled, but the lips are relaxed.",
        "The person appears shocked, as if someone had told them unexpected news.",
    ],
    "fear": [
        "The person is afraid. The eyebrows are pulled together and the lips are stretched.",
        "The person shows fear: the eyes are wide and the mouth is tense.",
        "They look frightened and lean away, their shoulders raised.",
        "The person appears to be in a state of panic, with wide eyes.",
        "The person looks anxious and scared, with tense lips.",  # anxiety is no option here
        "A fearful look. The eyes are wide open and the mouth trembles.",
    ],
    "disgust": [
        "The person looks disgusted. The nose is wrinkled and the upper lip is raised.",
        "The wrinkled nose and the narrowed eyes show disgust.",
        "Their expression is one of revulsion, with the tongue out.",
        "The person turns away in distaste, the corners of the mouth pulled down.",
    ],
    "happiness": [
        "The person is smiling. The cheeks are raised.",
        "The person looks happy, and there are wrinkles around the eyes.",
        "They are laughing with their mouth wide open.",
        "The person is beaming at the camera, with raised cheeks.",
        "The person's face shows joy. The corners of the mouth are turned up.",
        "There is a broad grin on the face of the person.",
        "The person is not sad or angry. The wide smile shows happiness.",
        "The person shows no sign of anger, fear, or sadness; the smile is wide.",
        "The person looks cheerful and waves at the people in the background, who look surprised.",
        "The person is joyful. They may be at a surprise party.",
    ],
    "sadness": [
        "The person is crying. Tears run down the cheeks.",
        "The person looks unhappy, with the corners of the mouth turned down.",
        "The person expresses sadness. Their eyes look down.",
        "They seem sorrowful. The inner eyebrows are raised.",
        "The person has a sad expression and a blank stare.",
        "The person appears downcast, with lowered eyelids and a slight pout.",
        "The person seems sad and a little worried, with their head lowered.",
        "The person's face is full of grief, and the eyes are red.",
    ],
    "anger": [
        "The person is angry. The eyebrows are lowered and drawn together.",
        "The person is glaring, with narrowed eyes and tight lips.",
        "They look furious and shout with bared teeth.",
        "The person's tense jaw and lowered eyebrows show anger.",
        "The person seems irritated. The lips are pressed together.",
        "The person looks enraged. Neither sadness nor fear can be seen in their face.",
    ],
    "neutral": [
        "The person has a neutral expression. The mouth is closed and the eyebrows are relaxed.",
        "The person does not show any strong emotion. The face is at rest.",
        "There is no particular emotion in the face of the person.",
        "The person looks calm. The lips are closed and the eyes look at the camera.",
        "There are no signs of happiness, sadness, or anger. The face is neutral.",
        "The face is expressionless, with no smile and no frown.",
        "The person keeps a straight face, and the eyes look ahead.",
        "The person's face lacks any visible emotion, and the lips are closed.",
    ],
}
GOOD = [(sample(label), talk(answer)) for label, answers in GOOD_ANSWERS.items() for answer in answers] + [
    (sample("contempt", options=CLASSES["affectnet"]), talk("The person smirks with one raised corner of the mouth.")),
    (sample("anxiety", "video", MAFW), talk("The person is nervous. They bite their lips and look around.")),
    (sample("anxiety", "video", MAFW), talk("The person in the video looks worried, with a creased forehead.")),
    (sample("helplessness", "video", MAFW), talk("The person seems helpless. They shrug and shake their head.")),
    (sample("disappointment", "video", MAFW), talk("The person looks let down. They sigh and lower their eyes.")),
    (
        sample("anger and disgust", "video", [*MAFW, "anger and disgust"]),
        talk("The person is angry and disgusted. The eyebrows are lowered and the nose is wrinkled."),
    ),
    (
        sample("sadness and helplessness", "video", MAFW),
        talk("The person is crying. They also look helpless, with hanging shoulders."),
    ),
    (sample(options=["sadness", "joy"]), talk("The person feels joy, with raised cheeks.")),
    (sample(gender="male"), talk("He is smiling at a woman who stands beside him.")),
    (sample(gender="female"), talk("She is smiling. A man behind her is looking at his phone.")),
    (sample(gender="male"), talk("The person is smiling, with raised cheeks.")),
    (sample(gender="female"), talk("The young woman is smiling at the camera.")),
    (sample(age="20-39"), talk("The young woman is smiling at the camera.")),
    (sample(age="20-39"), talk("The person, who is in their thirties, is smiling.")),
    (sample(age="70+"), talk("The elderly man is smiling at the camera.")),
    (sample(age="4-19"), talk("The child is smiling at the camera.")),
    (sample(age="0-3"), talk("The baby is smiling at the camera.")),
    (sample(age="25"), talk("The person is about 27 years old and is smiling.")),
    (sample(age="20-39"), talk("The person is smiling and holding a baby.")),
    (sample(), talk("The girl is smiling at the camera.")),  # coarse, and nothing else is known
    (sample(race="Asian"), talk("The Asian person in the image is smiling.")),
    (sample(race="African-American"), talk("The Black woman in the image is smiling.")),
    (sample(race="Caucasian"), talk("The person is smiling. They wear a white shirt and a black hat.")),
    (sample(), talk("The person is smiling in front of a white wall, at a car race.")),
    (
        sample(),
        talk(
            WHAT, "The person is smiling.", WHY, "It is unclear why. They may have been given a present by a friend."
        ),
    ),
    (
        sample(),
        talk(WHAT, "The person is smiling.", "Which cues show the smile?", "Both corners of the mouth are raised."),
    ),
    (
        sample(),
        talk(WHAT, "The person is happy.", "Why do you think that they are happy?", "Their cheeks are raised."),
    ),
    (
        sample("sadness"),
        talk(WHAT, "They are sad.", "Why is the person sad?", "The cause cannot be known. They might feel angry too."),
    ),
    (
        sample("fear"),
        talk(WHAT, "They are afraid.", WHY, "It is not clear why. Perhaps an angry dog is near, or a loud noise."),
    ),
    (
        sample("anger"),
        talk(WHAT, "They are angry.", "What is the person doing?", "They point at another person, who looks sad."),
    ),
    (
        sample(),
        talk("Is the person in the image angry?", "No, the person is happy and smiles with raised cheeks."),
    ),
    (sample(), talk("Describe the expression of the person.", "The person is smiling “from ear to ear.”")),
    (sample(), talk("The person’s eyes are narrowed, and they’re smiling broadly.")),
    (sample(), talk("The person is smiling at a picture frame that stands on the table.")),
    (sample(), talk("The person is smiling and holds a naïve painting from a café.")),
    (
        sample("anger"),
        talk(WHAT, "They are angry.", "What makes the person look angry?", "The eyebrows are lowered and tense."),
    ),
    (
        sample("sadness"),
        talk(WHAT, "They are sad.", "Why does the person seem sad?", "The corners of the mouth are turned down."),
    ),
    (sample("fear"), talk("The person is afraid and startled, as the wide eyes show.")),
    (sample("anger"), talk("The person is angry, in front of a neutral grey wall.")),
    (sample("anger"), talk("The person is angry. A happy couple stands at the neutral-coloured door.")),
    (sample("surprise"), talk("The person looks surprised, as if the happy news had come at last.")),
    (sample("neutral"), talk("The face is neutral. The background of the image is a sad grey.")),
]

BAD = [
    # turns
    ("turns", sample(), Conversation(turns=[])),
    (
        "turns",
        sample(),
        talk(
            *(
                WHAT,
                "The person is smiling.",
                "Which cues show it?",
                "The cheeks are raised and the teeth are visible.",
            ),
            *("Where is the person?", "They are in a park.", "What are they wearing?", "They are wearing a red hat."),
        ),
    ),
    # empty
    ("empty", sample(), talk("")),
    ("empty", sample(), talk("   \n")),
    ("empty", sample(), talk("...")),
    ("empty", sample(), talk("", "The person is smiling.")),
    ("empty", sample(), talk("123 456 789.")),
    ("empty", sample(), talk(WHAT, "The person is smiling.", "Where is the person?", " ")),
    # length
    ("length", sample(), talk("Happiness.")),
    ("length", sample(), talk("A smile.")),
    ("length", sample(), talk("Why?", "It is unclear, but the person is smiling.")),
    ("length", sample(), talk("The person is smiling" + " and smiling" * 100 + ".")),
    ("length", sample(), talk("What is " + "very " * 50 + "visible?", "The person is smiling.")),
    # cut
    ("cut", sample(), talk("The person is smiling and the eyes are")),
    ("cut", sample(), talk("The person is smiling, with")),
    ("cut", sample(), talk("The person is smiling...")),
    ("cut", sample(), talk("The person is smiling…")),
    ("cut", sample(), talk("The person is smiling:")),
    ("cut", sample(), talk("What is the facial expression", "The person is smiling.")),
    ("cut", sample(), talk(WHAT, "The person is smiling.", "Where is the person?", "The person is in a")),
    # language
    ("language", sample(), talk("¿Cuál es la expresión facial?", "La persona está sonriendo y parece muy feliz.")),
    ("language", sample(), talk("Quelle est son expression ?", "La personne sourit et semble très heureuse.")),
    ("language", sample(), talk("Welchen Ausdruck hat die Person?", "Die Person lächelt und wirkt sehr fröhlich.")),
    ("language", sample(), talk("图中人物的表情是什么?", "图中的人正在微笑,看起来很高兴。")),
    ("language", sample(), talk("Каково выражение лица?", "Человек улыбается и выглядит счастливым.")),
    ("language", sample(), talk(WHAT, "The person is smiling.", "Dónde está la persona?", "Está en una casa grande.")),
    ("language", sample(), talk("Qual è l'espressione del volto?", "Il soggetto sorride e sembra molto contento.")),
    ("language", sample(), talk("Smiling happy joy joy.", "Cheeks lips teeth nose happy joyful grin laugh.")),
    ("language", sample(), talk("Wat is de uitdrukking?", "Het gezicht lacht vrolijk, met opgetrokken wangen.")),
    # markdown
    ("markdown", sample(), talk("The person is **smiling** with raised cheeks.")),
    ("markdown", sample(), talk("The person is smiling:\n- raised cheeks\n- open mouth.")),
    ("markdown", sample(), talk("The person is smiling.\n1. The cheeks are raised.\n2. The mouth is open.")),
    ("markdown", sample(), talk("# Expression\nThe person is smiling.")),
    ("markdown", sample(), talk("<image> What is the facial expression?", "The person is smiling.")),
    ("markdown", sample(), talk("The person is `smiling` at the camera.")),
    ("markdown", sample(), talk("Answer: The person is smiling.")),
    ("markdown", sample(), talk("Question: What is the expression?", "The person is smiling.")),
    ("markdown", sample(), talk('{"answer": "The person is smiling."}.')),
    ("markdown", sample(), talk("The person is smiling. See https://example.com for the rest.")),
    ("markdown", sample(), talk("The person is smiling.<br>The cheeks are raised.")),
    ("markdown", sample(), talk("The person is [smiling] at the camera.")),
    ("markdown", sample(), talk("The person is smiling. \x1b The cheeks are raised.")),
    # repeats
    ("repeats", sample(), talk(WHAT, "The person is smiling.", WHAT, "The cheeks of the person are raised.")),
    (
        "repeats",
        sample(),
        talk(
            *(WHAT, "The person is smiling with raised cheeks and open lips in a bright and sunny garden."),
            *(
                "Where is the person?",
                "The person is smiling with raised cheeks and open lips in a bright sunny garden.",
            ),
        ),
    ),
    ("repeats", sample(), talk("The person is happy. The person is happy. The person is happy.")),
    ("repeats", sample(), talk("The person is smiling. The eyes are open. The person is smiling!")),
    (
        "repeats",
        sample(),
        talk(
            *(WHAT, "The person is smiling. The room is bright.", "Where are they?", "They sit. The room is bright.")
        ),
    ),
    # refusal
    ("refusal", sample(), talk("I'm sorry, but I can't help with identifying people.")),
    ("refusal", sample(), talk("I cannot assist with this request.")),
    ("refusal", sample(), talk("I am unable to see the face of the person.")),
    ("refusal", sample(), talk("I apologize, but the person is too small.")),
    ("refusal", sample(), talk("It is not possible to determine the facial expression of the person.")),
    ("refusal", sample(), talk("The person's emotion is unclear: it is hard to tell the expression.")),
    ("refusal", sample(), talk("One cannot determine the person's exact facial expression here.")),
    ("refusal", sample(), talk("I’m not able to judge feelings from faces.")),
    # speaks_of_label
    ("speaks_of_label", sample(), talk("The person is labeled as happy.")),
    ("speaks_of_label", sample(), talk("The label says happiness, and the person is smiling.")),
    ("speaks_of_label", sample(), talk("Given the label, the person is happy.")),
    ("speaks_of_label", sample(), talk("The given expression is happiness, shown by a smile.")),
    ("speaks_of_label", sample(), talk("Based on the provided image, the person is happy.")),
    ("speaks_of_label", sample(), talk("According to the annotation the person is happy.")),
    ("speaks_of_label", sample(), talk("The ground truth is happiness, which fits the smile.")),
    ("speaks_of_label", sample(), talk("As stated, the person is happy and smiles.")),
    ("speaks_of_label", sample(media_type="video"), talk("The description tells that the person is smiling.")),
    ("speaks_of_label", sample(), talk("The facts name happiness, and the person is smiling.")),
    ("speaks_of_label", sample(), talk("The person is happy, as the expression was given.")),
    ("speaks_of_label", sample(), talk("What emotion was provided for the person?", "The person is smiling.")),
    ("speaks_of_label", sample(), talk("The prompt asks for happiness, and the person is smiling.")),
    ("speaks_of_label", sample(), talk("Following the instructions, the person is happy.")),
    # speaks_of_files
    ("speaks_of_files", sample(), talk("In train_00001.jpg the person is smiling.")),
    ("speaks_of_files", sample(), talk("The person in train_00001 is smiling.")),
    ("speaks_of_files", sample(), talk("This image of AffectNet shows a person who is smiling.")),
    ("speaks_of_files", sample(media_type="video", id="mafw/00025"), talk("In the clip 00025 the person is smiling.")),
    ("speaks_of_files", sample(), talk("The dataset has a person who is smiling here.")),
    ("speaks_of_files", sample(media_type="video"), talk("In clip.mp4 the person is smiling.")),
    ("speaks_of_files", sample(), talk("This RAF-DB image shows a person who is smiling.")),
    # speaks_as_ai
    ("speaks_as_ai", sample(), talk("As an AI, I would say that the person is smiling.")),
    ("speaks_as_ai", sample(), talk("I am a language model, but the person is smiling.")),
    ("speaks_as_ai", sample(), talk("I'm just an AI assistant; the person is smiling.")),
    ("speaks_as_ai", sample(), talk("From my training, the person is smiling.")),
    # wrong_medium
    ("wrong_medium", sample(media_type="video"), talk("The person in the image is smiling.")),
    ("wrong_medium", sample(media_type="video"), talk("In this frame the person is smiling.")),
    ("wrong_medium", sample(media_type="video"), talk("The centre frame shows a person who is smiling.")),
    ("wrong_medium", sample(media_type="video"), talk("What is seen in the photo?", "The person is smiling.")),
    ("wrong_medium", sample(), talk("The person in the video is smiling.")),
    # unsupported
    ("unsupported", sample("happiness"), talk("The person looks at the camera with open eyes.")),
    ("unsupported", sample("happiness"), talk("The person is not happy. The mouth is closed.")),
    ("unsupported", sample("happiness"), talk("The person is not smiling at all.")),
    ("unsupported", sample("happiness"), talk("The person is unhappy with the food.")),
    ("unsupported", sample("happiness"), talk("The person does not smile, and shows no joy.")),
    ("unsupported", sample("sadness"), talk("The person shows no sadness at all.")),
    ("unsupported", sample("sadness"), talk("The mouth is closed and the eyes are open.")),
    ("unsupported", sample("anger"), talk("The person neither shouts nor looks angry.")),
    ("unsupported", sample("anger"), talk("The person isn’t angry.")),
    ("unsupported", sample("fear"), talk("The person has wide eyes and a tense mouth.")),
    ("unsupported", sample("surprise"), talk("There is no sign of fear, anger, or surprise.")),
    ("unsupported", sample("disgust"), talk("The nose of the person is straight.")),
    ("unsupported", sample("neutral"), talk("The person is looking at the camera.")),
    ("unsupported", sample("contempt", options=CLASSES["affectnet"]), talk("The person raises one eyebrow.")),
    ("unsupported", sample("anger and disgust", "video", MAFW), talk("The person is angry." + CUES)),
    ("unsupported", sample("anger and disgust", "video", MAFW), talk("They are angry, but not disgusted." + CUES)),
    ("unsupported", sample("happiness"), talk("Is the person happy?", "The person stands in a garden.")),
    # contradiction
    ("contradiction", sample("happiness"), talk("The person is smiling, but looks sad.")),
    ("contradiction", sample("happiness"), talk("The person is angry. The smile is wide.")),
    ("contradiction", sample("happiness"), talk("The expression of anger is clear, in spite of the smile.")),
    ("contradiction", sample("happiness"), talk("The smile shows a mix of happiness and surprise.")),
    ("contradiction", sample("happiness"), talk("The person is happy and very angry.")),
    ("contradiction", sample("happiness"), talk("The person's sad expression is visible behind the smile.")),
    ("contradiction", sample("happiness"), talk("The smile suggests that the person feels slightly afraid.")),
    ("contradiction", sample("sadness"), talk("The person is crying. They are happy about the result.")),
    ("contradiction", sample("sadness"), talk("The person has a neutral expression with a sad touch.")),
    (
        "contradiction",
        sample("sadness"),
        talk(WHAT, "They look sad.", "Why is the person happy?", "It may be a gift."),
    ),
    ("contradiction", sample("fear"), talk("The person is scared. They appear to be really surprised.")),
    ("contradiction", sample("fear"), talk("The person is filled with fear and disgust.")),
    ("contradiction", sample("anger"), talk("The person is not angry. The person is neutral.")),
    ("contradiction", sample("neutral"), talk("The face is neutral. The person looks a bit sad.")),
    ("contradiction", sample("neutral"), talk("The person is calm, and their face shows joy.")),
    ("contradiction", sample("fear", "video", MAFW), talk("The person is afraid and anxious." + CUES)),
    ("contradiction", sample("sadness", "video", MAFW), talk("They are sad. The person feels helpless." + CUES)),
    (
        "contradiction",
        sample("fear"),
        talk(WHAT, "They are afraid.", "Why do you think they are angry?", "They frown."),
    ),
    (
        "contradiction",
        sample("anger and disgust", "video", MAFW),
        talk("The person is angry and disgusted. They are also surprised."),
    ),
    ("contradiction", sample("disgust"), talk("The person looks disgusted and is in anger." + CUES)),
    # certain_cause
    (
        "certain_cause",
        sample("sadness"),
        talk(WHAT, "The person is sad.", "Why is the person sad?", "The person has lost a good friend."),
    ),
    ("certain_cause", sample(), talk(WHAT, "They are happy.", WHY, "The person has won a prize.")),
    (
        "certain_cause",
        sample("anger"),
        talk(WHAT, "They are angry.", "What made the person angry?", "The other driver took the place."),
    ),
    (
        "certain_cause",
        sample("anger"),
        talk(WHAT, "They are angry.", "What is the reason for the anger?", "It is the argument with the driver."),
    ),
    # gender
    ("gender", sample(gender="female"), talk("He is smiling at the camera.")),
    ("gender", sample(gender="female"), talk("The man is smiling at the camera.")),
    ("gender", sample(gender="female"), talk("The person is smiling with his eyes closed.")),
    ("gender", sample(gender="male"), talk("She is smiling at the camera.")),
    ("gender", sample(gender="male"), talk("The young woman is smiling at the camera.")),
    ("gender", sample(gender="male"), talk("Why is she smiling?", "It is unclear, but the smile is wide.")),
    ("gender", sample(gender="Male"), talk("The person is a woman who is smiling.")),
    # age
    ("age", sample(age="20-39"), talk("The elderly man is smiling at the camera.")),
    ("age", sample(age="20-39"), talk("The baby is smiling at the camera.")),
    ("age", sample(age="70+"), talk("The child is smiling at the camera.")),
    ("age", sample(age="0-3"), talk("The person is a teenager who is smiling.")),
    ("age", sample(age="25"), talk("The person, who is in their sixties, is smiling.")),
    ("age", sample(age="25"), talk("The person is a 50-year-old and is smiling.")),
    ("age", sample(age="40-69"), talk("The toddler is smiling.")),
    ("age", sample(), talk("The person is about 30 years old and is smiling.")),
    ("age", sample(), talk("The person is in her early twenties and is smiling.")),
    ("age", sample(), talk("The person, aged 40, is smiling at the camera.")),
    # race
    ("race", sample(), talk("The Asian person is smiling at the camera.")),
    ("race", sample(), talk("The white man is smiling at the camera.")),
    ("race", sample(race="Asian"), talk("The Caucasian person is smiling at the camera.")),
    ("race", sample(race="Caucasian"), talk("The Black woman is smiling at the camera.")),
    ("race", sample(race="African-American"), talk("The person of Chinese descent is smiling.")),
    ("race", sample(), talk("The Hispanic person is smiling at the camera.")),
    ("race", sample(), talk("A person of Middle Eastern descent is smiling.")),
]


def shown(example):
    return " | ".join(text for turn in example.turns for text in (turn.question, turn.answer) if text != WHAT)[:60]


@pytest.mark.parametrize(("about", "conversation"), SEED + GOOD, ids=lambda x: shown(x) if hasattr(x, "turns") else "")
def test_good_text_passes(about, conversation):
    assert violations(about, conversation) == []


@pytest.mark.parametrize(("rule", "about", "conversation"), BAD, ids=[f"{r}: {shown(c)}" for r, _, c in BAD])
def test_bad_text_is_rejected_by_its_rule(rule, about, conversation):
    assert rule in violations(about, conversation)


def test_there_are_many_examples_and_each_rule_has_bad_ones():
    assert len(SEED + GOOD + BAD) >= 150
    assert {rule for rule, _, _ in BAD} == set(RULES)


def test_most_bad_text_breaks_no_other_rule():
    alone = [violations(about, conversation) == [rule] for rule, about, conversation in BAD]
    assert sum(alone) > 0.7 * len(BAD)


def test_every_rule_is_described_and_can_be_told_to_the_model():
    assert all(rule.__doc__ for rule in RULES.values())
    assert all(" " in rejection_reason([name]) for name in RULES)


@pytest.mark.parametrize("word", [word for label in LABELS for word in (label, *SYNONYMS[label])])
def test_every_known_word_supports_its_label(word):
    label = next(label for label in LABELS if word in (label, *SYNONYMS[label]))
    about = sample(label, options=LABELS)
    assert violations(about, talk(f"The expression of the person is best called {word}.")) == []
    assert violations(about, talk(f"The expression of the person is not {word}.")) == ["unsupported"]


texts = st.one_of(
    st.text(max_size=300),
    st.lists(
        st.sampled_from("anger, happy or not sad no fear is the person in , . ? he \n - 20 years old".split(" "))
    ).map(" ".join),
)


@given(
    st.lists(st.tuples(texts, texts), max_size=6),
    st.sampled_from([*LABELS, "anger and disgust"]),
    st.sampled_from(["image", "video"]),
    st.sampled_from([None, "", "25", "20-39", "70+", "unknown", "Asian", "male", "female"]),
)
def test_any_text_is_judged(turns, label, media_type, attribute):
    about = sample(label, media_type, MAFW, age=attribute, gender=attribute, race=attribute)
    conversation = Conversation(turns=[Turn(question=question, answer=answer) for question, answer in turns])
    broken = violations(about, conversation)
    assert broken == [name for name in RULES if name in broken]
    assert violations(about | {"attributes": None, "options": None}, conversation) is not None


@pytest.mark.parametrize(
    "text",
    ["anger, " * 3000, "is very " * 3000, "the the " * 3000, "a" * 50_000, "no " * 5000, "i " * 9000, ". " * 9000]
    + ["(" * 20_000, "\n" * 20_000, "the person's " * 2000, "not a happy sad or " * 1000, "-" * 20_000, "é" * 20_000],
)
def test_long_nonsense_is_judged_quickly(text):
    start = time.process_time()
    assert violations(sample(), talk(text, text))
    assert time.process_time() - start < 1


def test_thousands_a_second():
    examples = [(about, conversation) for about, conversation in SEED + GOOD]
    start = time.process_time()
    for _ in range(20):
        for about, conversation in examples:
            violations(about, conversation)
    rate = 20 * len(examples) / (time.process_time() - start)
    assert rate > 1000, f"{rate:.0f} a second"  # 6,000 on an idle core: the bound leaves room for busy ones


def test_a_reply_becomes_messages():
    reply = parse_reply('{"turns": [{"question": " Why\\nis that? ", "answer": "It is  not known."}]}')
    assert to_messages(reply) == [
        {"role": "user", "content": "Why is that?"},
        {"role": "assistant", "content": "It is not known."},
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the reply: Invalid JSON: EOF while parsing a value at line 1 column 0"),
        ('{"turns": [{"question": "a"}]}', "turns.0.answer: Field required"),
        ('{"turns": [{"question": "a", "answer": 3}]}', "turns.0.answer: Input should be a valid string"),
        ('{"turns": [], "note": 1}', "note: Extra inputs are not permitted"),
        ("[]", "the reply: Input should be an object"),
        ('```json\n{"turns": []}\n```', "the reply: Invalid JSON: expected value at line 1 column 1"),
    ],
)
def test_a_reply_of_another_shape(text, reason):
    with pytest.raises(ValueError) as error:
        parse_reply(text)
    assert str(error.value) == reason
