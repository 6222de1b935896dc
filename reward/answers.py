"""The final answer of an output: where it stands, what its value is, and when two answers are the same.

Numbers are exact fractions: thousands separators, currency, a percent sign, trailing zeros and units do not matter, and
0.333 is not 1/3. What is not a number is compared as LaTeX by math-verify, loaded on first use. It runs in this process
without a clock, so expressions that could take for ever (towers of powers, huge exponents, factorials) are not evaluated.
"""

import logging
import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Literal

AnswerFormat = Literal["auto", "hash", "boxed", "last-number"]
Value = Fraction | tuple
"""A number, or math-verify's readings of an expression."""

LONGEST_NUMBER = 1000
LONGEST_EXPRESSION = 200
LARGEST_EXPONENT = 1000

_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_BOXED = re.compile(r"\\f?boxed\s*\{")
_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus after a letter, a digit or a bracket subtracts.
_LAST_NUMBER = re.compile(rf"(?:(?<![A-Za-z0-9)\]])[-+])?[$€£¥]?(?:[0-9]+\s+[0-9]+/[0-9]+|(?:{_UNSIGNED})(?:/[0-9]+)?%?)")
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/))?(?P<top>{_UNSIGNED})(?:e(?P<exponent>[-+]?[0-9]{{1,9}}))?"
    rf"(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?",
    re.IGNORECASE,
)
# One letter is a unit only if it is not a usual name of a variable; words for quantities are not units.
_UNIT_WORD = r"(?:[A-Za-z]{2,}|[gmshL]|[\u3040-\u30ff\u4e00-\u9fff]+)(?:\s?\^?\{?[23]\}?|²|³)?\.?"
_UNITS = re.compile(rf"(?P<number>.*[0-9])\s*(?P<units>{_UNIT_WORD}(?:[\s/.·-]+{_UNIT_WORD})*)")
_NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|thirds?|quarters?|and|or|to|times|minus|plus"
    r"|pi|sqrt|sin|cos|tan|log|ln|exp|mod)|[十百千万亿]",
    re.IGNORECASE,
)
_POWER = r"(?:\^|\*\*)\s*"
_ENDLESS = re.compile(
    rf"{_POWER}[{{(]?\s*[-+]?[0-9]{{3,}}|{_POWER}[({{][^(){{}}]*{_POWER}|{_POWER}(?:[0-9]+|\{{[^{{}}]*\}})\s*{_POWER}"
    rf"|[)}}\]]\s*{_POWER}\{{?\s*[0-9]{{2,}}.*[)}}\]]\s*{_POWER}\{{?\s*[0-9]{{2,}}|(?:[)}}\]]\s*{_POWER}.*){{5}}|[0-9]{{3,}}\s*!|!\s*!|binom"
)
_MARKUP = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[A-Za-z]+|sqrt|sin|cos|tan|log|exp")
_PROSE = re.compile(r"[A-Za-z]{3,}|[^\x00-\x7fπ∞√∪∩≤≥²³×·÷]")


def extract(text: str | None, answer_format: AnswerFormat) -> str | None:
    """The final answer as it is written, or None: the last `#### N`, the last `\\boxed{}` or the last number.

    `auto` takes the first of these that is found. A last `\\boxed{` that is never closed is no answer.
    """
    if not text:
        return None
    if answer_format == "hash":
        found = _HASH.findall(text)
        return found[-1].strip() or None if found else None
    if answer_format == "boxed":
        return _last_boxed(text)
    if answer_format == "last-number":
        found = _LAST_NUMBER.findall(_plain_characters(text))
        return found[-1] if found else None
    return extract(text, "hash") or extract(text, "boxed") or extract(text, "last-number")


def reference(gold: str) -> str:
    """The answer in a reference: behind its last `####` or inside its last `\\boxed{}`, else the whole of it."""
    return extract(gold, "hash") or extract(gold, "boxed") or gold


def normalise(text: str) -> str:
    """The answer without dress: digits and signs in ASCII; no math marks, currency, percent sign, separators or units."""
    text = _plain_characters(text).strip()
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?<!\\)\\[!,;: ]|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|°|\\[()\[\]]|\*\*(?=\W*$)|^\*\*", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$"))
    text = re.sub(r"\\frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r" \1/\2", text)
    text = re.sub(r"(?:\b[A-Z]{2})?[$€£¥₹]|%|\bpercent\b", "", text).strip()
    text = re.sub(r"^([A-Za-z]\s*)?=\s*(?=[^=]*$)", "", text)
    text = re.sub(rf"(?<![0-9,.])({_UNSIGNED})(?![0-9,])", lambda match: match[1].replace(",", ""), text)
    text = re.sub(r"^([-+])\s+", r"\1", text.rstrip(".。").strip())
    units = _UNITS.fullmatch(text)
    if units and not _NOT_UNITS.search(units["units"]):
        text = units["number"]
    return text.strip()


def parse(text: str | None) -> Value | None:
    """The value of an answer, or None when it has none that can be found safely."""
    return None if text is None else _value(normalise(text))


def same(a: str | None, b: str | None) -> bool:
    """Whether two answers are equal, by value; `a` is the reference where there is one. No answer equals nothing."""
    if a is None or b is None:
        return False
    plain = normalise(a), normalise(b)
    return all(plain) and (plain[0] == plain[1] or _same_value(*plain))


def _plain_characters(text: str) -> str:
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
    return chr(ord(character) - 0xFEE0) if "！" <= character <= "～" else character


def _last_boxed(text: str) -> str | None:
    starts = [match.end() for match in _BOXED.finditer(text)]
    if not starts:
        return None
    depth = 1
    for place in range(starts[-1], len(text)):
        escaped = text[place - 1] == "\\"
        depth += 0 if escaped else (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[starts[-1] : place].strip() or None
    return None


def _number(match: re.Match[str]) -> Fraction | None:
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > LARGEST_EXPONENT:
        return None
    top, bottom = (Fraction((part or "1").replace(",", "")) for part in (match["top"], match["bottom"]))
    if bottom == 0:
        return None
    value = int(match["whole"] or 0) + top * Fraction(10) ** exponent / bottom
    return -value if match["sign"] == "-" else value


@lru_cache(maxsize=4096)
def _value(plain: str) -> Value | None:
    number = _NUMBER.fullmatch(plain) if len(plain) <= LONGEST_NUMBER else None
    return _number(number) if number else _expression(plain)


def _expression(plain: str) -> tuple | None:
    if not plain or len(plain) > LONGEST_EXPRESSION or _ENDLESS.search(plain) or _PROSE.search(_MARKUP.sub(" ", plain)):
        return None
    reader = _math_verify()
    # Only its LaTeX reader takes the whole text or nothing; the others take the part that they understand.
    whole = [reader.LatexExtractionConfig()]
    text = plain.replace("**", "^")
    return tuple(reader.parse(f"${text}$", whole, fallback_mode="no_fallback", parsing_timeout=None)) or None


@lru_cache(maxsize=4096)
def _same_value(a: str, b: str) -> bool:
    values = _value(a), _value(b)
    if any(value is None for value in values):
        return False
    if all(isinstance(value, Fraction) for value in values):
        return values[0] == values[1]
    import sympy

    # math-verify takes {5} for 5, so that "5, 5" would be 5.
    if sum(isinstance(value, tuple) and isinstance(value[0], (sympy.Set, sympy.Tuple)) for value in values) == 1:
        return False
    readings = [[sympy.Rational(x.numerator, x.denominator)] if isinstance(x, Fraction) else list(x) for x in values]
    return _math_verify().verify(*readings, timeout_seconds=None)


def _math_verify() -> ModuleType:
    import math_verify

    # It warns that its alarm signals are off, which they must be outside the main thread.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
