"""An answer in plain form: characters in ASCII, one way to write each thing, no name before it and no unit behind it."""

import re
import unicodedata
from functools import lru_cache

from reward.answers.rules import ANGLES, DEGREES, DRESS, GREEK, LEADING, NUMBERS, SIGNS, TYPED, WORDS
from reward.answers.units import CURRENCIES, TEXT, without_dressed_units, without_units

LONGEST_NUMBER = 1000
_WORTH_READING = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3}|[⁰¹²³⁴-⁹负根的]|\b(?:[Aa]n?|of) ")
_BARE = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?")
_ARITHMETIC = re.compile(r"(?:[0-9.,()%\s]|\\[$%])+(?:(?:[-+*/×÷·]|\\(?:cdot|times|div))(?:[0-9.,()%\s]|\\[$%])+)+")
_CHARACTERS = {
    **dict.fromkeys("−–", "-"), **dict.fromkeys("\u00a0\u202f\u2009", " "), "½": " 1/2", "¼": " 1/4", "¾": " 3/4",
    "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8",
}  # fmt: skip
_SIGN = re.compile(r"[<>≤≥≠]|!=|\\[lgn]")
_MIRRORED = str.maketrans("<≤>≥", ">≥<≤")
_UNKNOWN = re.compile(rf"\s*(?:(?![ei])[A-Za-z]|{GREEK})(?:\([a-z]\))?\s*")
_CURRENCY = re.compile(r"US\$|\\\$|[€£¥]|\bRMB\b|\$(?=[^$]*$)(?:(?<=^.)|(?<=^-.))")


@lru_cache(maxsize=16384)
def normalise(text: str, named: bool = False) -> str:
    """The answer in plain form: no marks of mathematics, currency, separators or units, numbers in digits.

    Without a leading `x =` too, unless `named`.
    """
    return NUMBERS(without_dressed_units(_written(text, named))).strip()


@lru_cache(maxsize=4096)
def unit(answer: str) -> str:
    """The unit of an answer as it is written, in plain characters; empty where there is none."""
    text = plain_characters(answer).strip()
    if money := _CURRENCY.search(text):
        return CURRENCIES[money[0]]
    kept = _written(answer)
    behind = kept[len(without_dressed_units(kept)) :]
    if not behind.strip():
        bare = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", kept).strip()
        behind = bare[len(without_units(bare)) :]
    behind = behind.replace(r"\Omega", "Ω").replace(r"\mu", "μ").translate(str.maketrans({"²": "^2", "³": "^3"}))
    behind = re.sub(rf"{TEXT}|\\cdot|[{{}}~]", " ", behind)
    return " ".join(behind.split()) or ("degree" if re.search(DEGREES, text) else "")


@lru_cache(maxsize=16384)
def _written(text: str, named: bool = False) -> str:
    """The answer with the units behind it."""
    text = plain_characters(text).strip()
    if len(text) > 20 * LONGEST_NUMBER:
        return ""
    # Most answers: nothing to rewrite.
    if _BARE.fullmatch(text):
        return text
    text = TYPED(text)
    if len(text) <= LONGEST_NUMBER and _WORTH_READING.search(text):
        text = WORDS(text)
    text = DRESS(ANGLES(text) if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text) else text)
    return text if named else LEADING(_last_side(text))


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
    return text if text.isascii() else "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    if character < "\x80":
        return character
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return chr(ord(character) - 0xFEE0) if "！" <= character <= "～" else _CHARACTERS.get(character, character)


def in_interval_notation(plain: str) -> str:
    """The interval of an inequality that has one unknown, by itself, and numbers for bounds; else the text itself."""
    if re.fullmatch(rf"\\mathbb\s*\{{?R\}}?|(?:{TEXT}\{{\s*)?all real numbers\s*\}}?", plain):
        return r"(-\infty,\infty)"
    if not _SIGN.search(plain):
        return plain
    signs, sides = re.findall("[<≤>≥≠]", text := SIGNS(plain)), [side.strip() for side in re.split("[<≤>≥≠]", text)]
    unknown = [i for i, side in enumerate(sides) if _UNKNOWN.fullmatch(side)]
    bounds = [side for i, side in enumerate(sides) if i not in unknown]
    letters = re.sub(r"\\[A-Za-z]+", "", " ".join(bounds))
    if unknown not in {2: ([0], [1]), 3: ([1],)}.get(len(sides), ()) or re.search("[A-Za-z,;]", letters):
        return plain
    # Each sign as it is behind the unknown.
    seen = {sign.translate(_MIRRORED) if i < unknown[0] else sign: bounds[i] for i, sign in enumerate(signs)}
    if "≠" in seen:
        return plain if len(signs) > 1 else rf"(-\infty,{bounds[0]})\cup({bounds[0]},\infty)"
    low = next((f"{'(' if sign == '>' else '['}{bound}" for sign, bound in seen.items() if sign in ">≥"), r"(-\infty")
    high = next((f"{bound}{')' if sign == '<' else ']'}" for sign, bound in seen.items() if sign in "<≤"), r"\infty)")
    return f"{low},{high}" if len({sign in ">≥" for sign in seen}) == len(signs) else plain
