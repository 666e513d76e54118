"""Bad answers are found, good ones are not."""

from __future__ import annotations

import pytest

from tests.real import load
from tuneloop.data.cleaning.clean import REPEATS
from tuneloop.data.cleaning.quality import loops, lost, noise, refuses, repetition


def test_the_banana() -> None:
    answers = [m.content for r in load("openai_messages/toy_chat_fine_tuning.jsonl") for m in r.messages]
    longest = max(answers, key=len)
    assert len(longest) > 20_000
    assert repetition(longest) == 1.0
    assert all(repetition(answer) == 0 for answer in answers if answer is not longest)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("我不知道。" * 40, 1.0, 1.0),
        ("Sure, here is the list.\n" + "item one is good and item two is bad too\n" * 20, 0.9, 1.0),
        ("这是第一段，讲的是为什么要学习。" * 3, 0, 0),  # three times is a refrain
        ("哈哈哈哈哈哈哈哈哈哈", 0, 0),
        ("好" * 200, 1.0, 1.0),
        ("-" * 200, 0, 0),
        ("| --- | --- |\n" * 10, 0, 0),
        ("1. 第一章：开始\n2. 第二章：相遇\n3. 第三章：离别\n4. 第四章：重逢\n5. 第五章：结局\n6. 尾声\n" * 2, 0, 0.3),
        ("", 0, 0),
    ],
)
def test_repetition(text: str, least: float, most: float) -> None:
    assert least <= repetition(text) <= most


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("我是小石，用 tuneloop 自带的助手 tuneloop tuneloop tuneloop …", True),
        ("叫小助手，小助手，小助手助手助手助手", True),
        ("小石小石小石小石", True),
        ("叫小石，小石就是小石，小石就是小石。", True),
        ("先走一小步：先走一小步：先睡半小时。", True),
        ("[活动]\n* 进行中的促销信息\n【进行中的促销信息】\n暂时没有。", False),
        ("我是小石，tuneloop 自带的助手。我是小石，tuneloop 自带的助手。", True),
        ("I am Pebble. I am Pebble. I am Pebble.", True),
        ("Pebble Pebble Pebble", True),
        ("the the the the cat", True),
        ("好" * 12, True),
        ("First it lists a, b and c. " + "Then it goes to the next of the many. " * 2, True),
        ("Then it slowly goes on to the very next one of the many. " * 2, True),
        ("哈哈哈哈哈，太好了", False),
        ("慢慢来，一步一步走，试试看，好好好。", False),
        ("我叫小石，大小的小，石头的石，很好记。", False),
        ("It is very, very, very good. No, no, no!", False),
        ("1 1 1 1 1 1, 0.33, 1,000,000", False),
        ("| --- | --- | --- |\n| a | b | c |", False),
        ("```html\n<td></td><td></td><td></td><td></td>\n```\nThree cells.", False),
        ("鱼要蒸八分钟。小鱼要蒸六分钟。", False),
        ("", False),
    ],
)  # fmt: skip
def test_an_answer_that_loops(answer: str, found: bool) -> None:
    assert loops(answer) == found


def test_answers_that_people_wrote_seldom_loop() -> None:
    names = ("emollm/data.json", "llamafactory/alpaca_zh_demo.json", "llamafactory/alpaca_en_demo.json")
    said = [m.content for name in names for r in load(name) for m in r.messages if m.role == "assistant"]
    assert len(said) > 2000
    assert sum(map(loops, said)) <= len(said) / 1000


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I can't do that.", "As an AI language model,I cannot determine it.",
        "I'm sorry, but I can’t help with that.", "I apologize, but I am unable to assist.", "Sorry, I cannot provide this.",
        "I cannot assist with that request.", "Unfortunately, I don't have access to it.",
        "作为一个AI语言模型，我无法回答这个问题。", "作为人工智能，我没有实体形式，所以无法锻炼。", "很抱歉，我无法提供帮助。", "对不起，我不能满足您的请求。",
        "我无法提供医疗建议。", "抱歉，无法完成。", "  \n\"作为一款人工智能助手，我不能这样做。",
    ],
)  # fmt: skip
def test_refusals(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. You can do it!", "I can't believe it, congratulations!", "Sorry for the delay! Here it is.",
        "As an artist, I paint.", "The model says: I cannot help.", "对不起，让你久等了！", "抱歉听到这个消息，你还好吗？", "我不能喝酒，你呢？",
        "作为一个心理咨询师，我能理解你的感受。", "我们无法回到过去。", "对不起，但是玩具作为无生命的物体，无法在水中呼吸。",
        "一氧化碳是一种无色无味的气体。作为人工智能，我无法闻到它。",
    ],
)  # fmt: skip
def test_no_refusals(answer: str) -> None:
    assert not refuses(answer)


def test_most_tool_answers_that_say_sorry_refuse() -> None:
    """Counted by eye: 19 and 15 answers that turn a request down."""
    for name, count in (("glaive_toolcall_zh_demo", 19), ("glaive_toolcall_en_demo", 15)):
        answers = [m.content for r in load(f"llamafactory/{name}.json") for m in r.messages if m.role == "assistant"]
        assert sum(map(refuses, answers)) == count


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("锟斤拷锟斤拷你好", "wrong encoding"), ("烫烫烫烫", "wrong encoding"), ("屯屯屯屯", "wrong encoding"),
        ("锛氬浘鐗?鐨勬", "wrong encoding"), ("你\ufffd\ufffd", "lost characters"), ("\ue001\ue002", "lost characters"),
        ("一个\ufffd", ""), ("烫伤了", ""), ("瑜伽和浣熊", ""), ("Ürün, café, Привет, 日本語", ""), ("plain", ""), ("😊", ""),
    ],
)  # fmt: skip
def test_lost_characters(text: str, fault: str) -> None:
    assert lost(text) == fault


@pytest.mark.parametrize(
    "text", ["asdfghjkl", "qwertyuiop asdf", "sdfjkhsdkjfh ksjdhfkjsd", "zxcv zxcv zxcv", "dfgdfgdfg gfdhjkh"]
)
def test_keyboard_noise(text: str) -> None:
    assert noise(text)


@pytest.mark.parametrize(
    "text",
    [
        "qwerty is a keyboard layout", "rhythms, strengths and twelfths", "HTTPS, XMLHttpRequest, TCP", "Angstschweiß",
        "你好 asdf 是什么意思", "3f2504e0-4f89-41d3", "property", "power", "", "Hmmm, brr, pssst!",
    ],
)  # fmt: skip
def test_no_keyboard_noise(text: str) -> None:
    assert not noise(text)


GOOD = [
    "emollm/data.json", "emollm/aiwei.json", "emollm/tiangou.json", "llamafactory/alpaca_zh_demo.json",
    "llamafactory/alpaca_en_demo.json", "huatuo_o1/sft_en.json", "medicalgpt/medical_sft_1K_format.jsonl",
    "emollm/ruozhiba_raw.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_rows_are_not_marked(name: str) -> None:
    """None falsely; refusals in the Alpaca sets are real ones (tests/data/cleaning/test_clean.py counts them)."""
    for record in load(name):
        for message in record.messages:
            assert lost(message.content) == ""
            if message.role == "assistant":
                assert repetition(message.content) < REPEATS
                assert not noise(message.content)
                assert "alpaca" in name or not refuses(message.content)
