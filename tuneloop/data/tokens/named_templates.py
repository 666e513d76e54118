"""The chat templates that have a name (model.template), and which of them can write what another leaves out.

chatml, gemma, plain         role and content of each turn
chatml-think, plain-think    the same with thoughts, tools and calls as text, so that any vocabulary can say them
"""

from __future__ import annotations

from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma has no system role: the system text opens the first user turn, and the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['role'] == 'user' %}{{ ns.system }}{% set ns.system = '' %}{% endif %}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The prompt ends in a line break: a blank there would be the first half of the token that a word begins with.
PLAIN = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ 'Assistant:\n' + m['content'] + (eos_token or '') + '\n\n' }}{% elif m['role'] == 'user' %}"
    "{{ 'User:\n' + m['content'] + '\n\n' }}{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
# What two of them say more: the form of Hermes and Qwen, which most servers take apart again.
_TOOLS = (
    "'# Tools\n\nYou may call these functions, each by a JSON object within <tool_call></tool_call>:\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}{{ '\n</tools>"
)
_SAYS = (
    "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content | trim + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] }}{% for call in m.tool_calls or [] %}"
    "{{ ('\n' if m['content'] or not loop.first else '') + '<tool_call>\n{\"name\": \"' + call.function.name }}"
    "{{ '\", \"arguments\": ' + call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}"
)
CHATML_THINK = (
    "{% if tools %}{{ '<|im_start|>system\n' + (messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' "
    "else '') + " + _TOOLS + "<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if not (tools and loop.first and m['role'] == 'system') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}" + _SAYS + "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN_THINK = (
    "{{ bos_token or '' }}{% if tools %}{{ " + _TOOLS + "\n\n' }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant:\n' }}" + _SAYS + "{{ (eos_token or '') + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ 'User:\n' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'tool' %}{{ '<tool_response>\n' + m['content'] + '\n</tool_response>\n\n' }}"
    "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
DEFAULTS = {
    "chatml": CHATML, "gemma": GEMMA, "plain": PLAIN, "chatml-think": CHATML_THINK, "plain-think": PLAIN_THINK,
}  # fmt: skip
DEFAULT = "plain"
"""What a model without a template gets. A base model has the special tokens of its family's chat template in its
vocabulary, and has never seen them: its untrained rows of the head are so alike that it cannot learn to write the one
that ends a turn (tried with Gemma-3-270M: it answers, then writes some other rare token and rambles on). Every model
has seen its end-of-text token."""


def fuller(tokenizer: Any) -> str:
    """The name of a template that writes thoughts and calls and suits a tokenizer; "" where it has that one already.

    ChatML for a model that has learned ChatML with a template of its own, else the plain one.
    """
    source = tokenizer.chat_template
    if source in (CHATML_THINK, PLAIN_THINK):
        return ""
    return "chatml-think" if isinstance(source, str) and "<|im_start|>" in source else "plain-think"
