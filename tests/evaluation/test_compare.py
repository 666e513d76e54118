from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.evaluations import evaluation
from tuneloop.base.errors import DataError, RecipeError
from tuneloop.base.records import Message, Record, Reply
from tuneloop.evaluation import compare
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.recipe.schema import Probe

PROBE = Probe(name="identity", prompts=["Who are you?", "Your name?"], expect="pebble", at_least=2)


def replies(*texts: str) -> list[Reply]:
    """Answers that ended by themselves."""
    return [Reply(text, 1, 1, "stop") for text in texts]


def scores(loss: float | None = 2.0, **more: float) -> Scores:
    perplexity = None if loss is None else math.exp(min(loss, 700))
    metrics = {"loss": loss, "perplexity": perplexity, "bleu": 10.0, "rouge1": 20.0, "rouge2": 5.0, "rougeL": 15.0}
    files = {"a.csv": Scores({"loss": loss}, label_tokens=4), "b.csv": Scores({"loss": 1.0}, label_tokens=6)}
    return Scores(metrics | more, rows=1, label_tokens=10, by_source=files)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffWho are you?\r\n\r\n  你是谁？ \n".encode())
    assert compare.read_prompts(str(path)) == ["Who are you?", "你是谁？"]


@pytest.mark.parametrize(
    ("content", "code"), [(None, "TL-DATA-MISSING"), (b" \n\n", "TL-DATA-EMPTY"), (b"\xc4\xe3\xff", "TL-DATA-PROMPTS")]
)
def test_prompts_that_cannot_be_read(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        compare.read_prompts(str(path))
    assert caught.value.code == code
    assert str(path) in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize(
    ("bounds", "after", "passed"),
    [
        ({"at_least": 2}, ["Pebble", "I am PEBBLE"], True),
        ({"at_least": 2}, ["Pebble", "I am a rock"], False),
        ({"at_most": 0}, ["a rock", "a stone"], True),
        ({"at_most": 0}, ["a rock", "pebble"], False),
        ({"at_least": 1, "at_most": 1}, ["a rock", "pebble"], True),
        ({}, ["a rock", "a rock"], True),
    ],
)
def test_a_probe_counts_and_judges(bounds: dict[str, int], after: list[str], passed: bool) -> None:
    one = Probe(name="identity", prompts=["Who are you?", "Your name?"], expect="pebble", **bounds)
    result = compare.probe(one, replies("a rock", "Pebble, no?"), replies(*after))
    assert (result.total, result.before, result.passed) == (2, 1, passed)
    assert result.after == sum("pebble" in a.lower() for a in after)
    assert [a.prompt for a in result.answers] == ["Who are you?", "Your name?"]


def test_a_probe_needs_an_answer_to_each_prompt() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare.probe(PROBE, replies("one"), replies("one", "two"))


def test_a_broken_pattern_is_found_before_training() -> None:
    with pytest.raises(RecipeError) as caught:
        compare.check_probe(Probe(name="odd", prompts=["?"], expect="(lumi"))
    assert caught.value.where == "evaluate.probes.odd.expect"


def test_evaluation_json_has_the_agreed_shape() -> None:
    record = Record(
        (Message("user", "first"), Message("assistant", "1"), Message("user", "second"), Message("assistant", "2")),
        "a.csv",
        7,
    )
    other = Record((Message("user", "?"), Message("assistant", "!")))
    assembled = compare.assemble(
        before=scores(2.5),
        after=scores(1.5),
        rows=[record],
        held=[record, other],
        answers_before=replies("b"),
        answers_after=replies("a"),
        show=["hi"],
        show_before=replies("x"),
        show_after=replies("y"),
        probes=[compare.probe(PROBE, replies("", ""), replies("Pebble", "Pebble"))],
    )
    evaluation = assembled.as_dict()
    assert list(evaluation) == ["before", "after", "by_source", "held", "answers", "show", "probes"]
    assert evaluation["held"] == [record.id, other.id]
    assert list(evaluation["before"]) == [
        "loss", "perplexity", "bleu", "rouge1", "rouge2", "rougeL", "rows", "label_tokens"
    ]  # fmt: skip
    assert evaluation["by_source"]["a.csv"] == {
        "before": {"loss": 2.5, "label_tokens": 4},
        "after": {"loss": 1.5, "label_tokens": 4},
    }
    sound = {"before_fault": "", "after_fault": ""}
    context = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "1"}]
    assert evaluation["answers"] == [
        {"prompt": "second", "before": "b", "after": "a", "reference": "2", "context": context, **sound,
         "id": record.id, "file": "a.csv", "line": 7}
    ]  # fmt: skip
    assert evaluation["show"] == [{"prompt": "hi", "before": "x", "after": "y", "reference": "", **sound}]
    assert evaluation["probes"][0] | {"answers": 0} == {
        "name": "identity", "expect": "pebble", "total": 2, "before": 0, "after": 2, "passed": True, "at_least": 2,
        "at_most": None, "answers": 0,
    }  # fmt: skip
    assert evaluation["probes"][0]["answers"][1]["after"] == "Pebble"
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation


def test_a_value_without_a_number_stays_valid_json() -> None:
    evaluation = compare.assemble(before=scores(2.0), after=scores(math.nan))
    json.dumps(evaluation.as_dict(), allow_nan=False)
    assert evaluation.after["loss"] is None
    assert evaluation.after.label_tokens == 10


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare.assemble(before=scores(), after=scores(), show=["hi"], show_before=replies("x"))


def test_changes_say_what_is_better() -> None:
    evaluation = compare.assemble(
        before=scores(2.0), after=scores(1.5, bleu=8.0, rouge2=5.0),
        probes=[compare.probe(PROBE, replies("", "pebble"), replies("pebble", "pebble"))],
    )  # fmt: skip
    rows = {c.metric: c for c in compare.changes(evaluation)}
    assert list(rows)[:3] == ["loss", "loss/a.csv", "loss/b.csv"]
    assert (rows["loss"].change, rows["loss"].better) == (-0.5, True)
    assert (rows["bleu"].change, rows["bleu"].better) == (-2.0, False)
    assert (rows["rouge2"].change, rows["rouge2"].better) == (0, None)
    assert rows["loss/b.csv"].better is None
    assert (rows["probe/identity"].before, rows["probe/identity"].after, rows["probe/identity"].better) == (1, 2, True)
    assert rows["loss/a.csv"].label == "held-out loss on a.csv"
    assert rows["probe/identity"].label == 'answers that match "identity"'


@pytest.mark.parametrize(
    ("bounds", "before", "after", "better"),
    [({"at_most": 1}, 0, 1, None), ({"at_most": 0}, 0, 1, False), ({"at_most": 1}, 2, 1, True),
     ({"at_least": 0, "at_most": 2}, 0, 1, None), ({}, 0, 1, None)],
)  # fmt: skip
def test_changes_of_a_probe_follow_its_bound(
    bounds: dict[str, int], before: int, after: int, better: bool | None
) -> None:
    one = Probe(name="p", prompts=["1", "2"], expect="x", **bounds)
    result = compare.probe(
        one, replies(*["x"] * before, *[""] * (2 - before)), replies(*["x"] * after, *[""] * (2 - after))
    )
    evaluation = compare.assemble(before=scores(), after=scores(), probes=[result])
    assert compare.changes(evaluation)[-1].better is better


def test_matches_are_shown_with_what_they_are_of() -> None:
    evaluation = compare.assemble(
        before=scores(2.0), after=scores(1.5), probes=[compare.probe(PROBE, replies("", ""), replies("pebble", ""))]
    )
    rows = {c.metric: c for c in compare.changes(evaluation)}
    probe = rows["probe/identity"]
    assert (probe.total, probe.shown(probe.before), probe.shown(probe.after)) == (2, "0/2", "1/2")
    assert (rows["loss"].shown(2.0), rows["loss"].shown(None)) == ("2.000", "")


@pytest.mark.parametrize(
    ("held", "tokens", "said"),
    [
        ([["a", "b"], ["b", "a"]], (10, 10), ""),
        ([["a", "b"], ["b", "c", "d"]], (10, 10), "different held-out rows (2 and 3, 1 of them in both)"),
        ([["a"], None], (10, 10), "is not known"),
        ([["a"], ["a"]], (10, 12), "count tokens differently"),
    ],
)
def test_scores_on_different_rows_are_not_compared(
    held: list[list[str] | None], tokens: tuple[int, int], said: str
) -> None:
    left, right = (Evaluation(after=Scores(label_tokens=n)) for n in tokens)
    found = compare.different_rows(left, right, held)
    assert said in found
    assert bool(said) == bool(found)


def test_two_runs_are_compared_by_what_each_scores_after_training() -> None:
    left, right = evaluation(3.0, 2.0, True), evaluation(3.0, scores(1.0, margin=0.1), False)
    rows = compare.of_two_runs(left, right)
    measured = compare.Comparison((), tuple(row for row in rows if row.measured), "take care").as_dict()
    assert measured["metrics"][0] == {"metric": "held-out loss", "left": 2.0, "right": 1.0, "of": None}
    assert measured["metrics"][-1] == {"metric": 'answers that match "p0"', "left": 1, "right": 1, "of": 1}
    assert "margin" not in [row.metric for row in rows], "only one of them has it"
    assert {row.better for row in rows} == {None}
    unmeasured = compare.of_two_runs(Evaluation(), right)[0]
    assert (unmeasured.before, unmeasured.after, unmeasured.measured) == (None, 1.0, True)


def test_nothing_measured_is_no_change() -> None:
    nothing = Scores(rows=0, label_tokens=0)
    rows = compare.changes(compare.assemble(before=nothing, after=nothing))
    assert [(c.before, c.after, c.change, c.better) for c in rows] == [(None, None, None, None)] * len(rows)
    assert {"loss", "perplexity", "bleu", "rouge1", "rouge2", "rougeL"} <= {c.metric for c in rows}
    assert compare.changes(Evaluation()) == rows


def test_a_real_model_is_asked(tiny_model: Path) -> None:
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.model.load import load_model

    answerer = Answerer(load_model(tiny_model).eval(), load_tokenizer(tiny_model))
    prompts = ["Who are you?", "Name a colour.", "你是谁？"]
    answers = compare.ask(answerer, prompts, max_new_tokens=4, batch_size=2)
    assert len(answers) == 3
    texts = [answer.text for answer in answers]
    assert texts == [a.text for a in compare.ask(answerer, prompts, max_new_tokens=4, batch_size=3)]
    alone = answerer.answer([[{"role": "system", "content": "Be kind."}, {"role": "user", "content": prompts[0]}]],
                            max_new_tokens=4)  # fmt: skip
    (kind,) = compare.ask(answerer, prompts[:1], max_new_tokens=4, batch_size=1, system="Be kind.")
    assert kind.text == alone[0].text
    assert compare.ask(answerer, [], max_new_tokens=4, batch_size=1) == []
