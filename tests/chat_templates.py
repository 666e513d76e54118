"""Chat templates of model families, and dialogues to render with them.

LLAMA3, LLAMA31, GEMMA3 and R1 write what the families' published templates write for dialogues without tools, QWEN25 tools
in the form of Qwen2.5; those of Qwen3, SmolLM2 and DeepSeek-V3 are read from pulled tokenizers.
"""

from __future__ import annotations

from typing import Any

from tests.conftest import byte_tokenizer

_HEADER = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
LLAMA3 = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + "
    + _HEADER
    + " + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
    "{{- date_string + '\n\n' + system_message + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- " + _HEADER + " + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}"
    "{%- set turns = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{%- for m in turns -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '') }}"
    "{{ m['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
QWEN2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN25 = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else 'You are Pebble.' %}"
    "{{- '<|im_start|>system\n' + system }}{%- if tools %}{{- '\n\n# Tools\n\nYou may call functions:\n<tools>' }}"
    "{%- for tool in tools %}{{- '\n' + tool | tojson }}{%- endfor %}"
    "{{- '\n</tools>\n\nCall them by JSON within <tool_call></tool_call>.' }}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- elif m.role == 'assistant' %}"
    "{{- '<|im_start|>assistant' + ('\n' + m.content if m.content or not m.tool_calls else '') }}"
    '{%- for call in m.tool_calls or [] %}{{- \'\n<tool_call>\n{"name": "\' + call.function.name }}'
    "{{- '\", \"arguments\": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- elif m.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
_LLAMA_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>"}
_R1_NAMES = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
TEMPLATES: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "llama3": (LLAMA3, _LLAMA_NAMES, ("<|start_header_id|>", "<|end_header_id|>")),
    "llama3.1": (LLAMA31, _LLAMA_NAMES, ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma2": (GEMMA2, _GEMMA_NAMES, ("<start_of_turn>", "<end_of_turn>")),
    "gemma3": (GEMMA3, _GEMMA_NAMES, ("<start_of_turn>", "<end_of_turn>")),
    "deepseek-r1": (R1, _R1_NAMES, ("<｜User｜>", "<｜Assistant｜>")),
    "qwen2": (QWEN2, {"eos_token": "<|im_end|>"}, ("<|im_start|>", "<|endoftext|>")),
    "qwen2.5": (QWEN25, {"eos_token": "<|im_end|>"}, ("<|im_start|>", "<|endoftext|>")),
}
"""Name -> template, special tokens by their name, further special tokens."""


def tokenizer(name: str) -> Any:
    """A small tokenizer with the template and the special tokens of a family."""
    template, named, more = TEMPLATES[name]
    return byte_tokenizer(template, special=(*named.values(), *more), **named)


def turns(*texts: str, system: str | None = None, thought: str = "") -> list[dict[str, str]]:
    """A dialogue: questions and answers in turn, and a system text before them; `thought` goes with each answer."""
    chat = [] if system is None else [{"role": "system", "content": system}]
    for k, text in enumerate(texts):
        turn = {"role": ("user", "assistant")[k % 2], "content": text}
        chat.append({**turn, "reasoning_content": thought} if k % 2 and thought else turn)
    return chat


CODE = 'func main() {\n\tfmt.Printf("%s {{ .Name }}\\n", `a"b`)\n}'
DIALOGUES = [
    turns("Hello!"),
    turns("你好，你是谁？"),
    turns("Hello!", system="You are Pebble, a patient assistant."),
    turns("今天天气怎么样？", system="你是小石，说话简短。"),
    turns("Hello!", system=""),
    turns("一", "二", "三", system=""),
    turns("Who are you?", "I'm Pebble.", "And then?"),
    turns("你是谁？", "我是小石。", "然后呢？", system="用中文回答。"),
    turns("a", "b", "c", "d", "e", "f", "g"),
    turns("第一问", "第一答", "Second question", "Second answer", "第三问？", system="Mixed. 中英混合。"),
    turns("Explain {{ .Messages }} and {% raw %}.", "It is {{ \"quoted\" }}.", "{}{{}}{{{}}}"),
    turns(f"What does this print?\n\n```go\n{CODE}\n```", "It prints:\n\n    a\"b {{ .Name }}\n", "Why?", system=CODE),
    turns('She said "yes".', "He said 'no'.", '"""triple"""\n\'\'\'single\'\'\'', system='Quote: """x"""'),
    turns("Line one\nline two\n\n\nline five", "一行\n两行\n\n", "\ttab\there"),
    turns("  blanks at both edges \n", "\n\n answer with blanks \t\n", "\u3000\u3000中文缩进\u3000\n", system="  edges \n"),
    turns("<b>&amp;</b> & < > \\ \\n %s %d $x", "back\\slash", "100% `code`"),
    turns("👩‍💻 emoji é ñ ü ｜ ▁ 「引号」", "好的👌", "\u00a0nbsp\u00a0", system="🙂"),
    turns("a" * 3000 + "\n" + "长" * 2000, "b" * 500, "ok"),
    turns("What is 2+2?", "4", "Sure?", thought="Two and two\nmake four."),
    turns("二加二？", "四", "确定吗？", "确定", "再想想", thought="二加二等于四。", system="先想后答。"),
]  # fmt: skip
"""Twenty: with and without a system text, one and several turns, Chinese and English, and texts that template
languages, quotes and blanks could spoil."""
