"""An answer without its dress: characters in ASCII, one way to write each thing, no name before it and no unit behind it."""

import re
import unicodedata
from functools import lru_cache

from reward.units import without_dressed_units

LONGEST_NUMBER = 1000

_LEADING = re.compile(
    r"^(?:\([a-z](?:,\s*[a-z])+\)\s*=|[A-Za-z]\w?(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))|=|\\?approx(?:imately)?|≈|about)\s*(?=[^=]+$)"
)
_FRACTIONS = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8"}
_DEGREES = r"(?:\^\{?\s*\\circ\s*\}?|°|\\degree(?![a-z]))"
_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|cdot|times|infty|cup|circ|begin|end)(?![a-z]))")
_ARITHMETIC = re.compile(r"(?:[0-9.,()%\s]|\\[$%])+(?:(?:[-+*/×÷·]|\\(?:cdot|times|div))(?:[0-9.,()%\s]|\\[$%])+)+")


@lru_cache(maxsize=16384)
def normalise(text: str, named: bool = False) -> str:
    """The answer without dress: characters in ASCII; no math marks, currency, separators or units.

    Without a leading `x =` too, unless `named`.
    """
    text = plain_characters(text).strip()
    if len(text) > 20 * LONGEST_NUMBER:
        return ""
    text = _DOUBLED.sub(r"\\", text)
    text = re.sub(r"(?<![0-9.,])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9,/]| [0-9])", lambda match: match[1].replace(" ", ""), text)
    text = re.sub(r",\\!\s*(?=[0-9]{3})|\{,\}|(?<=[0-9])\\,(?=[0-9]{3})", "", text)
    text = re.sub(r"\\\$|US\$|[$€£¥₹]|^\s*RMB\b|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\displaystyle", "", text)
    text = (
        _radians(text) if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text) else re.sub(rf"{_DEGREES}\s*[CF]\b|℃|℉", "", text)
    )
    text = re.sub(rf"(?<!\\)\\[!,;: ]|\\q?quad|{_DEGREES}|\\[()]|(?<!\\)\\[\[\]]|~", " ", text)
    text = re.sub(r"\*\*(?=\W*$)|^\W*\*\*", "", text).strip().rstrip(".。").strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.replace("\\%", "%"))
    text = re.sub(r"\\[dt]binom", r"\\binom", re.sub(r"\\log_\s*([0-9a-z])", r"\\log_{\1}", text))
    text = re.sub(r"\\frac\s*\\pi\s*(?:\{([0-9]+)\}|([0-9]))", r"\\frac{\\pi}{\1\2}", text)
    text = re.sub(r"√\s*([0-9a-z]+)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{", re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-z])", r"\1{\2}", text))
    text = re.sub(r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}", text)
    text = (
        (text if named else _LEADING.sub("", _last_side(text)))
        .replace(r"\varnothing", r"\emptyset")
        .replace("infinity", r"\infty")
    )
    text = without_dressed_units(text)
    text = re.sub(r"(?<![0-9,.(\[{])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])", lambda match: match[1].replace(",", ""), text)
    return text.strip()


def _radians(text: str) -> str:
    """Angles in degrees as radians, which functions of angles take."""
    return re.sub(rf"([0-9.]+)\s*{_DEGREES}", r"{\\frac{\1\\pi}{180}}", text)


def _last_side(text: str) -> str:
    """What a chain `a = b = c` or a sum `5 + 3 = 8` ends in, without a value that is near it behind `\\approx`."""
    parts = re.split(r"\\approx(?:eq)?(?![a-z])|≈", text, maxsplit=1)
    if len(parts) > 1:
        text = parts[0] if re.search("[0-9]", parts[0]) else parts[1]
    sides = re.split(r"(?<![<>!:=])=(?!=)", text)
    worked = len(sides) == 2 and _ARITHMETIC.fullmatch(sides[0])
    return sides[-1] if (len(sides) > 2 or worked) and not re.search(r"[,;]|\b(?:or|and)\b", text) else text


def plain_characters(text: str) -> str:
    """Decimal digits of any script, full-width ASCII and the real minus sign, in ASCII. Superscripts stay: 4² is not 42."""
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character < "\x80":
        return character
    if character in "−–":
        return "-"
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if character in "\u00a0\u202f\u2009":
        return " "
    if "！" <= character <= "～":
        return chr(ord(character) - 0xFEE0)
    return _FRACTIONS.get(character, character)
