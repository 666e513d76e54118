"""Personal data: found where it is, not found where it only looks so, and taken out."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import pii_zh
from tests.real import shared
from tuneloop.safety.pii import KINDS, find, mask

# Long secrets are put together here, so that no scanner takes this file for a leak.
KEY = "aB3" + "dE5fG7hJ9kL2mN4pQ6rS8tU1vW3xY5zA7bC9"
FOUND = [
    ("身份证号11010519491231002X，请核对", [("id_card", "11010519491231002X")]),
    ("110105 19491231 002x", [("id_card", "110105 19491231 002x")]),
    ("身份证：１１０１０５１９４９１２３１００２Ｘ", [("id_card", "１１０１０５１９４９１２３１００２Ｘ")]),
    ("老身份证号码是110105491231002", [("id_card", "110105491231002")]),
    ("我的手机是13800138000。", [("mobile", "13800138000")]),
    ("打+86 138-0013-8000给我", [("mobile", "+86 138-0013-8000")]),
    ("（+86）13800138000", [("mobile", "（+86）13800138000")]),
    ("008613800138000", [("mobile", "008613800138000")]),
    ("Tel13800138000", [("mobile", "13800138000")]),
    ("138\u200b0013\u200b8000", [("mobile", "138\u200b0013\u200b8000")]),
    ("①13800138000②13900139000", [("mobile", "13800138000"), ("mobile", "13900139000")]),
    ("13800138000/13900139000", [("mobile", "13800138000"), ("mobile", "13900139000")]),
    ("联系员工13800138000或同学13900139000", [("mobile", "13800138000"), ("mobile", "13900139000")]),
    ("42,li,13800138000,0755-83456789,10.0.0.1", [("mobile", "13800138000"), ("phone", "0755-83456789"), ("ip", "10.0.0.1")]),
    ("路由表 10.0.0.1", [("ip", "10.0.0.1")]),
    ("phone=212-555-0123", [("phone", "212-555-0123")]),
    ("座机010-62345678转8012", [("phone", "010-62345678转8012")]),
    ("(0755) 8345 6789", [("phone", "(0755) 8345 6789")]),
    ("客服400-820-8820", [("phone", "400-820-8820")]),
    ("Call (212) 555-0123 now", [("phone", "(212) 555-0123")]),
    ("my fax: 212.555.0123 x45", [("phone", "212.555.0123 x45")]),
    ("+44 20 7946 0958", [("phone", "+44 20 7946 0958")]),
    ("What's your phone? 5551234", [("phone", "5551234")]),
    ("电话号码：62345678", [("phone", "62345678")]),
    ("卡号4111 1111 1111 1111，有效期", [("bank_card", "4111 1111 1111 1111")]),
    ("378282246310005", [("bank_card", "378282246310005")]),
    ("3782 822463 10005", [("bank_card", "3782 822463 10005")]),
    ("my credit card 675984103431 is lost", [("bank_card", "675984103431")]),
    ("邮箱zhang.san+a@mail.qq.com.", [("email", "zhang.san+a@mail.qq.com")]),
    ("ｌｉ＠ｅｘａｍｐｌｅ．ｃｏｍ", [("email", "ｌｉ＠ｅｘａｍｐｌｅ．ｃｏｍ")]),
    ("13800138000@163.com", [("email", "13800138000@163.com")]),
    ("müller@beispiel.de, <a@b.io>", [("email", "müller@beispiel.de"), ("email", "a@b.io")]),
    ("地址192.168.1.1:8080", [("ip", "192.168.1.1")]),
    ("http://8.8.8.8/dns", [("ip", "8.8.8.8")]),
    ("ping 2001:db8::ff00:42:8329 ok", [("ip", "2001:db8::ff00:42:8329")]),
    ("IPv6：fe80::1ff:fe23:4567:890a。", [("ip", "fe80::1ff:fe23:4567:890a")]),
    ("::ffff:192.168.0.9", [("ip", "::ffff:192.168.0.9")]),
    ("MAC 3C:22:FB:1a:9b:07", [("mac", "3C:22:FB:1a:9b:07")]),
    ("aa-bb-cc-dd-ee-0f", [("mac", "aa-bb-cc-dd-ee-0f")]),
    ("aa:bb:cc:dd:ee:ff", [("mac", "aa:bb:cc:dd:ee:ff")]),
    (f"export OPENAI_API_KEY=sk-{KEY}", [("api_key", f"sk-{KEY}")]),
    (f"ghp_{KEY} ", [("api_key", f"ghp_{KEY}")]),
    ("AKIA" + "IOSFODNN7EXAMPLE", [("api_key", "AKIAIOSFODNN7EXAMPLE")]),
    (f"Authorization: Bearer {KEY}", [("api_key", KEY)]),
    (f'"api_key": "{KEY}"', [("api_key", KEY)]),
    (f"密码是{KEY}哦", [("api_key", KEY)]),
    (
        "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dBjftJeZ4CVPmB92K27uhbUJU1p1r",
        [("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r")],
    ),
    ("IBAN GB82 WEST 1234 5698 7654 32 please", [("iban", "GB82 WEST 1234 5698 7654 32")]),
    ("to DE89370400440532013000.", [("iban", "DE89370400440532013000")]),
    ("My SSN is 460-89-9847", [("ssn", "460-89-9847")]),
    ("social security number 460899847", [("ssn", "460899847")]),
    ("护照号码：E12345678，有效期至2030年", [("passport", "E12345678")]),
    ("Passport no. 512345678", [("passport", "512345678")]),
]  # fmt: skip

NOT_FOUND = [
    "身份证号110105194912310021校验位不对",
    "110105491231002",  # 15 digits without a word
    "990105194912310022",
    "订单号：13812345678",
    "QQ：1381234567，QQ群13812345678",
    "流水号202310151234567890123",
    "2023101512345678901",
    "时间戳 1697356800 和 1697356800123",
    "20231015083021",
    "ISBN 978-7-111-54742-6 / ISBN 9787111547426",
    "总价13800138000元，约1.38e10",
    "3.14159265358979323846",
    "升级到版本 1.2.3.4，v2.10.0.1，Chrome/120.0.0.0",
    "version 10.0.19045.3570 and build 1.2.3.4",
    "1.2.3.4 范围\n2.3.4.5 Terms",
    "见第1.2.3.4节、图 1.1.1.1",
    "256.1.1.1 1.2.3 1.2.3.4.5 01.02.03.04",
    "12:30:45 - 13:00:00, std::vector<A::B>, a::b::c, ::1",
    "12-34-56-78-90-12",
    "SF1234567890123 YT13812345678901",
    "550e8400-e29b-41d4-a716-446655440000",
    "d41d8cd98f00b204e9800998ecf8427e",
    "icon@2x.png git@github.com:a/b.git @user user@localhost npm i a@1.2.3",
    "2023-10-15 08:30:21.123456",
    "call me on 2023-10-15 or 20231015",
    "4111 1111 1111 1112, 4111111111111112",
    "订单编号4111111111111111",
    "000-12-3456 666-12-3456 912-34-5678 123-00-4567 123-45-0000",
    "GB83WEST12345698765432 GB82WEST1234569876543",
    "护照已经办好了，编号以后再说。",
    "E12345678 512345678",
    "api_key = your-api-key-goes-here-please, password: ****************",
    "sk-learn-contrib-imbalanced-learn",
    "token: the-quick-brown-fox-jumps",
    "-----BEGIN PUBLIC KEY-----",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
    "002594 600519 000858 上证3021.55点",
    "共1392730000人，邮编100080，车牌京A12345",
    "{'temperature': 0.7, 'seed': 1234567890}",
]


@pytest.mark.parametrize(("text", "found"), FOUND)
def test_finds(text: str, found: list[tuple[str, str]]) -> None:
    spans = find(text)
    assert [(s.kind, s.text) for s in spans] == found
    assert all(text[s.start : s.end] == s.text for s in spans)


@pytest.mark.parametrize("text", NOT_FOUND)
def test_leaves_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize("ended", [True, False])
def test_a_private_key_goes_as_a_whole(ended: bool) -> None:
    lines = "\n".join(["MIIEpAIBAAKCAQEA" + "x9Ky" * 12] * 3)
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{lines}" + ("\nAbc=\n-----END RSA PRIVATE KEY-----" if ended else "")
    text = f"Here it is:\n{key}\nKeep it safe and tell nobody."
    assert [(s.kind, s.text) for s in find(text)] == [("api_key", key)]


def test_only_the_kinds_asked_for() -> None:
    text = "电话+86 13800138000，邮箱 li@example.com，IP 10.0.0.1"
    assert [s.kind for s in find(text)] == ["mobile", "email", "ip"]
    assert [s.kind for s in find(text, ["email", "ip"])] == ["email", "ip"]
    assert find(text, ["phone"]) == []  # a mobile number does not become another kind
    with pytest.raises(ValueError, match="e-mail"):
        find(text, ["e-mail"])


def test_the_mask_leaves_the_rest_as_it_was() -> None:
    text = "张三，１３８００１３８０００，zs@example.com…\n身份证11010519491231002X。"
    assert mask(text, find(text)) == "张三，[MOBILE]，[EMAIL]…\n身份证[ID_CARD]。"
    assert mask(text, reversed(find(text))) == mask(text, find(text))
    assert mask(text, []) == text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["1", "8", "3800138000", "４", "-", " ", ".", ":", "+86", "@", "a.cn", "sk-", "电话", "卡号", "GB82",
                         "passport", "::", "\u200b", "e\u0301", "(", ")", "key=", "-----BEGIN ", "192.168.1", "X", "\n"]),
        max_size=40,
    )
)  # fmt: skip
def test_spans_are_in_order_and_apart(pieces: list[str]) -> None:
    text = "".join(pieces)
    spans = find(text)
    assert all(s.kind in KINDS and text[s.start : s.end] == s.text and s.start < s.end for s in spans)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert mask(text, spans).count("[") == len(spans)


Gold = set[tuple[int, int, str]]


def measured(rows: Iterable[tuple[str, Gold]], kinds: Iterable[str]) -> dict[str, tuple[float, float, int]]:
    """Kind -> (recall, precision, gold spans), by exact places; "all" is over all kinds."""
    gold_n: Counter[str] = Counter()
    found_n: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text, gold in rows:
        found = {(s.start, s.end, s.kind) for s in find(text)}
        gold_n.update(kind for _, _, kind in gold)
        found_n.update(kind for _, _, kind in found)
        right.update(kind for _, _, kind in gold & found)
    for counts in (gold_n, found_n, right):
        counts["all"] = counts.total()
    return {k: (right[k] / max(gold_n[k], 1), right[k] / max(found_n[k], 1), gold_n[k]) for k in (*kinds, "all")}


PRESIDIO = {
    "CREDIT_CARD": "bank_card", "EMAIL_ADDRESS": "email", "IBAN_CODE": "iban", "IP_ADDRESS": "ip",
    "PHONE_NUMBER": "phone", "US_SSN": "ssn",
}  # fmt: skip


def test_recall_and_precision_on_presidio() -> None:
    rows = []
    for row in json.loads(shared("pii_presidio/synth_dataset_v2.json").read_text(encoding="utf-8")):
        spans = [s for s in row["spans"] if s["entity_type"] in PRESIDIO]
        rows.append(
            (row["full_text"], {(s["start_position"], s["end_position"], PRESIDIO[s["entity_type"]]) for s in spans})
        )
    result = measured(rows, PRESIDIO.values())
    assert result["all"][2] == 51
    for kind, (recall, precision, _) in result.items():
        assert recall >= 0.95, (kind, result)
        assert precision >= 0.9, (kind, result)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_recall_and_precision_on_chinese_sentences(seed: int) -> None:
    rows = pii_zh.sentences(seed)
    result = measured(rows, pii_zh.KINDS)
    assert all(n >= 50 for _, _, n in result.values())
    for kind, (recall, precision, _) in result.items():
        assert recall >= 0.95, (kind, result)
        assert precision >= 0.9, (kind, result)


def test_harmless_counselling_turns_hold_nothing() -> None:
    rows = json.loads(shared("emollm/data.json").read_text(encoding="utf-8"))
    turns = [turn["input"] + "\n" + turn["output"] for row in rows for turn in row["conversation"]]
    assert len(turns) == 1582
    assert sum(bool(find(turn)) for turn in turns) <= 1  # 0 when this was written


def test_film_reviews_hold_nothing_but_two_addresses() -> None:
    reviews = []
    for name in ("imdb/test.csv", "imdb/train.csv"):
        with shared(name).open(encoding="utf-8", newline="") as file:
            reviews += [row["review"] for row in csv.DictReader(file)]
    assert len(reviews) == 1100
    spans = [span for review in reviews for span in find(review)]
    assert sum(span.kind != "email" for span in spans) <= 2  # 0 when this was written
    assert sum(span.kind == "email" for span in spans) == 2  # two reviewers signed with their address


ADVERSARIAL = [
    "1", "1 ", "+1 ", "(1", "a@", "@a.", "a@a.", "1.", "v1.2.3.4 ", ":", "aa:bb:", "::1 ", "eyJaaaaaaaa1.", "sk-aB3", "key=aB3",
    "Bearer ", "-----BEGIN PRIVATE KEY-----", "GB82 ", "passport 1", "card 4111 1111 ", "e\u0301", "１", "\u200b1", "电话1",
]  # fmt: skip


@pytest.mark.parametrize("piece", ADVERSARIAL)
@pytest.mark.timeout(60)
def test_a_long_text_comes_to_an_end(piece: str) -> None:
    """A quadratic search would take minutes; 1 MB of any of these takes 0.1 to 1 s on an idle core."""
    long = (piece * 250_000)[:250_000]
    assert all(0 <= span.start < span.end <= len(long) for span in find(long))


@pytest.mark.timeout(60)
def test_a_megabyte_of_noise_comes_to_an_end() -> None:
    draw = random.Random(7)
    noise = "".join(draw.choices("0123456789 -.:+@abcdefABC", k=1_000_000))
    assert all(0 <= span.start < span.end <= len(noise) for span in find(noise))
