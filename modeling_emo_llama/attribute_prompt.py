"""What is known of the person, in words for the language model: EMO-LLaMA's age-gender-race prompt.

    attribute_sentence({"age": "20-39", "gender": "female", "race": "Asian"})
    "The person is 20 to 39 years old, female, Asian."

The published EMO-LLaMA (Xing et al., arXiv 2408.11424) has such a prompt. Its words are not public; these are ours.
Only what is known is spoken of. Age and gender come from the dataset's annotation, or else from the face backend; race
from the annotation alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def attribute_sentence(attributes: Mapping[str, Any]) -> str:
    """One sentence about the person, or none ("") if nothing is known.

    Args:
        attributes: `age` in years: a number ("25"), a range ("20-39") or an open one ("70+"); `gender` and `race` in
            a word. One that is missing or null is unknown.
    """
    age, gender, race = (attributes.get(name) for name in ("age", "gender", "race"))
    if age:
        age = f"{age} years old".replace("-", " to ").replace("+ years old", " years old or older")
    known = [word for word in (age, gender, race) if word]
    return f"The person is {', '.join(known)}." if known else ""


def known_attributes(annotated: Mapping[str, Any] | None, faces: Sequence[Sequence[Mapping[str, Any]]]) -> dict:
    """The annotated attributes; for those that are unknown, what the face backend says of the largest face.

    Args:
        annotated: of the person in a picture or a clip.
        faces: of the picture, or of each frame of the clip: of the first frame that has any, the first face counts.
    """
    person = next((found[0] for found in faces if found), {})
    age = person.get("age")
    predicted = {"age": None if age is None else str(round(age)), "gender": person.get("gender")}
    return predicted | {name: value for name, value in (annotated or {}).items() if value}
