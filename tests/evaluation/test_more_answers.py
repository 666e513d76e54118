"""What a model is asked beside its prompts: tools, thoughts switched on and off; and what becomes of single rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.real import load
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.tokens.chains import turn
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.named_templates import CHATML, DEFAULTS
from tuneloop.data.tokens.templates import render, switches_thoughts
from tuneloop.evaluation import calls, suite
from tuneloop.evaluation.before_after import held_out_loss, measure_before_after
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.task import TaskContext

SWITCH = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
                        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def row(question: str, answer: str, file: str = "a.jsonl", **more: Any) -> Record:
    return Record((Message("user", question), Message("assistant", answer)), file, **more)


ROWS = [row("Who are you?", "I'm Pebble."), row("你是谁？", "我是小石。", "b.jsonl"), row("Name a colour.", "Blue.")]
TOOL_ROWS = [
    Record(
        (Message("user", "Weather in Rome?"), Message("assistant", "", tool_calls=(CALL,))), "t.jsonl", tools=(TOOL,)
    ),
    row("Hello!", "Hello.", "t.jsonl", tools=(TOOL,)),
]


def measured(folder: Path, template: str, held: list[Record], **evaluate: Any) -> Evaluation:
    """The evaluation of an untrained model against itself."""
    recipe, _ = make_recipe({"model": str(folder), "train": {"method": "full"},
                             "evaluate": {"rows": 3, "max_new_tokens": 6, **evaluate}})  # fmt: skip
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    setting = TaskContext(recipe.train, tokenizer)
    trained = Trained(load_model(folder), tokenizer, recipe, CHAT, setting, Head())
    return measure_before_after(trained, held, lambda text: None)


@pytest.fixture(scope="module")
def with_tools(tiny_model: Path) -> Evaluation:
    return measured(tiny_model, DEFAULTS["chatml-think"], [*ROWS, *TOOL_ROWS])


def test_each_row_has_its_figures_and_their_means_are_the_metrics(with_tools: Evaluation) -> None:
    one = with_tools
    rows = {r.id: r for r in one.row_scores}
    assert set(rows) == {r.id for r in (*ROWS, *TOOL_ROWS)}
    total = sum(r.weight for r in one.row_scores)
    assert total == one.after.label_tokens
    assert sum(r.after["loss"] * r.weight for r in one.row_scores) / total == pytest.approx(one.after["loss"], rel=1e-6)  # type: ignore[operator]
    for name in ("rouge1", "rougeL", "token_f1", "exact_match", "length", "repeats", "refused"):
        figures = [rows[r.id].after[name] for r in ROWS]
        assert np.mean(figures) == pytest.approx(one.after[name]), name  # type: ignore[arg-type]
    pairs = {(p.metric, p.section): p for p in one.paired}
    for (name, section), pair in pairs.items():
        if not section:
            assert pair.after.estimate == pytest.approx(one.after[name]), name
        assert pair.separation in ("not separable", "not defined"), (name, "before is after")
    assert {s for _, s in pairs} == {"", "source/a.jsonl", "source/b.jsonl", "source/t.jsonl"}
    assert json.loads(json.dumps(one.as_dict(), allow_nan=False)) == one.as_dict()


def test_rows_with_tools_are_answered_with_them_and_judged_by_their_calls(
    with_tools: Evaluation, tiny_model: Path
) -> None:
    one = with_tools
    assert one.after["calls"] is not None
    assert all("calls" in r.after for r in one.row_scores if r.id in {t.id for t in TOOL_ROWS})
    assert len(one.answers) == 3, "they are not compared as texts"
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = DEFAULTS["chatml-think"]
    answerer = Answerer(load_model(tiny_model).eval(), tokenizer)
    chat = [m.as_chat() for m in suite.prompt(TOOL_ROWS[0])]
    text = tokenizer.decode(answerer.prompt(chat, [TOOL]))
    assert '"weather"' in text
    assert "weather" not in tokenizer.decode(answerer.prompt(chat))
    alone, offered = (
        answerer.answer([chat, chat], max_new_tokens=5, **more)[0] for more in ({}, {"tools": [[TOOL], []]})
    )
    assert offered.prompt_tokens == len(answerer.prompt(chat, [TOOL])) > alone.prompt_tokens


def test_a_template_without_tools_is_not_judged_by_them(tiny_model: Path) -> None:
    one = measured(tiny_model, CHATML, [*ROWS, *TOOL_ROWS])
    assert one.after["calls"] is None
    assert "calls" not in one.after.metrics


def test_a_switch_for_thoughts_is_measured_on_and_off(tiny_model: Path) -> None:
    one = measured(tiny_model, SWITCH, ROWS)
    pairs = {(p.metric, p.section): p for p in one.paired}
    for section in ("thinking/on", "thinking/off"):
        assert {"thinks", "thought_length", "thought_seconds", "well_formed", "bleu", "token_f1"} <= {
            m for m, s in pairs if s == section
        }
        assert pairs["thinks", section].after.rows == 3
    assert one.after["thinks"] == pairs["thinks", "thinking/on"].after.estimate, "without the switch it is on"
    tokenizer = load_tokenizer(tiny_model)
    assert not switches_thoughts(tokenizer)
    tokenizer.chat_template = SWITCH
    assert switches_thoughts(tokenizer)
    chat = [{"role": "user", "content": "?"}]
    on, off = (render(tokenizer, chat, prompt=True, thinking=switch) for switch in (True, False))
    assert (on, off) == (render(tokenizer, chat, prompt=True), on + "<think>\n\n</think>\n\n")
    assert off == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def test_a_model_that_does_not_think_has_no_metrics_of_thoughts(with_tools: Evaluation) -> None:
    assert "thinks" not in with_tools.after.metrics
    assert "thinks" not in {p.metric for p in with_tools.paired}


def test_the_losses_of_rows_add_up_and_are_those_of_each_row_alone(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model).eval(), load_tokenizer(tiny_model)
    heard: dict[str, tuple[float, int]] = {}
    silent = Record((Message("user", "?"), Message("assistant", "!", trained=False)))
    loss = held_out_loss(model, tokenizer, 512, each=lambda r, lost, n: heard.update({r.id: (lost, n)}))
    total, tokens = loss([*ROWS, silent])
    assert silent.id not in heard
    assert sum(lost for lost, _ in heard.values()) == pytest.approx(total, rel=1e-6)
    assert sum(n for _, n in heard.values()) == tokens == sum(s.labels for s in tokenize(tokenizer, ROWS))
    for record in ROWS:
        assert heard[record.id] == pytest.approx(held_out_loss(model, tokenizer, 512)([record]), rel=1e-4)


REAL = ["qwen3-tokenizer", "deepseek-v3-tokenizer", "qwen2.5-coder-0.5b-instruct", "chatml-think", "plain-think"]


@pytest.mark.parametrize("name", REAL)
def test_what_a_family_writes_for_a_call_is_read_back(name: str, tiny_model: Path) -> None:
    """Real calls in Chinese and English: rendered by the template, encoded, decoded as an answer is, and compared."""
    from tuneloop.base.environment import environment

    folder = environment().home / "models" / name
    if name not in DEFAULTS and not folder.is_dir():
        pytest.skip(f"tuneloop model pull {name}")
    tokenizer = load_tokenizer(tiny_model if name in DEFAULTS else folder)
    tokenizer.chat_template = DEFAULTS.get(name, tokenizer.chat_template)
    rows = [r for tongue in ("zh", "en") for r in load(f"llamafactory/glaive_toolcall_{tongue}_demo.json")[:40]]
    seen = 0
    for record in (*rows, *load("openai_messages/drone_training.jsonl")):
        at = next((k for k, m in enumerate(record.messages) if m.tool_calls), None)
        if at is None:
            continue
        record = record.with_messages(record.messages[: at + 1])
        context, full = turn(tokenizer, record, at)
        ids = tokenizer(full[len(context) :], add_special_tokens=False)["input_ids"]
        reply = Reply(tokenizer.decode(ids, skip_special_tokens=True), 1, 1, "stop")
        assert calls.right(reply, record) == 100, reply.text
        assert calls.valid(reply, record) != 0 or record.file.endswith("drone_training.jsonl")
        name = record.messages[at].tool_calls[0]["function"]["name"]
        wrong = Reply(reply.text.replace(name, f"{name}_"), 1, 1, "stop")
        assert calls.right(wrong, record) == 0
        seen += 1
    assert seen > 20


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('<tool_call>{"name": "a", "arguments": {}}</tool_call><tool_call>{"name": "b", "arguments": "{}"}</tool_call>', ["a", "b"]),
        ('<|python_tag|>{"name": "a", "parameters": {"x": 1}}; {"name": "b", "parameters": {}}', ["a", "b"]),
        ('[TOOL_CALLS] [{"name": "a", "arguments": {}}, {"name": "b", "arguments": {}}]', ["a", "b"]),
        ('<｜tool▁call▁begin｜>a<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>', ["a"]),
        ('function<｜tool▁sep｜>a\n```json\n{"x": 1}\n```', ["a"]),
        ('<think>I call {"name": "z"}</think><tool_call>{"name": "a", "arguments": {}}', ["a"]),
        ("<tool_call>{broken</tool_call>", [None]),
        ('{"answer": 42}', []), ("[1, 2]", []), ("A list: [1]", []), ("", []), ("[" * 100_000, []),
    ],
)  # fmt: skip
def test_calls_in_the_forms_of_the_families(text: str, names: list[str | None]) -> None:
    assert [None if call is None else call.name for call in calls.written_calls(text)] == names


def test_calls_are_compared_as_trees() -> None:
    record = Record((Message("user", "?"), Message("assistant", "", tool_calls=(
        {"function": {"name": "f", "arguments": {"on": True, "n": 1, "list": [1, 2]}}},))), tools=(TOOL,))  # fmt: skip

    def right(arguments: str, name: str = "f") -> float:
        return calls.right(
            Reply(f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>', 1, 1, "stop"), record
        )

    assert right('{"n": 1.0, "list": [1, 2], "on": true}') == 100
    assert right('{"n": 1, "list": [2, 1], "on": true}') == 0
    assert right('{"n": 1, "list": [1, 2], "on": 1}') == 0, "true is not 1"
    assert right('{"n": 1, "list": [1, 2], "on": true}', "g") == 0
    assert calls.right(Reply("It is on.", 1, 1, "stop"), record) == 0
    assert calls.right(Reply("Hello.", 1, 1, "stop"), TOOL_ROWS[1]) == 100, "no call is wanted, none is made"


@pytest.mark.parametrize(("parameters", "figure"), [
    ({"type": "nonsense"}, None), ("text", None), ({"$ref": "http://127.0.0.1:9/schema.json"}, None), (True, 100.0), ({}, 100.0),
    ({"type": "object", "properties": {"city": {"type": "integer"}}}, 0.0),
])  # fmt: skip
def test_a_schema_that_is_none_judges_nothing_and_fetches_nothing(parameters: Any, figure: float | None) -> None:
    tool = {"function": {"name": "weather", "parameters": parameters}}
    reply = Reply('<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>', 1, 1, "stop")
    assert calls.valid(reply, Record((), tools=(tool,))) == figure


def test_refusals_of_real_answers() -> None:
    """Counselling answers refuse nothing, real refusals are found; what opens an answer decides."""
    from tuneloop.evaluation.form import refused

    talks = [m.content for r in load("smilechat/dialogs.jsonl") for m in r.messages if m.role == "assistant"]
    assert len(talks) > 500
    assert sum(refused(Reply(text, 1, 1, "stop")) for text in talks) == 0
    glaive = [
        m.content
        for r in load("llamafactory/glaive_toolcall_en_demo.json")
        for m in r.messages
        if m.role == "assistant"
    ]
    found = [text for text in glaive if refused(Reply(text, 1, 1, "stop"))]
    assert len(found) > 5
    assert all("sorry" in text.lower() for text in found)
