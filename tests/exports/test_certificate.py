"""The certificate: unharmed exports pass, and each planted fault is caught with its cause named rightly."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tuneloop.base import language
from tuneloop.base.errors import RunError
from tuneloop.data.tokens.templates import stop_ids
from tuneloop.exports import parity
from tuneloop.exports.certificate import agreement, certify
from tuneloop.exports.evidence import EVIDENCE
from tuneloop.exports.forms import TransformersForm
from tuneloop.exports.limits import LIMITS
from tuneloop.exports.parity import Evidence, Parity, require
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.methods import adapters
from tuneloop.model.load import load_model

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble, the assistant."}],
    [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小石，随 tuneloop 一起来的助手。"}],
]


@pytest.fixture(scope="module")
def reference(tiny_run: Path) -> Evidence:
    trained = load_trained(tiny_run)
    return evidence_of(trained, tiny_run)


def evidence_of(trained: Any, run: Path) -> Evidence:
    """What `export` asks a trained model, with the chats above."""
    way = EVIDENCE["text"]
    questions = way.questions(run, trained.model, trained.tokenizer, CHATS)
    return way.evidence(trained.model, trained.tokenizer, trained.task, trained.setting, questions)


@pytest.fixture(scope="module")
def unharmed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's merged model as a folder, by PEFT and transformers alone."""
    folder = tmp_path_factory.mktemp("exported") / "merged"
    trained = load_trained(tiny_run)
    save(trained.model.merge_and_unload(), trained.tokenizer, folder)
    return folder


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    assert isinstance(model, PreTrainedModel)
    model.generation_config = GenerationConfig(eos_token_id=sorted(stop_ids(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_back(folder: Path, dtype: str = "float32") -> TransformersForm:
    return TransformersForm(load_model(folder, dtype), load_tokenizer(folder))


def planted(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a model folder whose weights on the disk were changed."""
    copy = Path(shutil.copytree(folder, tmp_path / "planted"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file({n: w.contiguous() for n, w in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_unharmed_folder_passes(dtype: str, reference: Evidence, unharmed: Path) -> None:
    certificate = certify(reference, read_back(unharmed, dtype), "merged")
    assert (certificate.passed, certificate.cause, certificate.past_limits()) == (True, None, [])
    assert certificate.kld is not None
    assert certificate.kld <= LIMITS[dtype].kld
    assert certificate.answer_tokens > 100, "held-out rows give what the chats lack"
    assert 0 < certificate.greedy_of <= certificate.of
    assert certificate.trained_answer_loss == pytest.approx(certificate.exported_answer_loss, abs=LIMITS[dtype].loss)
    require(certificate, "x")


def test_the_loss_is_that_of_the_answers(reference: Evidence, unharmed: Path) -> None:
    """By hand, with transformers' own loss of labels."""
    model, total, count = load_model(unharmed), 0.0, 0
    for ids, places in reference.samples:
        labels = torch.full_like(ids, -100)
        labels[places + 1] = ids[places + 1]
        with torch.no_grad():
            total += float(model(input_ids=ids[None], labels=labels[None]).loss) * len(places)
        count += len(places)
    certificate = certify(reference, read_back(unharmed), "merged")
    assert certificate.exported_answer_loss == pytest.approx(total / count, abs=1e-4)


def test_an_unharmed_adapter_passes(tiny_run: Path, tiny_model: Path, reference: Evidence) -> None:
    """Read back on its base by PEFT: what vLLM does."""
    folder = tiny_run / "adapter"
    model = adapters.with_adapter(load_model(tiny_model), folder)
    tokenizer = load_tokenizer(folder)
    model.get_base_model().generation_config = GenerationConfig(eos_token_id=sorted(stop_ids(tokenizer)))
    certificate = certify(reference, TransformersForm(model, tokenizer), "adapter")
    assert certificate.passed, certificate.differences()
    assert certificate.max_logit_difference < 1e-4


@pytest.mark.parametrize(
    ("factor", "cause"), [(2.0, "applied-twice"), (0.0, "not-applied"), (0.5, "merge-scale"), (-1.0, "merge-scale")]
)
def test_another_scale_of_the_adapter(
    factor: float, cause: str, tiny_model: Path, reference: Evidence, unharmed: Path, tmp_path: Path
) -> None:
    base = load_file(tiny_model / "model.safetensors")

    def rescale(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            weights[name] = base[name] + factor * (weight - base[name])

    certificate = certify(reference, read_back(planted(unharmed, tmp_path, rescale)), "merged")
    assert (certificate.passed, certificate.cause) == (False, cause)
    assert f"{factor:.2f} times" in certificate.why


def test_an_adapter_that_is_merged_twice(tiny_run: Path, reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    """Really: the merged model is taken for the base, and the adapter added once more."""
    twice = adapters.added(load_model(unharmed), tiny_run / "adapter")
    certificate = certify(reference, read_back(save(twice, load_tokenizer(unharmed), tmp_path / "twice")), "merged")
    assert (certificate.passed, certificate.cause) == (False, "applied-twice")


def test_a_transposed_attention_weight(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights.update({name: weights[name].T}))
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "transposed")
    assert name in certificate.why


def test_rows_of_rotary_halves_in_llama_cpps_order(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"

    def interleave(weights: dict[str, Tensor]) -> None:
        rows, columns = weights[name].shape
        weights[name] = weights[name].reshape(2, 2, rows // 4, columns).swapaxes(1, 2).reshape(rows, columns)

    certificate = certify(reference, read_back(planted(unharmed, tmp_path, interleave)), "merged")
    assert (certificate.passed, certificate.cause) == (False, "permuted")
    assert name in certificate.why


def test_weights_of_four_bits_under_the_name_of_float32(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    def coarsen(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            if weight.ndim == 2:
                step = weight.abs().amax(1, keepdim=True).clamp_min(1e-9) / 7
                weights[name] = (weight / step).round() * step

    certificate = certify(reference, read_back(planted(unharmed, tmp_path, coarsen)), "merged")
    assert (certificate.passed, certificate.cause) == (False, "rounding")


def test_one_weight_that_is_scaled_has_no_known_cause(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights.update({name: 1.2 * weights[name]}))
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "unknown")
    assert name in certificate.why


def test_weights_that_are_no_numbers(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights[name][0].fill_(math.nan))
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "not-finite")
    written = json.dumps(certificate.as_dict(), allow_nan=False)
    assert json.loads(written)["kld"] is None
    with pytest.raises(RunError, match="no number"):
        require(certificate, "x")


def test_fewer_tokens_than_the_trained_model_knows(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    folder = planted(
        unharmed, tmp_path, lambda w: w.update({"model.embed_tokens.weight": w["model.embed_tokens.weight"][:-1]})
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] - 1}))
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "shape")
    assert "model.embed_tokens.weight" in certificate.why


def test_biases_that_the_export_does_not_read(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny_model, attention_bias=True)
    model, tokenizer = LlamaForCausalLM(config), load_tokenizer(tiny_model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.normal_()
            layer.self_attn.k_proj.bias.normal_()
    trained = save(model, tokenizer, tmp_path / "trained")
    evidence = parity.measure(load_model(trained), tokenizer, CHATS)
    assert certify(evidence, read_back(trained), "merged").passed
    folder = Path(shutil.copytree(trained, tmp_path / "exported"))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"attention_bias": False}))
    certificate = certify(evidence, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "missing-bias")
    assert "self_attn.q_proj.bias" in certificate.why or "bias" in certificate.why


def test_a_template_that_was_changed_in_the_export(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unharmed, tmp_path / "changed"))
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_end|>", " <|im_end|>"), encoding="utf-8")
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "template")
    assert set(certificate.past_limits()) <= {"held"}, "the weights are judged by the reference's own tokens"
    assert " <|im_end|>" in certificate.why


def test_a_template_that_was_changed_in_the_run_after_training(tiny_run: Path, tmp_path: Path) -> None:
    """Then trained model and export render the same: only what the run recorded when it ended tells."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "changed-1"))
    file = run / "adapter" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_end|>", " <|im_end|>"), encoding="utf-8")
    trained = load_trained(run)
    evidence = evidence_of(trained, run)
    folder = save(trained.model.merge_and_unload(), trained.tokenizer, tmp_path / "out")
    form = read_back(folder)
    certificate = certify(evidence, form, "merged")
    assert (certificate.passed, certificate.cause) == (False, "template")
    assert "run's chat template" in certificate.why
    assert not parity.compare(evidence, parity.measure(form.model, form.tokenizer, CHATS)).passed


def test_another_pre_tokenizer(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unharmed, tmp_path / "changed"))
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    letters = {"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [letters, raw["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "pre-tokenizer")
    assert set(certificate.past_limits()) <= {"held"}, "the weights are judged by the reference's own tokens"


def test_a_special_token_that_is_cut_like_text(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unharmed, tmp_path / "changed"))
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [one for one in raw["added_tokens"] if one["content"] != "<|im_start|>"]
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "special-tokens")


def test_a_lost_end_token(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(unharmed, tmp_path / "changed"))
    (end,) = reference.ends
    GenerationConfig(eos_token_id=[end + 1]).save_pretrained(folder)
    certificate = certify(reference, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause, certificate.missing_ends) == (False, "end-token", (end,))


def test_without_the_bases_folder_no_cause_is_guessed(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights.update({name: weights[name].T}))
    assert reference.source is not None
    gone = replace(reference, source=replace(reference.source, folder=tmp_path / "gone"))
    certificate = certify(gone, read_back(folder), "merged")
    assert (certificate.passed, certificate.cause) == (False, "unknown")
    assert "could not be read" in certificate.why


def test_two_faults_are_both_told(reference: Evidence, unharmed: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights.update({name: weights[name].T}))
    GenerationConfig(eos_token_id=[0]).save_pretrained(folder)
    certificate = certify(reference, read_back(folder), "merged")
    assert certificate.cause == "end-token"
    assert name in certificate.why


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_the_error_says_what_how_much_which_limit_why_and_what_to_do(
    tongue: str, reference: Evidence, unharmed: Path, tmp_path: Path
) -> None:
    language.use(tongue)
    name = "model.layers.1.self_attn.q_proj.weight"
    folder = planted(unharmed, tmp_path, lambda weights: weights.update({name: weights[name].T}))
    certificate = certify(reference, read_back(folder), "merged")
    with pytest.raises(RunError) as caught:
        require(certificate, "out/model")
    text = str(caught.value)
    assert caught.value.code == "TL-RUN-PARITY"
    assert caught.value.where == "out/model"
    for part in (f"{certificate.noise:.3g}", f"{LIMITS['float32'].noise:.3g}", name, certificate.remedy):
        assert part in text
    assert "?" not in text
    assert "chat template" not in text or tongue == "en", "what is equal is not told"


@pytest.mark.parametrize(("tongue", "word"), [("en", "divergence"), ("zh", "散度")])
def test_the_line_for_the_console(tongue: str, word: str, reference: Evidence, unharmed: Path) -> None:
    language.use(tongue)
    line = certify(reference, read_back(unharmed), "merged").line()
    assert word in line
    assert "{" not in line


def test_the_certificate_keeps_the_keys_of_before(reference: Evidence, unharmed: Path) -> None:
    content = certify(reference, read_back(unharmed), "merged").as_dict()
    old = {"max_logit_difference", "mean_logit_difference", "same_tokens", "of", "template_equal", "passed", "tolerance",
           "trained_loss", "exported_loss", "loss_tolerance", "rounded"}  # fmt: skip
    assert old <= content.keys()
    assert content == json.loads(json.dumps(content, allow_nan=False))
    assert content["trained_loss"] == pytest.approx(content["exported_loss"], abs=1e-3)


def test_agreement_ends_at_a_near_tie_at_the_end_token_and_where_texts_part(reference: Evidence) -> None:
    def of(tokens: list[int], gaps: list[float], theirs: list[int]) -> tuple[int, int, int]:
        one = replace(reference, answers=(tuple(tokens),), gaps=(tuple(gaps),), ends=frozenset({9}))
        return agreement(one, [theirs], 1e-3)

    wide = [1.0, 1.0, 1.0, 1.0]
    assert of([1, 2, 3, 4], wide, [1, 2, 3, 4]) == (4, 4, 0)
    assert of([1, 2, 3, 4], wide, [1, 7, 3, 4]) == (1, 4, 0)
    assert of([1, 2, 3, 4], [1.0, 1e-4, 1.0, 1.0], [1, 7, 8, 9]) == (1, 1, 1)
    assert of([1, 9, 3, 4], wide, [1, 9, 5, 5]) == (2, 2, 0), "what stands behind the end is no answer"


def test_long_dialogues_are_cut_around_their_answers_and_memory_is_bounded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "LONGEST", 100)
    vocabulary = load_model(tiny_model).config.vocab_size
    monkeypatch.setattr(parity, "MOST_LOGITS", 20 * vocabulary)
    long = [{"role": "user", "content": "Who are you? " * 60}, {"role": "assistant", "content": "I'm Pebble. " * 60}]
    evidence = parity.measure(load_model(tiny_model), load_tokenizer(tiny_model), [long, long])
    assert [len(ids) for ids, _ in evidence.samples] == [100, 100]
    assert sum(len(logits) for logits in evidence.logits) <= 20
    assert evidence.context <= 100 + parity.NEW_TOKENS
    _, places = evidence.samples[0]
    assert places[0] < 60 <= places[-1], "the beginning of the answer, and what stands before it"
    certificate = certify(evidence, read_back(tiny_model), "merged")
    assert certificate.max_logit_difference < 1e-4


def test_a_parity_of_before_is_read_and_written_as_it_was() -> None:
    one = Parity(2e-6, 1e-7, 64, 64, True, True, 1e-3)
    assert "64/64" in one.line()
    require(one, "x")
    with pytest.raises(RunError, match="2e-06"):
        require(replace(one, passed=False), "x")
