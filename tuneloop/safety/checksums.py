"""Check digits: what tells a number that was issued from one that only looks so."""

from __future__ import annotations

from datetime import date

# First two digits of a Chinese resident ID: provinces, Taiwan, Hong Kong, Macao. 9 begins a foreigner's (2023 form).
_PROVINCES = "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83"
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_ID_WEIGHTS = tuple(pow(2, 17 - i, 11) for i in range(17))

# Length by country, from the IBAN registry (ISO 13616).
_IBAN = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def luhn(digits: str) -> bool:
    """The check digit of payment cards (ISO/IEC 7812-1).

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    return (sum(map(int, digits[::-2])) + sum(_DOUBLED[int(d)] for d in digits[-2::-2])) % 10 == 0


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def resident_id(number: str) -> bool:
    """A Chinese resident ID: 18 characters with region, date of birth and check digit (GB 11643, ISO 7064 MOD 11-2),
    or the 15 digits of before 1999, which have no check digit.

    >>> resident_id("11010519491231002X"), resident_id("110105194912310021"), resident_id("110105491231002")
    (True, False, True)
    """
    if number[:2] not in _PROVINCES and number[:1] != "9":
        return False
    if len(number) == 15:
        return number.isdecimal() and _is_date(int("19" + number[6:8]), int(number[8:10]), int(number[10:12]))
    if len(number) != 18 or not "1900" <= number[6:10] < "2050":
        return False
    if not _is_date(int(number[6:10]), int(number[10:12]), int(number[12:14])):
        return False
    return id_check(number[:17]) == number[17].upper()


def id_check(first17: str) -> str:
    """The 18th character of a resident ID.

    >>> id_check("11010519491231002")
    'X'
    """
    return "10X98765432"[sum(w * int(d) for w, d in zip(_ID_WEIGHTS, first17, strict=True)) % 11]


def iban_length(country: str) -> int:
    """Characters of an IBAN of this country, 0 if it has none."""
    return _IBAN.get(country, 0)


def iban(number: str) -> bool:
    """An IBAN without blanks: known country, its length, ISO 7064 MOD 97-10.

    >>> iban("GB82WEST12345698765432"), iban("GB83WEST12345698765432")
    (True, False)
    """
    if len(number) != iban_length(number[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1
