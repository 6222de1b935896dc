"""Numbers in English and Chinese words, and words that change a number, in LaTeX: "negative 3", "3 and a half", "3的平方"."""

import re

from reward.answers.rewrites import Rewrites

_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = dict(zip([*_SMALL, *_TENS], [*range(20), *range(20, 100, 10)], strict=True))
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(reversed(_SMALL))})"
_BELOW_1000 = rf"{_BELOW_100}(?:\s+hundred(?:\s+(?:and\s+)?{_BELOW_100})?)?"
_WORDS = rf"{_BELOW_1000}(?:\s+(?:{'|'.join(_LARGE)})(?:,?\s+(?:and\s+)?{_BELOW_1000})?)*"
NUMBER_WORD = rf"(?:{'|'.join([*_SMALL[2:], *_TENS])})"
"""Without "one", which may stand for anything."""
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4,
    "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_PART = rf"({'|'.join(_PARTS)})s?\b"
_SCALE = r"(?=(?:dozen|hundred|thousand|million|billion)\b)"
_N = (
    r"(\\sqrt(?:\[[0-9]\])?\{[^{}]*\}|\\frac\{[^{}]*\}\{[^{}]*\}|[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?:\^\{[0-9]+\})?|\\pi"
    r"|(?<![A-Za-z\\])[a-z](?![A-Za-z'])|\([^()]*\))"
)
"""What a word may change."""
_ORDINALS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _number(match: re.Match[str]) -> str:
    total = section = 0
    for word in re.findall("[a-z]+", match[0].lower()):
        if word in _VALUES:
            section += _VALUES[word]
        elif word == "hundred":
            section *= 100
        elif word in _LARGE:
            total, section = total + section * _LARGE[word], 0
    return str(total + section)


def _part(match: re.Match[str]) -> str:
    return f"{match[1] if (match[1] or '').isdigit() else 1}/{_PARTS[match[2].lower()]}"


def _raised(match: re.Match[str]) -> str:
    return f"({match[1]})^{{{_ORDINALS[match[2].lower()]}}}"


def _power(match: re.Match[str]) -> str:
    return f"^{{{match[1].translate(_RAISED)}}}"


WORDS = Rewrites(
    (rf"(?i)(?<![A-Za-z\\-]){_WORDS}(?![A-Za-z])(?!-(?!{_PART}))", _number, "one hundred and five", "105", "numbers in words"),
    (rf"(?i)(?<![A-Za-z0-9/.])([0-9]+|an?)[\s-]+{_PART}", _part, "2 thirds", "2/3", "a fraction in words"),
    (rf"(?i)(?<![A-Za-z0-9/.])(\b\B)?\b{_PART}(?= of)", _part, "quarter of 8", "1/4 of 8", "a fraction in words"),
    (r"(?i)\band (?:a )?half\b", "and 1/2", "3 and half", "3 and 1/2", "a fraction in words"),
    (rf"(?i)\bhalf an? {_SCALE}", "1/2 ", "half a dozen", "1/2 dozen", "a fraction in words"),
    (rf"(?i)\bhalf (?:of )?(?={_N})", "1/2 of ", "half of 3", "1/2 of 3", "a fraction in words"),
    (r"(?i)^half$", "1/2", "half", "1/2", "a fraction in words"),
    (rf"(?i)(?<![A-Za-z])an? {_SCALE}", "1 ", "a dozen", "1 dozen", "what is counted once"),
    (r"([0-9]) and (?=[0-9]+/[0-9]+)", r"\1 ", "3 and 1/2", "3 1/2", "a mixed number"),
    (r"(?<=[0-9a-z})])([⁻⁰¹²³⁴-⁹]+)(?![A-Za-z])", _power, "3²", "3^{2}", "raised digits"),
    (
        rf"(?i)(?:the )?(?:positive |principal )?square[ -]?root of {_N}",
        r"\\sqrt{\1}", "the square root of 3", r"\sqrt{3}", "roots",
    ),
    (rf"(?i)(?:the )?cube[ -]?root of {_N}", r"\\sqrt[3]{\1}", "cube root of 27", r"\sqrt[3]{27}", "roots"),
    (rf"(?i)(?:the )?fourth root of {_N}", r"\\sqrt[4]{\1}", "fourth root of 16", r"\sqrt[4]{16}", "roots"),
    (rf"(?i){_N} to the ({'|'.join(_ORDINALS)}) power", _raised, "7 to the third power", "(7)^{3}", "powers"),
    (rf"(?i)(?:the )?square of {_N}|{_N} squared\b", r"(\1\2)^{2}", "3 squared", "(3)^{2}", "powers"),
    (rf"(?i)(?:the )?cube of {_N}|{_N} cubed\b", r"(\1\2)^{3}", "the cube of 3", "(3)^{3}", "powers"),
    (
        rf"(?i){_N} (?:raised )?to the (?:power (?:of )?)?{_N}(?:th|rd|nd)?(?: power)?",
        r"(\1)^{\2}", "2 to the 5th power", "(2)^{5}", "powers",
    ),
    (rf"(?i){_N} factorial\b", r"\1!", "3 factorial", "3!", "factorials"),
    (rf"(?i)(?:the )?reciprocal of {_N}", r"1/(\1)", "the reciprocal of 3", "1/(3)", "fractions"),
    (rf"(?i)\b(?:twice|double) {_N}", r"2\\cdot \1", "twice 3", r"2\cdot 3", "multiples"),
    (rf"(?i)\b(?:thrice|triple) {_N}", r"3\\cdot \1", "triple 3", r"3\cdot 3", "multiples"),
    (rf"(?i)([0-9]+/[0-9]+) of (?:the )?{_N}", r"\1\\cdot \2", "3/4 of 8", r"3/4\cdot 8", "a part of a number"),
    (r"(?i)\bplus or minus |(?<![\u4e00-\u9fff])正负", r"\\pm ", "plus or minus 3", r"\pm 3", "two values"),
    (rf"(?i){_N} (?:multiplied by|times) (?={_N})", r"\1\\cdot ", "3 times 4", r"3\cdot 4", "arithmetic in words"),
    (rf"(?i){_N} (?:divided by|over) (?={_N})", r"\1/", "3 over 4", "3/4", "arithmetic in words"),
    (rf"(?i){_N} plus (?={_N})", r"\1+", "3 plus 4", "3+4", "arithmetic in words"),
    (
        rf"(?i)\b(?:the )?(?:(?:negative|opposite|additive inverse) of|negative|minus|moins|menos|meno) ?(?={_N})",
        "-", "negative 3", "-3", "signs",
    ),
    (rf"负(?={_N})", "-", "负3", "-3", "signs"),
    (rf"根号(?:下)?{_N}", r"\\sqrt{\1}", "根号3", r"\sqrt{3}", "roots"),
    (rf"{_N}的(?:算术)?平方根", r"\\sqrt{\1}", "3的平方根", r"\sqrt{3}", "roots"),
    (rf"{_N}的相反数", r"-(\1)", "3的相反数", "-(3)", "signs"),
    (rf"{_N}的倒数", r"1/(\1)", "3的倒数", "1/(3)", "fractions"),
    (rf"{_N}的一半", r"\1/2", "7的一半", "7/2", "fractions"),
    (rf"{_N}的{_N}倍", r"\1\\cdot \2", "7的2倍", r"7\cdot 2", "multiples"),
    (rf"{_N}的平方", r"(\1)^{2}", "3的平方", "(3)^{2}", "powers"),
    (rf"{_N}的立方(?!根)", r"(\1)^{3}", "3的立方", "(3)^{3}", "powers"),
    (rf"{_N}的({_N})次方", r"(\1)^{\2}", "2的5次方", "(2)^{5}", "powers"),
    (r"(?i)^(?:12 )?noon$", "12:00 PM", "noon", "12:00 PM", "times of day"),
    (r"(?i)^(?:12 )?midnight$", "12:00 AM", "midnight", "12:00 AM", "times of day"),
)  # fmt: skip
_WORTH_READING = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3}|[⁰¹²³⁴-⁹负根的]|\b[Aa]n? ")


def in_symbols(text: str) -> str:
    """An answer whose words for numbers and what is done to them are symbols; other words stay."""
    return WORDS(text) if _WORTH_READING.search(text) else text
