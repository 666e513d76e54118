"""The language of a text, by script or by model."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.real import load, shared
from tuneloop.data.cleaning.languages import KNOWN, language

SENTENCES = {
    "zh": "今天天气很好，我们去公园吧。", "en": "The weather is nice today, let us go to the park.",
    "ja": "今日は天気がいいので、公園に行きましょう。", "ko": "오늘 날씨가 좋으니 공원에 갑시다.",
    "ru": "Сегодня хорошая погода, пойдём в парк.", "uk": "Сьогодні гарна погода, ходімо до парку.",
    "de": "Heute scheint die Sonne, gehen wir in den Park.", "fr": "Il fait beau aujourd'hui, allons au parc.",
    "es": "El tiempo es bueno, vamos al parque.", "pt": "Hoje o tempo está bom, vamos ao parque.",
    "it": "Oggi fa bel tempo, andiamo al parco.", "vi": "Hôm nay thời tiết đẹp, chúng ta đi công viên nhé.",
    "tr": "Bugün güneşli, parka gidelim.", "ar": "الطقس جميل اليوم، لنذهب إلى الحديقة.",
    "fa": "امروز هوا خوب است، بیا برویم پارک.", "hi": "आज मौसम अच्छा है, चलो पार्क चलते हैं।",
    "th": "วันนี้อากาศดี ไปสวนสาธารณะกันเถอะ", "he": "היום מזג האוויר יפה, בוא נלך לפארק.",
    "el": "Σήμερα ο καιρός είναι καλός, πάμε στο πάρκο.", "pl": "Dziś jest ładna pogoda, chodźmy do parku.",
}  # fmt: skip


@pytest.mark.parametrize("code", SENTENCES)
def test_one_sentence_is_enough(code: str) -> None:
    assert language(SENTENCES[code]) == code
    assert code in KNOWN


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ""), ("123 + 4 = 127", ""), ("😊👍", ""), ("77.0°F", ""), ("好", "zh"), ("繁體中文也是中文", "zh"),
        ("请用 Python 写一个 quick sort 函数，并解释 time complexity", "zh"), ("の", "ja"), ("优衣库の夏天到了，快来看看吧", "zh"),
        ("```python\nprint('hello world, this is a long english text')\n```\n上面的代码打印一行文字。", "zh"),
        ("看这里 https://example.com/the/quick/brown/fox/jumps/over/the/lazy/dog/and/runs", "zh"),
        ("He said 你好 to everybody in the room, and then he left.", "en"),
        ("Глава 5: «The Cat» и другие рассказы о животных", "ru"),
    ],
)  # fmt: skip
def test_little_and_mixed_text(text: str, code: str) -> None:
    assert language(text) == code


@pytest.mark.parametrize(
    ("name", "code", "least"),
    [
        ("emollm/data.json", "zh", 1.0), ("llamafactory/alpaca_zh_demo.json", "zh", 0.98),
        ("llamafactory/alpaca_en_demo.json", "en", 0.99), ("huatuo_o1/sft_en.json", "en", 1.0),
        ("medicalgpt/medical_sft_1K_format.jsonl", "zh", 1.0), ("gaokao_zh/derived_cot_zh.json", "zh", 0.99),
        ("imdb/test.csv", "en", 1.0), ("sst2/dev.tsv", "en", 0.99), ("waimai/waimai_10k.csv", "zh", 0.98),
        ("chnsenticorp/dev.tsv", "zh", 0.99),
    ],
)  # fmt: skip
def test_real_rows(name: str, code: str, least: float) -> None:
    found = Counter(language("\n".join(m.content for m in r.messages)) for r in load(name))
    assert found[code] / found.total() >= least, found


def test_wikipedia_in_three_languages() -> None:
    for file, encoding, code in (
        ("chinese", "big5", "zh"),
        ("english", "utf-8-sig", "en"),
        ("russian", "cp1251", "ru"),
    ):
        path = next(shared("messy/encodings").glob(f"sample-*{file}*"))
        assert language(path.read_bytes().decode(encoding, "replace")) == code
