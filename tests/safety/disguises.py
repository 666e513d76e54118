"""Ways in which a word is hidden from a filter; each takes a word and a generator of chance."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence

Disguise = Callable[[str, random.Random], str]
HOMOGLYPHS = str.maketrans("aceiopsxyhkmtABCEHIKMOPTX", "асеіорѕхуһкмтАВСЕНІКМОРТХ")  # Cyrillic
GREEK = str.maketrans("aeiknopuvxyABEHIKMNOPTXYZ", "αεικηορυνχγΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
LEET = str.maketrans("aeiostAEIOST", "431057431057")
SIGNED = str.maketrans("aisAIS", "@!$@!$")
CHINESE = str.maketrans("0123456789", "〇一二三四五六七八九")
SIGNS = "*-_/.,，。、|#~^+=&%@$•·—◆★☆●■♥→"
CIRCLED = str.maketrans("0123456789", "⓪①②③④⑤⑥⑦⑧⑨")


def full_width(word: str, chance: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in word)


def zero_width(word: str, chance: random.Random) -> str:
    return "".join(c + chance.choice("\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e") for c in word[:-1]) + word[-1]


def traditional(name: str) -> Disguise:
    from opencc import OpenCC

    converter = OpenCC(name)
    return lambda word, chance: converter.convert(word)


def between(signs: Sequence[str]) -> Disguise:
    return lambda word, chance: chance.choice(signs).join(word)


def once(signs: str) -> Disguise:
    def hidden(word: str, chance: random.Random) -> str:
        at = chance.randrange(1, len(word))
        return word[:at] + chance.choice(signs) + word[at:]

    return hidden


def translated(table: dict[int, int]) -> Disguise:
    return lambda word, chance: word.translate(table)


def mathematical(word: str, chance: random.Random) -> str:
    return "".join(
        chr(0x1D5D4 + ord(c) - 65) if "A" <= c <= "Z" else chr(0x1D5EE + ord(c) - 97) if "a" <= c <= "z" else c
        for c in word
    )


def marked(word: str, chance: random.Random) -> str:
    return "".join(c + chance.choice("\u0336\u0301\u0308\u0323") for c in word)


def accented(word: str, chance: random.Random) -> str:
    return unicodedata.normalize("NFC", "".join(c + "\u0301" if c in "aeiouyAEIOUY" else c for c in word))


def mixed(word: str, chance: random.Random) -> str:
    return full_width("*".join(zero_width(word, chance).translate(HOMOGLYPHS)), chance)


def all_disguises() -> dict[str, Disguise]:
    """Name -> disguise. Those of the issue, and a few more."""
    return {
        "none": lambda word, chance: word,
        "capitals": lambda word, chance: word.upper(),
        "full-width": full_width,
        "zero-width": zero_width,
        "traditional": traditional("s2t"),
        "traditional, Taiwan": traditional("s2tw"),
        "traditional, Hong Kong": traditional("s2hk"),
        "simplified": traditional("t2s"),
        "as Taiwan says it": traditional("s2twp"),
        "Japanese forms": lambda word, chance: traditional("t2jp")(traditional("s2t")(word, chance), chance),
        "homoglyphs, Cyrillic": translated(HOMOGLYPHS),
        "homoglyphs, Greek": translated(GREEK),
        "mathematical letters": mathematical,
        "blanks": between(" "),
        "wide blanks": between("\u3000\u00a0"),
        "stars": between("*"),
        "dots": between(".·•"),
        "hyphens": between("-_~—"),
        "signs": between("/|+#^=&%@$"),
        "commas": between(",，、"),
        "emoji": between("😀🔥❤"),
        "emoji of several characters": between(["👨\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "🇨🇳", "1\ufe0f\u20e3"]),
        "signs with letters": between("™℃№©®㊙"),
        "brackets": between("()[]{}<>《》「」【】“”'"),
        "ends of clauses": between("。！？；：…!?;:"),
        "any signs": lambda word, chance: (
            "".join(char + "".join(chance.choices(SIGNS, k=chance.randint(0, 2))) for char in word[:-1]) + word[-1]
        ),
        "ends of lines": between("\n"),
        "marks of HTML": between(["<b>", "<br />", "</i>", "&nbsp;"]),
        "one comma": once(",，、"),
        "ellipses": between(["...", "……"]),
        "several": lambda word, chance: " * ".join(word),
        "one blank": once(" "),
        "one star": once("*"),
        "one dot": once(".·"),
        "one sign": once("*-_/|#~^"),
        "letters repeated": lambda word, chance: "".join(
            char * chance.choice([1, 2, 3, 5]) if char.isascii() and char.isalpha() else char for char in word
        ),
        "digits for letters": translated(LEET),
        "signs for letters": translated(SIGNED),
        "digits between": between("0123456789"),
        "Chinese digits": translated(CHINESE),
        "circled digits": translated(CIRCLED),
        "marks": marked,
        "accents": accented,
        "mixed": mixed,
    }
