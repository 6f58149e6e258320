"""The wording is frozen: these are the examples of FERID's own figure, word for word."""

import pytest

from ferid_dataset.labels import LABELS
from ferid_dataset.prompts import category_question


def test_image_question():
    assert category_question(LABELS[:7]) == (
        "What is the facial expression of the person in the image? Choose one from the following options: "
        "{surprise, fear, disgust, happiness, sadness, anger, neutral}."
    )


def test_video_question_keeps_the_order_of_the_options():
    options = (
        "anger disgust fear happiness neutral sadness surprise contempt anxiety helplessness disappointment".split()
    )
    assert category_question(options, "video") == (
        "What is the facial expression of the person in the video? Choose one from the following options: {anger, "
        "disgust, fear, happiness, neutral, sadness, surprise, contempt, anxiety, helplessness, disappointment}."
    )


def test_what_cannot_be_asked():
    with pytest.raises(ValueError, match="at least one option"):
        category_question([])
    with pytest.raises(ValueError, match="not 'audio'"):
        category_question(["anger"], "audio")
