"""An answer without its dress: characters in ASCII, one way to write each thing, no name before it and no unit behind it."""

import re
import unicodedata
from functools import lru_cache

from reward.answers.phrases import in_symbols
from reward.answers.rewrites import Rewrites
from reward.answers.units import IN_BRACKETS, TEXT, without_dressed_units

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
_LEADING = re.compile(
    rf"^(?:{NAME}\s*(?:=|\\in(?![a-z]))|=|\\?approx(?:imately)?|≈|(?:about|around|roughly|exactly)\b|大约|约)\s*(?=[^=]+$)"
)
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
DEGREES = r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|°|\\degree(?![a-z])|(?<=[0-9])\^\{?o\}?(?![a-z]))"
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp"
_ARITHMETIC = re.compile(r"(?:[0-9.,()%\s]|\\[$%])+(?:(?:[-+*/×÷·]|\\(?:cdot|times|div))(?:[0-9.,()%\s]|\\[$%])+)+")


def _with_points(match: re.Match[str]) -> str:
    return f"{match[1].replace('.', '')}.{match[2]}"


TYPED = Rewrites(
    (
        r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|cdot|times|infty|cup|circ|begin|end)(?![a-z]))",
        r"\\", r"\\frac{1}{2}", r"\frac{1}{2}", "a backslash escaped once too often",
    ),
    (
        r"(?<![0-9.,])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9,/]| [0-9])",
        lambda match: match[1].replace(" ", ""), "10 000", "10000", "spaces between thousands",
    ),
    (r"√\(", r"\\sqrt(", "√(2)", r"\sqrt(2)", "typed without LaTeX"),
    (rf"(?<![A-Za-z\\])({FUNCTIONS}|pi)(?![A-Za-z])", r"\\\1", "12*pi", r"12*\pi", "typed without LaTeX"),
    (r"(?<![A-Za-z\\])(?:[Ii]nfinity|inf|oo)(?![A-Za-z])|\\infinity", r"\\infty", "-inf", r"-\infty", "typed without LaTeX"),
    (
        r"\\sqrt\s*\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)",
        r"\\sqrt{\1}", r"\sqrt(3)/2", r"\sqrt{3}/2", "typed without LaTeX",
    ),
    (r",\\!\s*(?=[0-9]{3})|\{,\}|(?<=[0-9])\\,(?=[0-9]{3})", "", r"1,\!234", "1234", "spaces between thousands"),
    (
        r"(?<![0-9,.])([0-9]{1,3}(?:\.[0-9]{3})+),([0-9]{1,2})(?![0-9,])",
        _with_points, "1.234,56", "1234.56", "points between thousands",
    ),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{\\?([^{}]*)\}", r"\1\\text{\2}", r"\SI{5}{\newton}", r"5\text{newton}", "siunitx"),
    (
        r"\\\$|US\$|[$€£¥₹¢]|^\s*(?:RMB|USD|EUR|GBP|CNY|INR|Rs\.?)(?![A-Za-z])|\\(?:left|right"
        r"|[bB]igg?[lr]?)(?![a-zA-Z])|\\displaystyle",
        "", r"\$5", "5", "currency, marks of mathematics, sizes of brackets",
    ),
)  # fmt: skip
PLAIN = Rewrites(
    (
        rf"(?<!\\)\\[!,;: ]|\\q?quad|{DEGREES}|\\[()]|(?<!\\)\\[\[\]]|~",
        " ", r"90^\circ", "90 ", "spaces, degrees, marks of mathematics",
    ),
    (r"\*\*(?=\W*$)|^\W*\*\*", "", "**18**", "18", "bold"),
    (r"^\s+|[\s.。]+$", "", " 18. ", "18", "the end of a sentence"),
    (rf"^((?:{TEXT}\{{)?[A-J])[).](\}}?)$", r"\1\2", r"\text{B)}", r"\text{B}", "an option"),
    (r"^([0-9]+)\s*\(\1\)$", r"\1", "9 (9)", "9", "said twice"),
    (r"\s*\(\s*\)$", "", "7.74 ()", "7.74", "a bracket around a currency"),
    (r"(?<=[0-9])\s*\(\s*(?:%|percent)\s*\)$", "%", "9 (%)", "9%", "a bracket around a unit"),
    (
        rf"^([^A-Za-z]*[0-9}})%](?:\s+[a-z]+)?)\s*{IN_BRACKETS}$",
        r"\1 \\text{\2}", "9 (apples)", r"9 \text{apples}", "a bracket around a unit",
    ),
    (rf"(?<=[0-9}}])\s*\(\s*({TEXT}\{{[^{{}}]*\}})\s*\)$", r"\1", r"5 (\text{kg})", r"5\text{kg}", "a bracket around a unit"),
    (r"\\underline\s*\{([^{}]*)\}", r"\1", r"\underline{5}", "5", "underlined"),
    (rf"(?<=[0-9])\s*\^?\{{?\s*(?:{TEXT}\{{)?(?:st|nd|rd|th)\}}{{0,2}}$", "", r"5^{\text{th}}", "5", "ordinals"),
    (r"\{\s*([^{}]+?)\s*\\over(?![a-z])\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}", r"{1 \over 4}", r"\frac{1}{4}", "fractions"),
    (r"\\[dtc]frac", r"\\frac", r"\dfrac12", r"\frac12", "fractions"),
    (r"\\%", "%", r"5\%", "5%", "per cent"),
    (r"\\log_\s*([0-9a-z])", r"\\log_{\1}", r"\log_2 3", r"\log_{2} 3", "an argument without brackets"),
    (r"\\[dt]binom", r"\\binom", r"\dbinom{5}{2}", r"\binom{5}{2}", "binomials"),
    (
        r"\\frac\s*\\pi\s*(?:\{([0-9]+)\}|([0-9]))",
        r"\\frac{\\pi}{\1\2}", r"\frac\pi2", r"\frac{\pi}{2}", "an argument without brackets",
    ),
    (r"√\s*([0-9a-z]+)", r"\\sqrt{\1}", "11√2", r"11\sqrt{2}", "typed without LaTeX"),
    (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", r"\frac43", r"\frac{4}{3}", "an argument without brackets"),
    (r"(\\frac\s*\{[^{}]*\})\s*([0-9a-z])", r"\1{\2}", r"\frac{4}3", r"\frac{4}{3}", "an argument without brackets"),
    (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{", r"\frac4{3}", r"\frac{4}{3}", "an argument without brackets"),
    (r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}", r"\sqrt3", r"\sqrt{3}", "an argument without brackets"),
)  # fmt: skip
_BARE = re.compile(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?")
_SEPARATED = re.compile(r"(?<![0-9,.(\[{])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")


@lru_cache(maxsize=16384)
def normalise(text: str, named: bool = False) -> str:
    """The answer without dress: characters in ASCII; no math marks, currency, separators or units, numbers in digits.

    Without a leading `x =` too, unless `named`.
    """
    text = written(text, named)
    text = without_dressed_units(text)
    return _SEPARATED.sub(lambda match: match[1].replace(",", ""), text).strip()


@lru_cache(maxsize=16384)
def written(text: str, named: bool = False) -> str:
    """As `normalise`, with the units behind it and commas between thousands."""
    text = plain_characters(text).strip()
    if len(text) > 20 * LONGEST_NUMBER:
        return ""
    # Most answers: nothing to undress.
    if _BARE.fullmatch(text):
        return text
    text = TYPED(text)
    if len(text) <= LONGEST_NUMBER:
        text = in_symbols(text)
    angles = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text)
    text = PLAIN(_radians(text) if angles else re.sub(rf"{DEGREES}\s*[CF]\b|℃|℉", "", text))
    return (text if named else _LEADING.sub("", _last_side(text))).replace(r"\varnothing", r"\emptyset")


def _radians(text: str) -> str:
    """Angles in degrees as radians, which functions of angles take."""
    text = re.sub(rf"\{{\s*([0-9.]+\s*{DEGREES})\s*\}}", r"\1", text)
    return re.sub(rf"([0-9.]+)\s*{DEGREES}", r"(\\frac{\1\\pi}{180})", text)


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
