"""A prompt format in the language of Go's text/template, with the names that Ollama fills in.

Read: .Messages (each with .Role, .Content and .Thinking), .System (all system messages, joined by an empty line),
.Think and .IsThinkSet. Ollama has joined neighbouring messages of one role before the template sees them.
"""

from __future__ import annotations

from tuneloop.exports.prompt_format import ROLES, THOUGHT, PromptFormat, Role
from tuneloop.exports.tool_format import ANSWER, CALL, ToolFormat


def literal(text: str) -> str:
    """Text as a template writes it out: as it is, or as a quoted constant where it could be read as something else.

    >>> literal("<|im_end|>\\n")
    '<|im_end|>\\n'
    >>> literal('{{ a }}"')
    '{{ "{{ a }}\\\\"" }}'
    """
    if "{{" in text or '"""' in text or not _printable(text):
        return "{{ " + quoted(text) + " }}"
    return text


def quoted(text: str) -> str:
    """A string constant of Go.

    >>> quoted('a "b"\\n\\u3000')
    '"a \\\\"b\\\\"\\\\n\\\\u3000"'
    """
    return '"' + "".join(_escaped(one) for one in text) + '"'


def _escaped(one: str) -> str:
    if one in '"\\':
        return "\\" + one
    if one == "\n":
        return "\\n"
    return one if one.isprintable() else f"\\U{ord(one):08x}" if ord(one) > 0xFFFF else f"\\u{ord(one):04x}"


def _printable(text: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in text)


_BLANKS = {
    1: "or (eq {0} 32) (and (ge {0} 9) (le {0} 13)) (and (ge {0} 28) (le {0} 31))",
    2: 'and (ge (len .) 2) (eq (slice . {0}) "\\u0085" "\\u00a0")',
    3: 'and (ge (len .) 3) (eq (slice . {0}) "\\u2028" "\\u2029" "\\u3000")',
}
"""Bytes of a blank -> how a template tells one. Python also strips some that are used in typesetting alone."""


def _trim() -> str:
    """A template that writes a string without the blanks at its edges, as Jinja's filter trim has it.

    text/template cannot subtract: `len (slice . 1)` is the length less one.
    """
    branches = []
    for size, test in _BLANKS.items():
        less = f"(len (slice . {size}))"
        first, last = ("(index . 0)", f"(index . {less})") if size == 1 else (f"0 {size}", less)
        branches.append(f'{test.format(first)} }}}}{{{{ template "trim" (slice . {size}) }}}}')
        branches.append(f'{test.format(last)} }}}}{{{{ template "trim" (slice . 0 {less}) }}}}')
    chain = "{{ else if ".join(branches)
    return '{{ define "trim" }}{{ if . }}{{ if ' + chain + "{{ else }}{{ . }}{{ end }}{{ end }}{{ end -}}\n"


TRIM = _trim()


def go_template(form: PromptFormat, *, bos: bool) -> str:
    """The template of a format; `bos`: whether it writes the token that opens a dialogue itself."""
    return "".join(
        [
            TRIM if form.trimmed else "",
            literal(form.bos) if bos else "",
            _variables(form),
            _start(form),
            "{{ range $i, $_ := .Messages }}",
            "{{ else ".join(f'if eq .Role "{role}" }}}}{text}' for role, text in _turns(form)).join(
                ("{{ ", "{{ end }}")
            ),
            "{{ $before = .Role }}" if form.tools else "",
            "{{ end }}",
            literal(form.frames["assistant"][0]),
            _prompt(form),
        ]
    )


def _variables(form: PromptFormat) -> str:
    """$system: whether there is a system message; $asked: the place of the last question."""
    text = ""
    if form.family.system != "turn":
        text += "{{ $system := false }}"
        text += '{{ range .Messages }}{{ if eq .Role "system" }}{{ $system = true }}{{ end }}{{ end }}'
    if form.family.system == "question":
        text += "{{ $first := true }}"
    if form.tools:
        text += '{{ $before := "" }}'
    if form.thoughts == "dropped":
        text += '{{ $asked := -1 }}{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}{{ $asked = $i }}{{ end }}'
        text += "{{ end }}"
    return text


def _start(form: PromptFormat) -> str:
    """What stands before the first turn."""
    if form.family.system == "top":
        return _system(form)
    text = ""
    if form.family.system == "turn" and form.default:
        text = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{literal(form.default)}{{{{ end }}}}'
    if form.tools:
        text = _tools(form, form.tools, text)
    return f"{{{{ if .Messages }}}}{text}{{{{ end }}}}" if text else ""


def _tools(form: PromptFormat, tools: ToolFormat, without: str) -> str:
    """The system turn with tools, where a dialogue has some."""
    system = f"{literal(form.frames['system'][0])}{{{{ (index .Messages 0).Content }}}}{literal(tools.after_system)}"
    head = f'{{{{ if eq (index .Messages 0).Role "system" }}}}{system}{{{{ else }}}}{literal(tools.alone)}{{{{ end }}}}'
    each = (
        f"{{{{ range $k, $_ := .Tools }}}}{{{{ if $k }}}}{literal(tools.between)}{{{{ end }}}}{{{{ . }}}}{{{{ end }}}}"
    )
    otherwise = f"{{{{ else }}}}{without}" if without else ""
    return f"{{{{ if .Tools }}}}{head}{each}{literal(tools.after)}{otherwise}{{{{ end }}}}"


def _system(form: PromptFormat) -> str:
    before, after = form.frames["system"]
    text = f"{literal(before)}{_content(form, 'system', '$.System')}{literal(after)}"
    otherwise = f"{{{{ else }}}}{literal(form.default)}" if form.default else ""
    return f"{{{{ if $system }}}}{text}{otherwise}{{{{ end }}}}"


def _turns(form: PromptFormat) -> list[tuple[str, str]]:
    """Role -> what is written of its turn."""
    turns: list[tuple[str, str]] = [(role, _turn(form, role)) for role in ROLES]
    if form.tools is None:
        return turns
    (_, system), *others = turns  # the first is written with the tools
    return [("system", f"{{{{ if or $i (not $.Tools) }}}}{system}{{{{ end }}}}"), *others, ("tool", _answer(form))]


def _answer(form: PromptFormat) -> str:
    """An answer of a tool. Neighbours share a turn of the user: what is next decides whether it ends."""
    before, after = form.frames["user"]
    start = f'{{{{ if ne $before "tool" }}}}{literal(before.removesuffix(ANSWER[0][0]))}{{{{ end }}}}'
    more = "{{ $more := false }}{{ $rest := slice $.Messages $i }}{{ if gt (len $rest) 1 }}"
    more += '{{ if eq (index $rest 1).Role "tool" }}{{ $more = true }}{{ end }}{{ end }}'
    end = f"{{{{ if not $more }}}}{literal(after)}{{{{ end }}}}"
    return f"{start}{ANSWER[0]}{{{{ .Content }}}}{ANSWER[1]}{more}{end}"


def _calls() -> str:
    """The calls of an answer. Ollama takes the first text behind `if .ToolCalls` for what a call begins with."""
    last = "{{ if lt $k (len (slice $calls 1)) }}\n{{ end }}"
    call = f"{CALL[0]}{{{{ .Function.Name }}}}{CALL[1]}{{{{ .Function.Arguments }}}}{CALL[2]}{last}"
    start = "{{ $calls := .ToolCalls }}{{ if .Content }}{{ with $calls }}\n{{ end }}{{ end }}"
    return f"{start}{{{{ if .ToolCalls }}}}{{{{ range $k, $_ := .ToolCalls }}}}{call}{{{{ end }}}}{{{{ end }}}}"


def _turn(form: PromptFormat, role: Role) -> str:
    before, after = form.frames[role]
    if role == "system" and form.family.system != "turn":
        return ""
    first = ""
    if role == "system" and form.preamble:
        first = f"{{{{ if eq $i 0 }}}}{literal(form.preamble)}{{{{ end }}}}"
    if role == "user" and form.family.system == "question":
        first = f"{{{{ if $first }}}}{_system(form)}{{{{ $first = false }}}}{{{{ end }}}}"
    if role == "assistant" and form.thoughts:
        later = "and .Thinking (gt $i $asked)" if form.thoughts == "dropped" else ".Thinking"
        first = f"{{{{ if {later} }}}}{THOUGHT[0]}{{{{ .Thinking }}}}{THOUGHT[1]}{{{{ end }}}}"
    behind = _calls() if role == "assistant" and form.tools else ""
    return f"{literal(before)}{first}{_content(form, role, '.Content')}{behind}{literal(after)}"


def _content(form: PromptFormat, role: Role, name: str) -> str:
    return f'{{{{ template "trim" {name} }}}}' if role in form.trimmed else f"{{{{ {name} }}}}"


def _prompt(form: PromptFormat) -> str:
    if form.prompt == form.prompt_without:
        return literal(form.prompt)
    off = f"{{{{ if and .IsThinkSet (not .Think) }}}}{literal(form.prompt_without)}"
    on = f"{{{{ else }}}}{literal(form.prompt)}" if form.prompt else ""
    return f"{off}{on}{{{{ end }}}}"
