"""Templates for Ollama, run by Go's own text/template: in every byte what the tokenizer's chat template writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import chat_templates
from tests.exports import known_tokenizers, modelfiles
from tests.exports.test_ollama import model_folder
from tuneloop.base.errors import DataError
from tuneloop.data.tokens.templates import render
from tuneloop.exports.go_template import go_template
from tuneloop.exports.ollama import modelfile
from tuneloop.exports.prompt_format import recognise
from tuneloop.exports.tool_format import TOOLS, as_json, tool_probes

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).parent / "gotemplate" / "main.go"


@pytest.fixture(scope="module")
def rendering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program that renders as Ollama does."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here: apt-get install golang-go")
    folder = tmp_path_factory.mktemp("go")
    settings = {"GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    done = subprocess.run(
        [go, "build", "-o", str(folder / "render"), str(PROGRAM)],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "render"


def run(rendering: Path, cases: list[dict[str, Any]]) -> list[str]:
    done = subprocess.run([rendering], input=json.dumps(cases), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    texts: list[str] = json.loads(done.stdout)
    return texts


@pytest.mark.parametrize("name", known_tokenizers.NAMES)
def test_go_writes_what_the_chat_template_writes(name: str, rendering: Path) -> None:
    tokenizer = known_tokenizers.load(name)
    form = recognise(tokenizer)
    assert form is not None
    template = go_template(form, bos=True)
    cases, texts = [], []
    for chat in chat_templates.DIALOGUES:
        for thinking in (None, False, True):
            try:
                texts.append(render(tokenizer, chat, prompt=True, thinking=thinking))
            except DataError:  # Gemma 2 has no system role
                continue
            cases.append({"template": template, "messages": chat, "think": thinking})
    assert len(cases) == (27 if name == "gemma2" else 60)
    assert run(rendering, cases) == texts


SYSTEMS = ["Be brief.", '用中文回答：\n"""\n例子\n"""\n{{ .System }}', "\u3000全角空格开头\u200b", 'quote "']


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "deepseek-r1", "llama3.1"])
def test_the_system_prompt_of_a_modelfile_is_the_one_that_was_trained(
    name: str, system: str, rendering: Path, tmp_path: Path
) -> None:
    """As SYSTEM, which Ollama puts before a dialogue that has none, or as a constant where SYSTEM cannot hold it."""
    tokenizer = chat_templates.tokenizer(name)
    commands = dict(modelfiles.read(modelfile(model_folder(tmp_path / "m", tokenizer), "m.gguf", system=system)))
    chat = chat_templates.turns("你好", "Hi.", "x")
    given = [{"role": "system", "content": commands["system"]}, *chat] if "system" in commands else chat
    text = render(tokenizer, [{"role": "system", "content": system}, *chat], prompt=True)
    assert run(rendering, [{"template": commands["template"], "messages": given}]) == [text]


@pytest.mark.parametrize("name", ["qwen3-tokenizer", "qwen2.5"])
def test_tools_are_written_as_the_chat_template_writes_them(name: str, rendering: Path) -> None:
    """But for the blanks within JSON and the order of its keys, which are Go's."""
    tokenizer = known_tokenizers.load(name)
    form = recognise(tokenizer)
    assert form is not None
    assert form.tools is not None
    template = go_template(form, bos=True)
    chats = tool_probes()
    texts = [render(tokenizer, chat, prompt=True, tools=TOOLS) for chat in chats]
    cases = [{"template": template, "messages": chat, "tools": list(TOOLS)} for chat in chats]
    calls = [call["function"]["arguments"] for chat in chats for turn in chat for call in turn.get("tool_calls", ())]
    assert [as_go(text, [*TOOLS, *calls]) for text in texts] == run(rendering, cases)
    without = [{"template": template, "messages": chat} for chat in chats]
    assert run(rendering, without) == [as_go(render(tokenizer, chat, prompt=True), calls) for chat in chats]


def test_a_system_prompt_as_a_constant_stands_before_tools_as_well(rendering: Path, tmp_path: Path) -> None:
    tokenizer = chat_templates.tokenizer("qwen2.5")
    system = SYSTEMS[1]
    commands = dict(modelfiles.read(modelfile(model_folder(tmp_path / "m", tokenizer), "m.gguf", system=system)))
    assert "system" not in commands
    chat = [{"role": "user", "content": "Weather?"}]
    text = render(tokenizer, [{"role": "system", "content": system}, *chat], prompt=True, tools=TOOLS)
    cases = [{"template": commands["template"], "messages": chat, "tools": list(TOOLS)}]
    assert run(rendering, cases) == [as_go(text, list(TOOLS))]


def as_go(text: str, contents: list[Any]) -> str:
    """A text with its JSON as Go's encoder writes a map: compact, keys in order."""
    for content in contents:
        compact = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        text = text.replace(as_json(content), compact)
    return text
