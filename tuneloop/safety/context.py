"""Words beside a number that say what it is. Looked for in a few characters before it, never in the whole text."""

from __future__ import annotations

import re
from typing import Final

# What ends a thought, and another number: a word before it says nothing about the number after it.
_STOP = re.compile(r"[\d。！!；;]|\n\n")


def _words(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE)


PHONE: Final = _words(
    r"(?<![a-z])(?:tele)?phone|(?<![a-z])(?:tel|mobile|mob|cell|fax|dial|hotline|whatsapp|sms|desk)(?![a-z])"
    r"|\b(?:call|calls|ring|reach|text|contact|answer|answering|messages?)\b(?! it)"
    r"|电话|手机|座机|传真|热线|致电|拨打|来电|联系方式|联系我",
)
CARD: Final = _words(
    r"\bcards?\b|\bcc\b|visa|master ?card|maestro|amex|diners|unionpay|银行卡|信用卡|储蓄卡|借记卡|卡号|账号|账户"
)
RESIDENT_ID: Final = _words(r"身份证|证件号|身份号码|\bID (?:card|number|no)|resident id|citizen id")
SSN: Final = _words(r"\bssn\b|social security|社会安全号")
PASSPORT: Final = re.compile(r"passport|护照|通行证", re.IGNORECASE)
MAC: Final = _words(r"\bmac\b|物理地址|硬件地址")

# A number that such a word stands right before is counted or listed, and nobody's.
_NUMBERED = re.compile(
    r"(?:(?:订单|工单|运单|流水|序列)(?:编号|号码|号)?|(?:快递|物流|交易|批次|商品|产品|货|编|单|学|工|群|书)(?:编号|单号|号|码)|qq号?|(?:qq|微信)群)"
    r"\s*(?:no\.?|id)?\s*(?:是|为)?\s*[:：=#]?\s*$"
    r"|(?:isbn|order|invoice|tracking|serial|ticket|batch|sku|ean|upc|doi|timestamp|时间戳|条形?码|版本号?)"
    r"\s*(?:number|no\.?|num|id|code)?\s*(?:is)?\s*[:：=#]?\s*[a-z]{0,4}-?$",
    re.IGNORECASE,
)
VERSION: Final = re.compile(
    r"(?:\bversions?|\bver\.?|\brelease|\bbuild|\brev(?:ision)?|版本号?|固件|升级[到至]|更新[到至])[^\d\n。，,;；]{0,10}$"
    r"|(?:第|章节?|节|[如见附][图表]|(?<![\u4e00-\u9fff])[图表]|§|\bsections?|\bchapter|\bclause|\bfigure|\bfig\.|\btable)\s*$"
    r"|[A-Za-z][/\-_]$",
    re.IGNORECASE,
)


def before(text: str, start: int, words: re.Pattern[str], reach: int = 30) -> bool:
    """Whether `words` stand in the `reach` characters before text[start], with no other number in between.

    >>> before("我的身份证号码：110105491231002", 8, RESIDENT_ID)
    True
    """
    head = text[max(0, start - reach) : start]
    last = head.rstrip(" -(+")[-1:]
    if not last or last.isdecimal():
        return False  # most numbers in a list end here
    return words.search(_STOP.split(head)[-1]) is not None


def numbered(text: str, start: int) -> bool:
    """Whether the number at `start` is an order's, a parcel's, a version's …, or a QQ number.

    >>> numbered("订单号：13812345678", 4), numbered("我的号码：13812345678", 5)
    (True, False)
    """
    return before(text, start, _NUMBERED, 24)
