"""The wording of every instruction. It is frozen: figures compare only where the same words were asked.

user       What is the facial expression of the person in the image? Choose one from the following options:
           {surprise, fear, disgust, happiness, sadness, anger, neutral}.
assistant  surprise
"""

from collections.abc import Sequence
from typing import Literal

from ferid_dataset.labels import CLASSES

# The FERID figure lists the options of its 7-class clips in these words and this order, without saying of which source
# they are. Both 7-class clip sources, DFEW and FERV39k, are asked so.
_SEVEN_CLASS_CLIPS = ("sadness", "joy", "surprise", "neutral", "fear", "anger", "disgust")


def category_question(options: Sequence[str], media_type: Literal["image", "video"] = "image") -> str:
    """The closed-set question, as printed in the FERID figure `Instruction_example.png`; the answer is the bare label.

    Args:
        options: the labels to choose from, in the order in which they are to be listed.
        media_type: what is shown; it is the noun of the question.

    Raises:
        ValueError: no options, or a media type that is neither "image" nor "video".
    """
    if not options:
        raise ValueError("a category question needs at least one option")
    if media_type not in ("image", "video"):
        raise ValueError(f'media_type must be "image" or "video", not {media_type!r}')
    return (
        f"What is the facial expression of the person in the {media_type}? "
        f"Choose one from the following options: {{{', '.join(options)}}}."
    )


def options_of(source: str) -> tuple[str, ...]:
    """The options of a source, in the order and words of the FERID figure where it shows them, else by its indices."""
    return _SEVEN_CLASS_CLIPS if source in ("dfew", "ferv39k") else CLASSES[source]
