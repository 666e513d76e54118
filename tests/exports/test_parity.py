"""Parity: equal models pass, and each way of being another model is noticed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.base.errors import RunError
from tuneloop.exports import parity
from tuneloop.exports.parity import EXACT, NEW_TOKENS, Evidence, compare, measure, questions, require, tolerance
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble, the assistant."}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "你是谁？"},
        {"role": "assistant", "content": "我是小石。"},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue. 🪨"},
    ],
]


@pytest.fixture(scope="module")
def evidence(tiny_model: Path) -> Evidence:
    return measure(load_model(tiny_model), load_tokenizer(tiny_model), CHATS)


def test_evidence_covers_the_assistants_tokens(tiny_model: Path, evidence: Evidence) -> None:
    tokenizer = load_tokenizer(tiny_model)
    model = load_model(tiny_model)
    said = len(tokenizer("I'm Pebble, the assistant.")["input_ids"])
    assert evidence.logits[0].shape == (said + 1, model.config.vocab_size)  # and the end token
    assert len(evidence.answers) == 2
    assert all(len(a) == NEW_TOKENS for a in evidence.answers)
    # The first of them is what the model makes of the prompt alone.
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(CHATS[0][:1], **how)
    with torch.no_grad():
        expected = model(**prompt).logits[0, -1]
    assert torch.allclose(evidence.logits[0][0], expected, atol=1e-5)
    assert evidence.answers[0][0] == int(expected.argmax())


def test_a_model_is_equal_to_itself(tiny_model: Path, evidence: Evidence) -> None:
    found = compare(evidence, measure(load_model(tiny_model), load_tokenizer(tiny_model), CHATS))
    assert found.passed
    assert found.template_equal
    assert (found.max_logit_difference, found.mean_logit_difference) == (0.0, 0.0)
    assert found.same_tokens == found.of > 0
    assert found.tolerance == EXACT
    require(found, "x")


def test_one_changed_weight_is_noticed(tiny_model: Path, evidence: Evidence) -> None:
    model = load_model(tiny_model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] += 0.1
    found = compare(evidence, measure(model, load_tokenizer(tiny_model), CHATS))
    assert found.max_logit_difference > EXACT
    assert not found.passed
    with pytest.raises(RunError) as caught:
        require(found, "here")
    assert caught.value.code == "TL-RUN-PARITY"
    assert "here" in str(caught.value)


def test_weights_that_are_no_numbers_are_noticed(tiny_model: Path, evidence: Evidence) -> None:
    model = load_model(tiny_model)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    found = compare(evidence, measure(model, load_tokenizer(tiny_model), CHATS))
    assert found.max_logit_difference == float("inf")
    assert not found.passed


def test_another_template_is_noticed_though_the_weights_are_equal(tiny_model: Path, evidence: Evidence) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|> ")
    found = compare(evidence, measure(load_model(tiny_model), tokenizer, CHATS))
    assert not found.template_equal
    assert not found.passed


def test_one_other_answer_token_fails_in_float32(evidence: Evidence) -> None:
    answer = evidence.answers[0]
    other = dataclasses.replace(evidence, answers=((*answer[:-1], answer[-1] + 1), *evidence.answers[1:]))
    found = compare(evidence, other)
    assert found.of - found.same_tokens == 1
    assert not found.passed


def test_no_assistant_positions_are_no_proof(evidence: Evidence) -> None:
    assert not compare(dataclasses.replace(evidence, logits=()), dataclasses.replace(evidence, logits=())).passed


ASKED = {"role": "user", "content": "Who are you?"}
OMITS = (  # leaves turns without a text out, and what stands before </think>
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1] %}{% if said %}"
    "{{ '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, OMITS])
@pytest.mark.parametrize("answer", ["", "  \n", "<think>hm</think>", "<think>hm</think>I'm Pebble."])
def test_where_no_answer_can_be_trained_the_place_of_one_is_compared(
    answer: str, template: str | None, tiny_model: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template or tokenizer.chat_template
    chats = [[ASKED, {"role": "assistant", "content": answer}]]
    found = measure(load_model(tiny_model), tokenizer, chats)
    assert len(found.logits) == 1
    assert len(found.logits[0]) > 0
    assert compare(found, found).passed
    model = load_model(tiny_model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] += 0.1
    other = compare(found, measure(model, tokenizer, chats))
    assert EXACT < other.max_logit_difference < float("inf")
    assert not other.passed


def test_a_question_without_an_answer_does_not_hide_the_others(tiny_model: Path, evidence: Evidence) -> None:
    silent = [ASKED, {"role": "assistant", "content": ""}]
    found = measure(load_model(tiny_model), load_tokenizer(tiny_model), [silent, *CHATS])
    assert len(found.logits) == len(evidence.logits) + 1
    assert all(a.equal(b) for a, b in zip(found.logits[1:], evidence.logits, strict=True))


def test_a_loss_that_only_one_model_has_is_no_proof(evidence: Evidence) -> None:
    one = dataclasses.replace(evidence, loss=1.0)
    assert compare(one, one).passed
    assert not compare(one, evidence).passed
    assert not compare(evidence, one).passed


def test_long_dialogues_are_sampled_over_their_length(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "MOST_LOGITS", 3 * 2 * load_model(tiny_model).config.vocab_size)
    found = measure(load_model(tiny_model), load_tokenizer(tiny_model), CHATS)
    assert [len(x) for x in found.logits] == [3, 3]


def test_lower_precision_is_allowed_its_rounding_and_no_more(tiny_model: Path, evidence: Evidence) -> None:
    exported = measure(load_model(tiny_model, "bfloat16"), load_tokenizer(tiny_model), CHATS)
    found = compare(evidence, exported)
    assert found.passed
    assert EXACT < found.max_logit_difference < found.tolerance
    model = load_model(tiny_model, "bfloat16")
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.05 * torch.randn_like(model.model.embed_tokens.weight)
    assert not compare(evidence, measure(model, load_tokenizer(tiny_model), CHATS)).passed


def test_tolerance_grows_with_the_logits_below_float32_only() -> None:
    assert tolerance(torch.float32, 1000) == tolerance(torch.float32, 1) == EXACT
    assert tolerance(torch.float16, 16) < tolerance(torch.bfloat16, 16)
    assert tolerance(torch.bfloat16, 32) == 2 * tolerance(torch.bfloat16, 16)


def test_questions_end_before_the_last_answer() -> None:
    assert questions(CHATS[1]) == CHATS[1][:4]
    assert questions(CHATS[0][:1]) == CHATS[0][:1]
