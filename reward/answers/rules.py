"""What is rewritten in an answer before it is read: a table for each stage, its rows applied in order, each to all it matches.

What math-verify reads as well is left to it; numbers and units are read without it, in a hundredth of the time.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from reward.answers.units import IN_BRACKETS, SCALES, TEXT

Replacement = str | Callable[[re.Match[str]], str]


class Row(NamedTuple):
    pattern: str
    replacement: Replacement
    examples: dict[str, str]
    """Answers by what they are equal to, and would not be without this row."""
    why: str


class Stage:
    """Rows that are applied one after another, in one pass each."""

    def __init__(self, *rows: tuple[str, Replacement, dict[str, str], str]):
        self.rows = [Row(*row) for row in rows]
        self._compiled = [(re.compile(row.pattern), row.replacement) for row in self.rows]

    def __call__(self, text: str) -> str:
        for pattern, replacement in self._compiled:
            text = pattern.sub(replacement, text)
        return text


DEGREES = r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-z]))|°|\\degree(?![a-z])|(?<=[0-9])\^\{?o\}?(?![a-z]))"
FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|ln|log|exp"
GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|varphi|phi|omega|ell)(?![a-z])"
_WHERE = r"\((?:[^()=,]|\([^()=]*\))*\)"
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?"
NAME = (
    rf"(?:\((?:[a-zA-Z],\s*)+[a-zA-Z]\)|\([a-zA-Z]\s*(?:[-+]|\\circ|\\cdot)\s*[a-zA-Z]\){_WHERE}|m?\s*\\angle\s*[A-Z]{{1,3}}"
    rf"|{TEXT}\{{[A-Za-z ]+\}}|\\(?:vec|overline|hat|bar)\s*\{{[A-Za-z]{{1,3}}\}}"
    rf"|[fghpqrFGHPQRST]{_INDEX}'?(?:\^\{{-1\}})?{_WHERE}|(?:{GREEK}|[A-Za-z]){_INDEX}|[A-Za-z]\w?(?:\([a-z]\))?)"
)
"""What an answer may be called: x, x_1, f(2), f^{-1}(x), (a,b), \\angle ABC, \\text{Area}."""
_SIDES = r"\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)"

_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = dict(zip([*_SMALL, *_TENS], [*range(20), *range(20, 100, 10)], strict=True))
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_SMALL[1:10])}))?|{'|'.join(reversed(_SMALL))})"
_BELOW_1000 = rf"{_BELOW_100}(?:\s+hundred(?:\s+(?:and\s+)?{_BELOW_100})?)?"
_WORDS = rf"{_BELOW_1000}(?:\s+(?:thousand|million|billion)(?:,?\s+(?:and\s+)?{_BELOW_1000})?)*"
NUMBER_WORD = rf"(?:{'|'.join([*_SMALL[2:], *_TENS])})"
"""Without "one", which may stand for anything."""
_ORDINALS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}
_PARTS = {**_ORDINALS, "half": 2, "halve": 2, "quarter": 4, "hundredth": 100, "thousandth": 1000}
_PART = rf"({'|'.join([*list(_PARTS)[1:]])})s?\b"
_SCALE = r"(?=(?:dozen|hundred|thousand|million|billion)\b)"
_N = (
    r"(\\sqrt(?:\[[0-9]\])?\{[^{}]*\}|\\frac\{[^{}]*\}\{[^{}]*\}|(?<![0-9])[0-9][0-9,]*+(?:\.[0-9]++)?(?:/[0-9]++)?(?:\^\{[0-9]+\})?|\\pi"
    r"|(?<![A-Za-z\\])[a-z](?![A-Za-z'])|\([^()]*\))"
)
"""What a word may change."""
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_ROOTS = {"square": "", "cube": "[3]", "fourth": "[4]"}
_POWERS = {"square": 2, "cube": 3}
_TIMES = {"twice": 2, "double": 2, "thrice": 3, "triple": 3}
_OPERATIONS = {"multiplied by": r"\cdot ", "times": r"\cdot ", "divided by": "/", "over": "/", "plus": "+"}
_OF = {
    "平方根": r"\sqrt{%s}", "立方根": r"\sqrt[3]{%s}", "平方": "(%s)^{2}", "立方": "(%s)^{3}",
    "相反数": "-(%s)", "倒数": "1/(%s)", "一半": "%s/2",
}  # fmt: skip


def _number(match: re.Match[str]) -> str:
    total = section = 0
    for word in re.findall("[a-z]+", match[0].lower()):
        if word in _VALUES:
            section += _VALUES[word]
        elif word == "hundred":
            section *= 100
        elif word in SCALES:
            total, section = total + section * SCALES[word], 0
    return str(total + section)


def _bare(match: re.Match[str]) -> str:
    """A number without what separates its digits."""
    return re.sub("[ ,]", "", match[0])


def _fraction(match: re.Match[str]) -> str:
    top, bottom = (part[1:-1] if part[0] == "{" else part for part in match.groups())
    return rf"\frac{{{top}}}{{{bottom}}}"


# fmt: off
TYPED = Stage(
    (r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|pi|cdot|times|infty|cup|circ|begin|end)(?![a-z]))", r"\\",
     {r"\\frac12": "50%", r"\\text{C}": "C"}, "a backslash escaped once too often"),
    (r"(?<![0-9.,])[0-9]{1,3}(?: [0-9]{3})+(?![0-9,/]| [0-9])", _bare, {"10 000": "10000"}, "spaces between thousands"),
    (r",\\!\s*(?=[0-9]{3})|\{,\}|(?<=[0-9])\\,(?=[0-9]{3})", "", {r"1,\!234": "1234"}, "spaces between thousands"),
    (r"(?<![0-9,.])([0-9]{1,3}(?:\.[0-9]{3})+),([0-9]{1,2})(?![0-9,])", lambda m: f"{m[1].replace('.', '')}.{m[2]}",
     {"1.234,56": "1234.56"}, "points between thousands"),
    (rf"(?<![A-Za-z\\])({FUNCTIONS}|pi)(?![A-Za-z])", r"\\\1", {"12*pi": r"12\pi"}, "typed without LaTeX"),
    (r"(?<![A-Za-z\\])(?:[Ii]nfinity|inf|oo)(?![A-Za-z])|\\infinity", r"\\infty", {"-oo": r"-\infty"}, "typed without LaTeX"),
    (rf"(?:√|\\sqrt)\s*{_SIDES}", r"\\sqrt{\1}", {"3 sqrt(13)": r"3\sqrt{13}", "√(2)": r"\sqrt{2}"}, "typed without LaTeX"),
    (r"√\s*([0-9a-z]+)", r"\\sqrt{\1}", {"11√13": r"11\sqrt{13}"}, "typed without LaTeX"),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{\\?([^{}]*)\}", r"\1\\text{\2}", {r"\SI{5}{\newton}": "5"}, "siunitx"),
    (r"\\\$|US\$|[$€£¥₹¢]|^\s*(?:RMB|USD|EUR|GBP|CNY|INR|Rs\.?)(?![A-Za-z])", "", {"RMB 5": "5"}, "currency"),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\displaystyle", "", {r"\left(1,2\right)": "(1,2)"}, "sizes"),
)
"""Characters and commands as models type them."""

WORDS = Stage(
    (rf"(?i)(?<![A-Za-z\\-]){_WORDS}(?![A-Za-z])(?!-(?!{_PART}))", _number,
     {"twelve": "12", "one hundred and five": "105", "two thousand and one": "2001"}, "numbers in words"),
    (rf"(?i)(?<![A-Za-z0-9/.])(?:([0-9]+|an?)[\s-]+)?\b{_PART}(?(1)|(?= of))",
     lambda m: f"{m[1] if (m[1] or '').isdigit() else 1}/{_PARTS[m[2].lower()]}",
     {"two thirds": "2/3", "a quarter": "0.25", "quarter of 8": "2"}, "a fraction in words"),
    (r"(?i)(?:\band |^(?=half$))half\b", "1/2", {"3 and half": "3.5", "half": "1/2"}, "a fraction in words"),
    (rf"(?i)\bhalf an? {_SCALE}", "1/2 ", {"half a dozen": "6"}, "a fraction in words"),
    (rf"(?i)(?<![A-Za-z])an? {_SCALE}", "1 ", {"a dozen": "12"}, "what is counted once"),
    (r"([0-9]) and (?=[0-9]+/[0-9]+)", r"\1 ", {"3 and 1/2": "3.5"}, "a mixed number"),
    (r"(?<=[0-9a-z})])([⁻⁰¹²³⁴-⁹]+)(?![A-Za-z])", lambda m: f"^{{{m[1].translate(_RAISED)}}}", {"3²": "9"}, "raised digits"),
    (rf"(?i)(?:the )?(?:positive |principal )?(square|cube|fourth)[ -]?root of {_N}",
     lambda m: rf"\sqrt{_ROOTS[m[1].lower()]}{{{m[2]}}}",
     {"the square root of 16": "4", "cube root of 27": "3", "fourth root of 16": "2"}, "roots"),
    (rf"(?i)(?:the )?(square|cube) of {_N}|{_N} (square|cube)d\b",
     lambda m: f"({m[2] or m[3]})^{{{_POWERS[(m[1] or m[4]).lower()]}}}", {"the cube of 3": "27", "3 squared": "9"}, "powers"),
    (rf"(?i){_N} to the ({'|'.join(_ORDINALS)}) power", lambda m: f"({m[1]})^{{{_ORDINALS[m[2].lower()]}}}",
     {"7 to the third power": "343"}, "powers"),
    (rf"(?i){_N} (?:raised )?to the (?:power (?:of )?)?{_N}(?:th|rd|nd)?(?: power)?", r"(\1)^{\2}",
     {"2 to the 5th power": "32", "3 to the power of 2": "9"}, "powers"),
    (rf"(?i){_N} factorial\b", r"\1!", {"3 factorial": "6"}, "factorials"),
    (rf"(?i)(?:the )?reciprocal of {_N}", r"1/(\1)", {"the reciprocal of 3": "1/3"}, "fractions"),
    (rf"(?i)\b(twice|double|thrice|triple) {_N}", lambda m: rf"{_TIMES[m[1].lower()]}\cdot {m[2]}", {"twice 3": "6"},
     "multiples"),
    (rf"(?i)([0-9]+/[0-9]+) of (?:the )?{_N}", r"\1\\cdot \2", {"3/4 of 8": "6"}, "a part of a number"),
    (r"(?i)\bplus or minus |(?<![\u4e00-\u9fff])正负", r"\\pm ", {"plus or minus 3": r"\pm 3"}, "two values"),
    (rf"(?i){_N} (multiplied by|times|divided by|over|plus) (?={_N})", lambda m: m[1] + _OPERATIONS[m[2].lower()],
     {"3 times 4": "12", "3 over 4": "3/4", "3 plus 4": "7"}, "arithmetic in words"),
    (rf"(?i)(?:\b(?:the )?(?:(?:negative|opposite|additive inverse) of|negative|minus|moins|menos|meno) ?|负)(?={_N})", "-",
     {"negative 3": "-3", "the opposite of 3": "-3", "负3": "-3"}, "signs"),
    (rf"根号下?{_N}", r"\\sqrt{\1}", {"根号3": r"\sqrt{3}"}, "roots"),
    (rf"{_N}的(?:算术)?({'|'.join(_OF)})", lambda m: _OF[m[2]] % m[1],
     {"3的平方": "9", "16的算术平方根": "4", "27的立方根": "3", "3的倒数": "1/3", "7的一半": "3.5"}, "made of it"),
    (rf"{_N}的{_N}倍", r"\1\\cdot \2", {"7的2倍": "14"}, "multiples"),
    (rf"{_N}的{_N}次方", r"(\1)^{\2}", {"2的5次方": "32"}, "powers"),
    (r"(?i)^(?:12 )?noon$", "12:00 PM", {"noon": "12:00 PM"}, "times of day"),
    (r"(?i)^(?:12 )?midnight$", "12:00 AM", {"midnight": "0:00"}, "times of day"),
)
"""Numbers in words, and words for what is done to them."""

ANGLES = Stage(
    (rf"(?<![0-9.])([0-9.]++)\s*{DEGREES}", r"(\\frac{\1\\pi}{180})", {r"\sin 30^\circ": "0.5"}, "functions take radians"),
)
"""In a formula with functions of angles."""

DRESS = Stage(
    (rf"(?<!\\)\\[!,;: ]|\\q?quad|{DEGREES}|\\[()]|(?<!\\)\\[\[\]]|~", " ", {r"90^\circ": "90", r"5\ m": "5"},
     "spaces, degrees, marks of mathematics"),
    (r"(?<!\*)(?:\*\*)++(?=\W*+$)|^\W*\*\*", "", {"**18**": "18"}, "bold"),
    (r"^\s+|(?<![\s.。])[\s.。]+$", "", {"18.": "18", "yes。": "yes"}, "the end of a sentence"),
    (r"^([0-9]+)\s*\(\1\)$", r"\1", {"nine (9)": "9"}, "said twice"),
    (r"(?<=[0-9])\s*\(\s*(?:%|percent)\s*\)$", "%", {"9 (percent)": "0.09"}, "a bracket around a unit"),
    (r"(?<=[0-9])\s*\(\s*\)$", "", {"7.74 ($)": "7.74"}, "brackets around a currency"),
    (rf"^([^A-Za-z]*[0-9}})%](?:\s+[a-z]+)?)\s*{IN_BRACKETS}$", r"\1 \\text{\2}", {"9 (apples)": "9"}, "a unit in brackets"),
    (rf"(?<=[0-9}}])\s*\(\s*({TEXT}\{{[^{{}}]*\}})\s*\)$", r"\1", {r"5 (\text{kg})": "5"}, "a unit in brackets"),
    (r"\\underline\s*\{([^{}]*)\}", r"\1", {r"\underline{5}": "5"}, "underlined"),
    (rf"(?<=[0-9])\s*+\^?\{{?\s*+(?:{TEXT}\{{)?(?:st|nd|rd|th)\}}{{0,2}}$", "", {"5th": "5", r"5^{\text{th}}": "5"},
     "ordinals"),
    (r"\{([^{}]+?)\\over(?![a-z])([^{}]++)\}", r"\\frac{\1}{\2}", {r"{1 \over 4}": "0.25"}, "fractions"),
    (r"\\[dtc](frac|binom)", r"\\\1", {r"1\dfrac{1}{2}": "1.5", r"\dbinom{5}{2}": "10"}, "sizes"),
    (r"\\frac\s*(\{[^{}]*\}|\\pi|[0-9])\s*(\{[^{}]*\}|[0-9a-z])", _fraction, {r"\frac12": "50%", r"\frac\pi2": r"\pi/2"},
     "arguments without brackets"),
    (r"\\log_\s*([0-9a-z])", r"\\log_{\1}", {r"\log_2 8": "3"}, "arguments without brackets"),
    (r"\\%", "%", {r"5\%": "0.05"}, "per cent"),
    (r"\\varnothing", r"\\emptyset", {r"\varnothing": r"\emptyset"}, "the empty set"),
)
"""What stands around a value, and the ways to write it."""

LEADING = Stage(
    (rf"^(?:{NAME}\s*(?:=|\\in(?![a-z]))|=|\\?approx(?:imately)?|≈|(?:about|around|roughly|exactly)\b|大约|约)\s*(?=[^=]+$)",
     "", {r"x \in [1,2]": "[1,2]", "about 5": "5", "大约5": "5"}, "its name, or that it is near"),
)

SIGNS = Stage(
    (r"<=|\\le(?:q|qslant)?(?![a-z])", "≤", {r"x \le 3": r"(-\infty,3]", "x <= 3": r"(-\infty,3]"}, "one sign for each"),
    (r">=|\\ge(?:q|qslant)?(?![a-z])", "≥", {r"x \geqslant 3": r"[3,\infty)"}, "one sign for each"),
    (r"\\lt(?![a-z])", "<", {r"x \lt 3": r"(-\infty,3)"}, "one sign for each"),
    (r"\\gt(?![a-z])", ">", {r"x \gt 3": r"(3,\infty)"}, "one sign for each"),
    (r"!=|\\neq?(?![a-z])", "≠", {r"x \neq 2": r"(-\infty,2)\cup(2,\infty)"}, "one sign for each"),
)
"""Of what may be an interval."""

UNITED = Stage(
    (rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", {r"\text{18 dollars}": "18"}, "words that may be a number or its unit"),
    (r"\\frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}", r" \1/\2", {r"\frac{1}{2}": "50%"}, "a number, not a formula"),
)
"""What may be a number with a unit."""

RATIO = Stage(
    (r"\s+to\s+|\s*(?:\\colon|\\mathbin\{:\}|[:∶比])\s*", ":", {"4 to 6": "2:3", r"4\colon 6": "2:3"}, "one sign"),
)

FORMULA = Stage((rf"{TEXT}(?=\{{)", "", {r"\mathrm{x}+1": "x+1"}, "letters that are variables"))

READER = Stage(
    (r"\*\*", "^", {"x**2": "x^2"}, "typed as in programs"),
    (r"(?<![A-Za-z\\])(?!(?:sin|cos|tan|cot|sec|csc|log|ln|exp|in)(?![A-Za-z]))(?:[A-Za-z]{2,3}(?![A-Za-z])|(?<=[0-9])[A-Za-z]$)",
     lambda m: "".join(f"{{{letter}}}" for letter in m[0]), {"2ab": r"ab\cdot 2"}, "letters that its reader takes for units"),
)
"""For math-verify."""

NUMBERS = Stage(
    (r"(?<![0-9,.(\[{])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])", _bare, {"1,234x": "1234x"}, "commas between thousands"),
)
"""Behind which there is no unit any more."""
# fmt: on
