"""The guard: what it lets pass whole and in pieces, and that the two are the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.safety.disguises import all_disguises
from tuneloop.safety.guard import TextGuard
from tuneloop.safety.lexicon import shipped

GUARD = TextGuard.load()
WORDS = sorted({word.text for word in shipped() if word.category})
DISGUISES = all_disguises()

bits = st.one_of(
    st.sampled_from([
        "fuck", "f u c k", "sh!t", "shiiit", "f**k", "口交", "路口交", "路口，交", "口 交", "通拥堵", "代开发票", "王 八 蛋", "wet back",
        "138 1234 5678", "li.wang@example.com", "+1 (212) 555-0123", "身份证", "11010519491231002X", "人民币", "GB82 WEST 1234 5698 7654 32",
        "\u200b", "\u0336", "\\u0066", "&#102;", "u", "uu", "k", "kkk", " ", "*", ".", "，", "。", "\n", "1", "ﬁ", "Ａ", "😀", "的", "sk-",
        "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "call", "电话", "@", "!", "'s", "hit", "ass", "hole", "64式手枪出售",
        "\U0001f1e8", "\U0001f1f3", "<b>", "<br", " />", "</", "&nbsp;", "&", ";", "\\", "\\x66", "™", "<", ">", "二", " . ",
    ]),
    st.text(max_size=4),
    st.builds(lambda word, name, seed: DISGUISES[name](word, random.Random(seed)), st.sampled_from(WORDS), st.sampled_from(sorted(DISGUISES)), st.integers(0, 9)),
)  # fmt: skip


def streamed(text: str, cuts: list[int], side: str = "output") -> tuple[str, bool, list[object]]:
    stream = GUARD.stream(side)  # type: ignore[arg-type]
    out, at = [], 0
    for cut in [*sorted(cuts), len(text)]:
        out.append(stream.push(text[at:cut]))
        at = cut
    out.append(stream.finish())
    return "".join(out), stream.blocked, list(stream.findings)


@settings(max_examples=100, deadline=None)
@given(st.lists(bits, max_size=14), st.data())
def test_for_every_chunking_the_stream_is_the_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    whole = GUARD.filter(text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    for chosen in (cuts, list(range(len(text)))):
        assert streamed(text, chosen) == (whole.text, whole.blocked, list(whole.findings))


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(st.lists(bits, max_size=30), st.data())
def test_for_very_many_chunkings_the_stream_is_the_whole(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    whole = GUARD.filter(text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=30))
    assert streamed(text, cuts) == (whole.text, whole.blocked, list(whole.findings))
