"""How a conversation is written for the language model, and how the user's turns are found in it again.

    <|im_start|>user
    <image>
    What is the facial expression of the person in the image?<|im_end|>
    <|im_start|>assistant
    happiness<|im_end|>

`{% generation %}` marks what is learned: the assistant's words and the token that ends them.
"""

from dataclasses import dataclass

RENDER = (
    "{%- macro render(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\n' }}"
    "{%- elif part['type'] == 'video' -%}{{ '<video>\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)


@dataclass(frozen=True)
class ChatFormat:
    template: str  # Jinja
    user_turn: str  # regular expression with one group: the words of a user's turn


CHATML = ChatFormat(
    template=RENDER
    + "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + "{%- if message['role'] == 'assistant' -%}"
    + "{%- generation -%}{{ render(message['content']) + '<|im_end|>' }}{%- endgeneration -%}"
    + "{%- else -%}{{ render(message['content']) + '<|im_end|>' }}{%- endif -%}{{ '\n' }}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}",
    user_turn=r"<\|im_start\|>user\n(.*?)<\|im_end\|>",
)

# Vicuna v1, the format of LLaVA and LLaMA-VID, for language models without ChatML's tokens.
VICUNA = ChatFormat(
    template=RENDER
    + "{{- bos_token -}}{%- for message in messages -%}"
    + "{%- if message['role'] == 'system' -%}{{ render(message['content']) + ' ' }}"
    + "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + render(message['content']) + ' ' }}"
    + "{%- else -%}{{ 'ASSISTANT: ' }}"
    + "{%- generation -%}{{ render(message['content']) + eos_token }}{%- endgeneration -%}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{ 'ASSISTANT: ' }}{%- endif -%}",
    user_turn=r"USER: (.*?) ASSISTANT:",
)


def chat_format_for(tokenizer) -> ChatFormat:
    """ChatML where the tokenizer has its tokens, Vicuna's format elsewhere."""
    return CHATML if "<|im_start|>" in tokenizer.get_vocab() else VICUNA
