"""An answer without its dress: characters in ASCII, one way to write each thing, no name before it and no unit behind it."""

import re
import unicodedata
from functools import lru_cache

from reward.units import TEXT, without_dressed_units

LONGEST_NUMBER = 1000

_GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|varphi|phi|omega|ell)(?![a-z])"
_WHERE = r"\((?:[^()=,]|\([^()=]*\))*\)"
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?"
NAME = (
    rf"(?:\((?:[a-zA-Z],\s*)+[a-zA-Z]\)|\([a-zA-Z]\s*(?:[-+]|\\circ|\\cdot)\s*[a-zA-Z]\){_WHERE}|m?\s*\\angle\s*[A-Z]{{1,3}}"
    rf"|{TEXT}\{{[A-Za-z ]+\}}|\\(?:vec|overline|hat|bar)\s*\{{[A-Za-z]{{1,3}}\}}"
    rf"|[fghpqrFGHPQRST]{_INDEX}'?(?:\^\{{-1\}})?{_WHERE}|(?:{_GREEK}|[A-Za-z]){_INDEX}|[A-Za-z]\w?(?:\([a-z]\))?)"
)
"""What an answer may be called: x, x_1, f(2), f^{-1}(x), (a,b), \\angle ABC, \\text{Area}."""
_LEADING = re.compile(rf"^(?:{NAME}\s*(?:=|\\in(?![a-z]))|=|\\?approx(?:imately)?|≈|about)\s*(?=[^=]+$)")
_SIGNS = {
    r"(?:<(?!=)|\\lt(?![a-z]))": "<",
    r"(?:<=|≤|\\le(?:q|qslant)?(?![a-z]))": "<=",
    r"(?:>(?!=)|\\gt(?![a-z]))": ">",
    r"(?:>=|≥|\\ge(?:q|qslant)?(?![a-z]))": ">=",
    r"(?:!=|≠|\\neq?(?![a-z]))": "!=",
}
_SIGN = re.compile(f"({'|'.join(_SIGNS)})")
_UNKNOWN = re.compile(rf"\s*(?:(?![ei])[A-Za-z]|{_GREEK})(?:\([a-z]\))?\s*")
_FRACTIONS = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8"}
_DEGREES = r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|°|\\degree(?![a-z])|(?<=[0-9])\^\{?o\}?(?![a-z]))"
_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|cdot|times|infty|cup|circ|begin|end)(?![a-z]))")
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp"
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
    text = _typed(text)
    text = re.sub(r",\\!\s*(?=[0-9]{3})|\{,\}|(?<=[0-9])\\,(?=[0-9]{3})", "", text)
    text = re.sub(r"\\\$|US\$|[$€£¥₹¢]|^\s*RMB\b|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\displaystyle", "", text)
    text = (
        _radians(text) if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text) else re.sub(rf"{_DEGREES}\s*[CF]\b|℃|℉", "", text)
    )
    text = re.sub(rf"(?<!\\)\\[!,;: ]|\\q?quad|{_DEGREES}|\\[()]|(?<!\\)\\[\[\]]|~", " ", text)
    text = re.sub(r"\*\*(?=\W*$)|^\W*\*\*", "", text).strip().rstrip(".。").strip()
    text = re.sub(rf"^((?:{TEXT}\{{)?[A-J])[).](\}}?)$", r"\1\2", text)
    text = re.sub(r"(?<=[0-9}%])\s*\(([\u4e00-\u9fff]+)\)$", r"\1", text)
    text = re.sub(r"\\underline\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(rf"(?<=[0-9])\s*\^?\{{?\s*(?:{TEXT}\{{)?(?:st|nd|rd|th)\}}{{0,2}}$", "", text)
    text = re.sub(r"\{\s*([^{}]+?)\s*\\over(?![a-z])\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.replace("\\%", "%"))
    text = re.sub(r"\\[dt]binom", r"\\binom", re.sub(r"\\log_\s*([0-9a-z])", r"\\log_{\1}", text))
    text = re.sub(r"\\frac\s*\\pi\s*(?:\{([0-9]+)\}|([0-9]))", r"\\frac{\\pi}{\1\2}", text)
    text = re.sub(r"√\s*([0-9a-z]+)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{", re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-z])", r"\1{\2}", text))
    text = re.sub(r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}", text)
    text = (text if named else _LEADING.sub("", _last_side(text))).replace(r"\varnothing", r"\emptyset")
    text = without_dressed_units(text)
    text = re.sub(r"(?<![0-9,.(\[{])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])", lambda match: match[1].replace(",", ""), text)
    return text.strip()


def _typed(text: str) -> str:
    """Formulas as they are typed without LaTeX, 12*pi and sqrt(3)/2, in LaTeX."""
    text = re.sub(rf"(?<![A-Za-z\\])({FUNCTIONS}|pi)(?![A-Za-z])", r"\\\1", text.replace("√(", r"\sqrt("))
    text = re.sub(r"(?<![A-Za-z\\])(?:[Ii]nfinity|inf|oo)(?![A-Za-z])|(?<=\\)infinity", r"\\infty", text)
    return re.sub(r"\\sqrt\s*\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", r"\\sqrt{\1}", text)


def _radians(text: str) -> str:
    """Angles in degrees as radians, which functions of angles take."""
    text = re.sub(rf"\{{\s*([0-9.]+\s*{_DEGREES})\s*\}}", r"\1", text)
    return re.sub(rf"([0-9.]+)\s*{_DEGREES}", r"(\\frac{\1\\pi}{180})", text)


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


def in_interval_notation(plain: str) -> str:
    """The interval of an inequality that has one unknown, by itself, and numbers for bounds; else the text itself."""
    if re.fullmatch(rf"\\mathbb\s*\{{?R\}}?|(?:{TEXT}\{{\s*)?all real numbers\s*\}}?", plain):
        return r"(-\infty,\infty)"
    sides, found = _SIGN.split(plain)[::2], _SIGN.findall(plain)
    bounds = [side.strip() for side in sides if not _UNKNOWN.fullmatch(side)]
    if len(bounds) != len(found) or re.search("[A-Za-z,;]", re.sub(r"\\[A-Za-z]+", "", " ".join(bounds))):
        return plain
    signs = [next(sign for form, sign in _SIGNS.items() if re.fullmatch(form, text)) for text in found]
    if len(signs) == 2 and _UNKNOWN.fullmatch(sides[1]) and signs[0][0] == signs[1][0] != "!":
        ascending = zip(bounds, signs, strict=True) if signs[0][0] == "<" else zip(bounds[::-1], signs[::-1], strict=True)
        (low, first), (high, last) = ascending
        return f"{'[' if '=' in first else '('}{low},{high}{']' if '=' in last else ')'}"
    if len(signs) != 1:
        return plain
    (bound,), (sign,) = bounds, signs
    if sign == "!=":
        return rf"(-\infty,{bound})\cup({bound},\infty)"
    if (sign[0] == "<") == bool(_UNKNOWN.fullmatch(sides[0])):
        return rf"(-\infty,{bound}{']' if '=' in sign else ')'}"
    return rf"{'[' if '=' in sign else '('}{bound},\infty)"
