"""The value of an answer as it is written: a number, a percentage, words, a collection of values, or a formula.

Numbers are exact fractions: 0.333 is not 1/3, though 0.333333333333333, as programs print it, is. Thousands separators,
currency, trailing zeros, units and dress do not matter. Formulas stay LaTeX here; `formulas` compares them.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from reward.chinese import chinese_number
from reward.formulas import closed, readable

LONGEST_NUMBER = 1000
LARGEST_EXPONENT = 1000
LARGEST_DENOMINATOR = 10**4


@dataclass(frozen=True, slots=True)
class Percent:
    """`number` per cent."""

    number: Fraction


@dataclass(frozen=True, slots=True)
class Words:
    """Words in \\text{}, an option's letter, a number in another base, or a time of day, in lower case."""

    text: str


@dataclass(frozen=True, slots=True)
class Formula:
    latex: str


@dataclass(frozen=True, slots=True)
class Collection:
    """Several values. Order matters unless `kind` is set, list or union."""

    kind: str
    """set, list, union, matrix, row, or the two brackets of a tuple or interval, such as `[)`."""
    items: tuple["Value", ...]


Value = Fraction | Percent | Words | Formula | Collection

_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
# A minus after a letter, a digit or a bracket subtracts.
LAST_NUMBER = re.compile(rf"(?:(?<![A-Za-z0-9)\]])[-+])?[$€£¥]?(?:[0-9]+\s+[0-9]+/[0-9]+|(?:{_UNSIGNED})(?:/[0-9]+)?%?)")
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>[0-9]+)\s+(?=[0-9]+/))?(?P<top>{_UNSIGNED})(?:e(?P<exponent>[-+]?[0-9]{{1,9}}))?"
    rf"(?:\s*/\s*(?P<bottom>{_UNSIGNED}))?(?:\s*(?P<scale>thousand|million|billion|trillion))?(?P<percent>\s*(?:%|percent(?:age)?\b|pct\b))?",
    re.IGNORECASE,
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# One letter is a unit only if it is not a usual name of a variable; words for quantities are not units.
_UNIT_WORD = r"(?:[A-Za-z]{2,}|[gmshL]|[\u3040-\u30ff\u4e00-\u9fff]+)(?:\s?\^?\{?[23]\}?|²|³)?"
_UNITS = re.compile(rf"(?P<number>.*[0-9%])\s*(?P<units>{_UNIT_WORD}(?:[\s/.·-]+{_UNIT_WORD})*)")
_NOT_UNITS = re.compile(
    r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|halves|thirds?|quarters?|and|or|to|times|minus|plus"
    r"|pi|sqrt|sin|cos|tan|log|ln|exp|mod)s?\b|[十百千万亿]",
    re.IGNORECASE,
)
_TEXT = r"\\(?:text|textnormal|textbf|textrm|textit|mathrm|mathbf|mathit|mbox|bf|rm)\s*"
_DRESSED_UNITS = re.compile(
    rf"(?P<left>.*(?:[0-9}})]|\\pi)\s*){_TEXT}\{{\s*{_UNIT_WORD}(?:[\s/.·-]+{_UNIT_WORD})*\s*\}}(?:\^\{{?[23]\}}?)?"
)
_LEADING = re.compile(
    r"^(?:\([a-z](?:,\s*[a-z])+\)\s*=|[A-Za-z]\w?(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))|=|\\?approx(?:imately)?|≈|about)\s*(?=[^=]+$)"
)
_PLAIN_WORDS = re.compile(r"yes|no|true|false|even|odd|none|infinite", re.IGNORECASE)
_BASED = re.compile(r"([0-9A-F]+)_\{?\s*([0-9]{1,2})\s*\}?")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_PLUS_MINUS = re.compile(r"\\pm(?![a-z])|±")
_MATRIX = re.compile(r"(?:[(\[]\s*)?\\begin\{([pbBvV]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}(?:\s*[)\]])?", re.DOTALL)
_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)")
_APPROXIMATELY = re.compile(r"\\approx(?:eq)?(?![a-z])|≈")


@lru_cache(maxsize=16384)
def parse(text: str | None) -> Value | None:
    """The value of an answer, or None when it has none that can be found safely."""
    return _value(normalise(text)) if text else None


@lru_cache(maxsize=16384)
def normalise(text: str, named: bool = False) -> str:
    """The answer without dress: characters in ASCII; no math marks, currency, separators or units.

    Without a leading `x =` too, unless `named`.
    """
    text = plain_characters(text).strip()
    if len(text) > 20 * LONGEST_NUMBER:
        return ""
    text = re.sub(r"(?<![0-9.,])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9,/]| [0-9])", lambda match: match[1].replace(" ", ""), text)
    text = re.sub(r",\\!\s*(?=[0-9]{3})|\{,\}|(?<=[0-9])\\,(?=[0-9]{3})", "", text)
    text = re.sub(r"\\\$|US\$|[$€£¥₹]|^\s*RMB\b|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\displaystyle", "", text)
    text = re.sub(r"(?<!\\)\\[!,;: ]|\\q?quad|\^\{?\s*\\circ\s*\}?|°|\\degree|\\[()]|(?<!\\)\\[\[\]]|~", " ", text)
    text = re.sub(r"\*\*(?=\W*$)|^\W*\*\*", "", text).strip().rstrip(".。").strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text.replace("\\%", "%"))
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{", re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-z])", r"\1{\2}", text))
    text = re.sub(r"\\sqrt\s*([0-9a-z])", r"\\sqrt{\1}", text)
    text = (
        (text if named else _LEADING.sub("", _last_side(text)))
        .replace(r"\varnothing", r"\emptyset")
        .replace("infinity", r"\infty")
    )
    units = _DRESSED_UNITS.fullmatch(text)
    text = units["left"] if units and not _NOT_UNITS.search(text[units.end("left") :]) else text
    text = re.sub(r"(?<![0-9,.(\[{])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])", lambda match: match[1].replace(",", ""), text)
    return text.strip()


def _last_side(text: str) -> str:
    """What a chain `a = b = c` ends in, without a value that is near it behind `\\approx`."""
    parts = _APPROXIMATELY.split(text, maxsplit=1)
    if len(parts) > 1:
        text = parts[0] if re.search("[0-9]", parts[0]) else parts[1]
    sides = _EQUALS.split(text)
    return sides[-1] if len(sides) > 2 and "," not in text else text


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
    return chr(ord(character) - 0xFEE0) if "！" <= character <= "～" else character


def _value(plain: str) -> Value | None:
    if not plain or not closed(plain):
        return None
    if len(plain) <= LONGEST_NUMBER and (found := _number(plain)):
        return found[0]
    if (words := _words(plain)) is not None:
        return words
    collection = _collection(plain)
    if collection is not None:
        return collection if all(item is not None for item in collection.items) else None
    latex = re.sub(rf"{_TEXT}(?=\{{)", "", plain)
    return Formula(latex) if readable(latex) else None


def _number(plain: str) -> tuple[Fraction | Percent | None] | None:
    """The number, None in its place where it has no value that can be held; None where the text is no number."""
    text = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r" \1 ", plain)
    text = re.sub(r"\\frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r" \1/\2", text).strip()
    units = _UNITS.fullmatch(text)
    if units and not _NOT_UNITS.search(units["units"]) and not units["units"].startswith(("percent", "pct")):
        text = units["number"]
    match = _NUMBER.fullmatch(text)
    if match is None:
        found = chinese_number(text)
        return found and (Percent(found[0]) if found[1] == "%" else found[0],)
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > LARGEST_EXPONENT:
        return (None,)
    top, bottom = (Fraction((part or "1").replace(",", "")) for part in (match["top"], match["bottom"]))
    if bottom == 0:
        return (None,)
    value = int(match["whole"] or 0) + top * Fraction(10) ** exponent / bottom
    value = _unrounded(value)
    value *= (-1 if match["sign"] == "-" else 1) * _SCALES.get((match["scale"] or "").lower(), 1)
    return (Percent(value) if match["percent"] else value,)


def _unrounded(value: Fraction) -> Fraction:
    """A decimal as programs print them, to twelve digits or more, is the simple fraction that it rounds."""
    simple = value.limit_denominator(LARGEST_DENOMINATOR)
    return simple if value.denominator > 10**11 and abs(simple - value) <= abs(value) / 10**12 else value


def _words(plain: str) -> Words | None:
    dressed = re.fullmatch(rf"{_TEXT}\{{([^{{}}0-9]*[A-Za-z\u4e00-\u9fff][^{{}}0-9]*)\}}", plain)
    text = dressed[1].strip(" .") if dressed else plain
    if option := re.fullmatch(r"\(?([A-J])\)?", text):
        return Words(option[1].lower())
    if time := _TIME.fullmatch(re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r"\1", plain)):
        return Words(f"{time[1]}:{time[2]} {time[3]}m".lower())
    if based := _BASED.fullmatch(plain):
        return Words(f"{based[1]}_{based[2]}".lower())
    return Words(" ".join(text.lower().split())) if dressed or _PLAIN_WORDS.fullmatch(text) else None


def _collection(plain: str) -> Collection | None:
    if matrix := _MATRIX.fullmatch(plain):
        rows = [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", matrix[2]) if row.strip()]
        return Collection("matrix", tuple(Collection("row", tuple(parse(cell) for cell in row)) for row in rows))
    parts = _split(plain, r"\\cup(?![a-z])|∪|(?<=[)\]])\s*U\s*(?=[(\[])")
    if len(parts) > 1:
        return Collection("union", tuple(map(parse, parts)))
    inner = re.fullmatch(r"(\\\{|\\lbrace|\(|\[|\\langle)(.*)(\\\}|\\rbrace|\)|\]|\\rangle)", plain, re.DOTALL)
    if inner and closed(inner[2]):
        items = _split(inner[2], ",")
        if inner[1] in (r"\{", r"\lbrace"):
            return Collection("set", _expanded(items)) if inner[2].strip() else Collection("set", ())
        if len(items) > 1:
            return Collection(inner[1][-1].replace("e", "(") + inner[3][-1].replace("e", ")"), tuple(map(parse, items)))
        return None
    items = _split(re.sub(rf"{_TEXT}\{{\s*(?:and|or)\s*\}}|\b(?:and|or)\b", ",", plain), r",(?:\s*,)?")
    items = [item for item in items if item]
    values = _expanded(items) if len(items) > 1 or len(_PLUS_MINUS.findall(plain)) == 1 else ()
    return Collection("list", values) if len(values) > 1 else None


def _expanded(items: list[str]) -> tuple[Value | None, ...]:
    """The values of a list's items; `a ± b` is two of them."""
    out: list[str] = []
    for item in items:
        both = len(_PLUS_MINUS.findall(item)) == 1
        out += [_PLUS_MINUS.sub(sign, item) for sign in "+-"] if both else [item]
    return tuple(map(parse, out))


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside all brackets."""
    parts, start = [], 0
    for match in re.finditer(separator, text):
        if closed(text[: match.start()]) and match.start() >= start:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]
