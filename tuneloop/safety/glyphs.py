"""Characters that look like others: letters of other scripts, digits that stand for letters, Chinese characters.

Our own tables, for what Unicode's compatibility forms and names do not say. Nothing here knows a word.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

# Latin letter -> what looks like it in Greek, Cyrillic, Armenian, Cherokee, Lisu, Coptic and among the symbols.
_LATIN = {
    "a": "αаӑӓӕ∂ⲁᎪꓮᗅАΑ", "b": "вьъβƄᏴᏏꓐВΒᗷЬ", "c": "сϲⅽᴄᏟꓚСϹⲥ", "d": "ԁժᏧᎠꓓⅾ", "e": "еєҽεэℯⲉ℮ЕΕᎬꓰЄ",
    "f": "ғϝꓝᖴ", "g": "ɡցᏀꓖԌԍ", "h": "һհнⲏНΗᎻꓧҺн", "i": "іιӏїɩⅰɪΙІЇӀᎥⲓ", "j": "јϳЈᎫꓙ", "k": "κкӄқҝкΚКᏦꓗⲕќ",
    "l": "ⅼｌլᏞꓡⳑ", "m": "мⅿΜМᎷꓟⲙ", "n": "пηпոռΝꓠⲛи", "o": "оοσօөѳОΟՕꓳⲟ०০੦૦๐໐၀", "p": "рρϸРΡᏢꓑⲣ",
    "q": "ԛգզႳᑫ", "r": "гᴦꮁᏒꓣᎡяг", "s": "ѕՏꓢᏚЅꜱ", "t": "тτΤТᎢꓔⲧт", "u": "υսμцՍꓴ∪", "v": "νѵᏙꓦⱱ∨",
    "w": "ѡωшщԝᎳꓪա", "x": "хχⅹΧХꓫⲭ", "y": "уүγуүΥҮУꓬⲩў", "z": "ᏃꓜΖⲍ",
}  # fmt: skip
# Turned letters: upside-down writing.
_TURNED = dict(zip("ɐɔǝɟƃɥıɾʞʅɯɹʇʌʍʎ", "acefghijklmrtvwy", strict=True))
# Chinese character -> what is drawn (nearly) as it is: radicals, kana, strokes.
_CHINESE = {
    "口": "囗ロ", "日": "曰", "一": "ー", "二": "ニ", "八": "ハ", "力": "カ", "工": "エ", "卜": "ト",
    "夕": "タ", "己": "已巳",
    "三": "ミ", "才": "オ", "子": "孑", "入": "亼", "门": "冂", "刀": "刂", "人": "亻", "水": "氵",
    "心": "忄", "手": "扌", "犬": "犭", "火": "灬", "女": "⼥", "毛": "乇", "母": "毋",
}  # fmt: skip
# Simplified character -> variants and Japanese forms that OpenCC's tables leave as they are.
_VARIANTS = {
    "么": "幺麽", "复": "覆", "只": "祇", "斗": "鬬", "借": "藉", "并": "竝", "强": "彊", "麻": "痲",
    "了": "瞭", "炮": "砲礮𪿫",
    "奶": "嬭", "淫": "婬", "裸": "躶", "杂": "襍", "阴": "隂陰", "体": "軆", "胸": "胷", "吻": "脗",
    "枪": "鎗", "剑": "劒剣",
    "气": "気", "发": "髪発", "广": "広", "国": "囯", "图": "図", "学": "斈", "尽": "侭", "昵": "暱",
    "线": "缐", "托": "讬",
    "咨": "谘", "径": "迳逕", "巨": "钜", "钟": "锺", "颚": "颚腭", "余": "馀", "曲": "麹麴", "面": "麺麪",
    "卖": "売", "恶": "悪",
    "药": "薬", "处": "処", "战": "戦", "毒": "毐", "弹": "弾", "乐": "楽", "铁": "鉄", "关": "関", "黑": "黒",
    "实": "実", "值": "値", "户": "戸", "猎": "猟", "俱": "倶", "系": "繋",
}  # fmt: skip
_NUMERALS = dict(zip("零壹贰叁肆伍陆柒捌玖", "〇一二三四五六七八九", strict=True)) | {
    "两": "二",
    "弍": "二",
    "弌": "一",
}
ALIKE = (
    {
        look: letter
        for letter, looks in [*_LATIN.items(), *_CHINESE.items(), *_VARIANTS.items()]
        for look in looks
        if not look.isascii() and look != letter
    }
    | _TURNED
    | _NUMERALS
)
"""Character -> what it passes for."""
CHINESE_DIGITS = dict(zip("〇一二三四五六七八九", "0123456789", strict=True))
LETTER_OF_DIGIT = {"0": "o", "1": "i", "2": "z", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "9": "g"}
LETTER_OF_SIGN = {"@": "a", "$": "s", "€": "e", "£": "i", "!": "i", "¡": "i", "|": "i", "¦": "i", "+": "t", "†": "t",
                  "¢": "c", "¥": "y", "§": "s", "(": "c", "<": "c"}  # fmt: skip
LETTER_OF_LETTER = {"l": "i", "v": "u"}
_NAMED = ("LATIN ", "NEGATIVE ", "REGIONAL INDICATOR SYMBOL LETTER ", "SQUARED LATIN ", "CROSSED NEGATIVE ")


@cache
def _simplifiers() -> tuple[Any, ...]:
    from opencc import OpenCC

    return tuple(OpenCC(name) for name in ("jp2t", "tw2s", "hk2s", "t2s"))


def simplified(char: str) -> str:
    """A Chinese character in its simplified form, by OpenCC's tables for Japan, Taiwan, Hong Kong and all others.

    >>> simplified("發") + simplified("裡") + simplified("売") + simplified("好")
    '发里卖好'
    """
    for converter in _simplifiers():
        new = converter.convert(char)
        char = new if len(new) == 1 else char
    return char


def latin(char: str) -> str:
    """The plain letter of a Latin one with strokes, hooks or in a frame, by its name in Unicode; "" for any other.

    >>> [latin(c) for c in "øɓ🅵🇨ɢж"]
    ['o', 'b', 'f', 'c', 'g', '']
    """
    name = unicodedata.name(char, "")
    if not name.startswith(_NAMED):
        return ""
    words = name.split(" WITH ")[0].split()
    return words[-1].lower() if len(words[-1]) == 1 and words[-1].isalpha() else ""


@cache
def _taiwan() -> Any:
    from opencc import OpenCC

    return OpenCC("s2twp")


def in_taiwan(word: str) -> str:
    """A word as Taiwan says it, which is not always its characters' traditional forms.

    >>> in_taiwan("仿真枪")
    '模擬槍'
    """
    return str(_taiwan().convert(word))
