"""What a model replies with: a short conversation of questions and answers, and how it becomes chat messages.

    {"turns": [{"question": "What is the facial expression of the person?", "answer": "The person is smiling."}]}

becomes, as `messages` of a FERID row,

    [{"role": "user", "content": "What is the facial expression of the person?"},
     {"role": "assistant", "content": "The person is smiling."}]
"""

from pydantic import BaseModel, ConfigDict, ValidationError


class Turn(BaseModel):
    """One question and its answer."""

    model_config = ConfigDict(extra="forbid")

    question: str
    answer: str


class Conversation(BaseModel):
    """One to three turns about one person."""

    # Their number is left to the rules, so that a reply of ten turns is kept and counted like any other bad one. The
    # docstrings are part of the JSON schema that the model sees.
    model_config = ConfigDict(extra="forbid")

    turns: list[Turn]


def parse_reply(text: str) -> Conversation:
    """The conversation that a reply spells out in JSON, for servers without structured outputs. Nothing is repaired.

    Raises:
        ValueError: the reply is no JSON or has another shape; says in one line what is wrong and where.
    """
    try:
        return Conversation.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the reply"
        raise ValueError(f"{place}: {first['msg']}") from error


def to_messages(conversation: Conversation) -> list[dict[str, str]]:
    """The turns as FERID's `messages`: plain strings, a single space for every run of white space."""
    return [
        {"role": role, "content": " ".join(content.split())}
        for turn in conversation.turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]
