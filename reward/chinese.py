"""Numbers in Chinese characters: 一百零五, 三点五, 三分之一, 百分之二十, 3.5万."""

import re
from fractions import Fraction
from typing import Literal

LONGEST_NUMERAL = 60
_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_NUMERAL = "零〇一二两兩三四五六七八九十百千万亿点负"
_UNIT = rf"(?:[^\W{_NUMERAL}0-9_]{{0,6}})"
_PLAIN = re.compile(rf"([{_NUMERAL}]+){_UNIT}")
_MIXED = re.compile(rf"(负?)(?:([{_NUMERAL}0-9]+)又)?([{_NUMERAL}0-9]+)分之([{_NUMERAL}0-9.]+){_UNIT}")
_SCALED = re.compile(rf"([-+]?[0-9]+(?:\.[0-9]+)?)\s*([万亿]+){_UNIT}")


def chinese_number(text: str) -> tuple[Fraction, Literal["%", "1"]] | None:
    """The number that a text is, a unit behind it or not, and whether it is per cent (%) or plain (1)."""
    if len(text) > LONGEST_NUMERAL:
        return None
    if match := _SCALED.fullmatch(text):
        scale = 1
        for character in match[2]:
            scale *= _MYRIADS[character]
        return Fraction(match[1]) * scale, "1"
    if match := _MIXED.fullmatch(text):
        whole, bottom, top = (_number(part) if part else Fraction(0) for part in match.groups()[1:])
        if whole is None or bottom is None or top is None or bottom == 0:
            return None
        value = (whole + (top if match[3] == "百" else top / bottom)) * (-1 if match[1] else 1)
        return value, "%" if match[3] == "百" else "1"
    if match := _PLAIN.fullmatch(text):
        value = _number(match[1])
        return None if value is None else (value, "1")
    return None


def _number(text: str) -> Fraction | None:
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        return Fraction(text)
    sign, text = (-1, text[1:]) if text.startswith("负") else (1, text)
    whole, point, decimals = text.partition("点")
    value = _integer(whole)
    if value is None or point and not (decimals and all(c in _DIGITS for c in decimals)):
        return None
    tail = Fraction(int("".join(str(_DIGITS[c]) for c in decimals)), 10 ** len(decimals)) if point else 0
    return Fraction(sign * (value + tail))


def _integer(text: str) -> int | None:
    """一万零五十 and 二〇二四 alike; None where the characters make no number."""
    if not text or any(c in "点负" for c in text):
        return None
    if all(c in _DIGITS for c in text):
        return int("".join(str(_DIGITS[c]) for c in text))
    total = section = digit = 0
    place = 0
    for character in text:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _PLACES:
            place = _PLACES[character]
            section, digit = section + (digit or 1) * place, 0
        else:
            total, section, digit = (total + section + digit or 1) * _MYRIADS[character], 0, 0
    # 一百五 is 150: a last digit without a place takes the next one.
    short = place // 10 if digit and text[-2:-1] in ("百", "千") else 1
    return total + section + digit * short
