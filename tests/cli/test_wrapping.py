from __future__ import annotations

import pytest

from tuneloop.cli import show
from tuneloop.cli.wrapping import pieces


@pytest.mark.parametrize(
    "text",
    ["", "plain English, as ever", "模型“小石”（0.5B）写在 runs/书店-1 里。", "……。，", "a（b）c", "  前面有空格"],
)
def test_no_character_is_lost(text: str) -> None:
    assert "".join(piece for _, _, piece in pieces(text)) == text
    assert [text[start:end] for start, end, _ in pieces(text)] == [piece for _, _, piece in pieces(text)]


def test_english_breaks_at_blanks_alone() -> None:
    text = 'a path/with-signs, "quotes" and it\'s (done); 100 %'
    assert [piece for _, _, piece in pieces(text)] == [f"{word} " for word in text.split()[:-1]] + ["%"]


def test_a_cell_of_chinese_is_filled_and_no_line_begins_with_a_closing_sign(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "使用镜像：export HF_ENDPOINT=https://example；也可以直接用本地文件夹，或者“魔搭”（ModelScope）。"
    show.table("", ["项目", "解决办法"], [("模型仓库" * 12, sentence * 3)])
    cells = [line[100:].strip() for line in capsys.readouterr().out.splitlines()]
    lines = [" ".join(line.split()) for line in cells if line]
    assert not [line for line in lines if line[0] in "，。；：）”"]
    assert not [line for line in lines if line[-1] in "（“"]
