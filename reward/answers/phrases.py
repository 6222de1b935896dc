"""What stands around a number in running text and makes it another value, or none: a table for each side, and one of labels."""

from typing import NamedTuple


class Phrase(NamedTuple):
    pattern: str
    example: str
    """An output in which a number would stand by itself without this row."""
    why: str


_FILLER = (
    r"(?:(?:the|a|an|about|be|been|being|equal(?:s| to)?|exactly|actually|always|necessarily|even|really|simply|just|going to"
    r"|have been|by|of)\s+){0,3}"
)
_AUXILIARY = "is|was|are|were|ca|wo|would|could|should|must|does|do|did|has|might"
_NAMED = r"(?:an?\s+|the\s+|its\s+)?(?:[a-z]+\s+)?"
_LINE = r"(?:(?<=\n)|\A)[ \t]*"
PLAIN_COMMANDS = (
    r"(?:text[a-z]*|math(?:rm|bf|it|bb|sf|tt|normal)|mbox|hbox|f?box(?:ed)?|underline|emph|bf|rm|it|left|right|[bB]igg?[lr]?"
    r"|q?quad|approx(?:eq)?|implies|iff|(?:Long|long)?(?:[Rr]ight|[Ll]eft(?:right)?)arrow|to|therefore|because|displaystyle|item"
    r"|hline|newline|hfill|color|ensuremath|boldsymbol|in|and|or|[lc]?dots|begin|end|colon|leq?|geq?|lt|gt|neq?|pm|mid"
    r"|leqslant|geqslant|[hv]space|unit|si|SI|qty|pounds|euro|circ|degree|equiv|pmod|noindent|par|small|large|Large)"
)
"""Commands beside which a number stays what it is."""

# fmt: off
BEFORE = (
    Phrase(rf"(?i:\b(?:never|no longer|cannot|can\s?not|(?:{_AUXILIARY})n['’]?t)\s+{_FILLER})", "It isn't 4", "denied"),
    Phrase(rf"(?i:\bnot\s+{_FILLER})", "It is not exactly 4", "denied, with a word between"),
    Phrase(rf"(?i:\b(?:anything|everything|all|nothing like|any number)\s+(?:but|except|save)\s+{_FILLER})",
           "It is anything but 4", "denied"),
    Phrase(r"(?i:\b(?:(?<!none )other than|rather than|instead of|except(?: for)?|different from|unequal to|far from"
           r"|nowhere near|unlike|nor|neither|hardly|excluding)\s+)", "It is other than 4", "denied"),
    Phrase(rf"(?i:\b{_NAMED}(?:factors?|divisors?|powers?|digits?|complement|supplement|negation|successor|predecessor)"
           r"\s+of\s+(?:the\s+)?)", "x is a factor of 4", "made of it"),
    Phrase(r"(?i:\b(?:log(?:arithm)?|ln|sine?|cos(?:ine)?|tan(?:gent)?|cotangent|secant|cosecant|arc(?:sine?|cos(?:ine)?|tan"
           r"(?:gent)?)|exp(?:onential)?|floor|ceiling|absolute value|modulus|magnitude|norm|sign|derivative|integral)"
           r"\s+(?:function\s+)?of\s+)", "x is the log of 3", "a function of it"),
    Phrase(r"(?i:\bthe\s+(?:[a-z]+\s+){0,2}(?:remainder|sum|product|difference|quotient|number|ratio|gcd|lcm)"
           r"\s+(?:of|between)\s+(?:the\s+)?)", "x is the remainder of 7", "made of it; a remainder of 7 is 7"),
    Phrase(r"(?i:\b(?:congruent|proportional|(?:co|relatively |mutually )prime|next|adjacent|nearest|closest"
           r"|(?:nearest|closest|closer)\s+(?:[a-z]+\s+)?(?:integer|number|whole|multiple|power|prime)(?:\s+number)?)\s+to\s+)",
           "x is the nearest integer to 3.7", "near it"),
    Phrase(r"(?i:\b(?:integer|number|prime|multiple|digit)\s+(?:after|before|following|preceding)\s+)",
           "x is the number after 4", "beside it"),
    Phrase(r"(?i:\b(?:less|more|greater)\s+than\s+or\s+equal\s+to\s+)", "x is less than or equal to 4", "a bound"),
    Phrase(r"(?<=[\w)\]}|])(?:[ \t]*(?:[×÷·^]|\\(?:cdot|times|div)(?![a-z]))[ \t]*|[ \t]+[*/][ \t]+|[*/]|[ \t]*\+[ \t]+)",
           "so width * 3", "a product, a quotient or a sum"),
    Phrase(r"(?i:(?<![A-Za-z])(?:sqrt|log|ln|sin|cos|tan|exp)\s*\(?\s*)", "so sin 3", "a function of it"),
)
"""On the left."""

BEHIND = (
    Phrase(r"\^(?!\s*\{?\s*(?:\\circ|o\b))", "we get 2^", "a power that is cut off"),
    Phrase(r"(?:[ \t]*[×÷·]|[ \t]+[*+/]|(?<!\*)\*(?=[A-Za-z]))[ \t]*(?!\*)[A-Za-z]+", "so 3 * width", "a product or a sum"),
    Phrase(r"(?i:\s+mod(?:ulo)?\s+[0-9a-z]+)", "so 7 mod 4", "a remainder"),
    Phrase(r"(?:(?<=%)|(?<=/[0-9]))\s+of\s+(?:the\s+)?[$€£]?[0-9.,]*[0-9]", "so 10% of 30", "a part of it"),
    Phrase(r"[ \t]+[xyz](?=\s*(?:[.,;)$^+-]|\Z|\n))", "so 3/4 x", "a product"),
)
"""On the right."""

LABELS = (
    Phrase(r"(?i:(?<![A-Za-z])(?:thought|page|pp?\.|trial|scenario|observation|slide|exhibit|proof|sub-?(?:step|task)|ref\.|no\.)"
           r"\s*\(?[\[#]?[0-9]+\]?(?:\s*[-–]\s*[0-9]+)?(?![0-9.,]*[0-9])(?!\s*[-+*/=×÷]))", "page 10", "one of a series"),
    Phrase(rf"{_LINE}[*#>-]*[ \t]*[A-Z][a-z]+(?:[ \t][A-Za-z][a-z]+)?[ \t]+#?[0-9]+[ \t*]*[:：](?![0-9])",
           "Wave 2:", "a heading"),
    Phrase(rf"{_LINE}#{{1,6}}[ \t]+(?!.*\b(?i:answer|total|result|is))[A-Z][A-Za-z -]{{0,30}}[ \t]+[0-9]+[.:：*\s]*(?=\n|\Z)",
           "## Wave 2", "a heading"),
    Phrase(rf"{_LINE}#{{1,3}}(?!#)[ \t]*[0-9]{{1,2}}(?:\.[0-9]+)*[.)、:：]?(?=[ \t*]|\n|\Z)", "### 3.", "a heading"),
    Phrase(rf"{_LINE}\[[0-9]{{1,3}}\](?=:|[ \t]+(?:https?:|www\.|[A-Z]))", "[1] https://x", "a reference"),
    Phrase(r"\\pmod\s*(?:\{[^{}]*\}|[0-9]+)", r"\equiv \pmod{7}", "what is divided by"),
    Phrase(r"(?:https?://|www\.)\S+", "https://x.org/?n=3", "an address"),
    Phrase(r"(?<!#)#[0-9]+(?![0-9.,]*[0-9])", "we are #3", "a place in a row"),
)
"""Numbers that are no values; each hides what it matches."""
# fmt: on


def any_of(phrases: tuple[Phrase, ...]) -> str:
    return "|".join(phrase.pattern for phrase in phrases)
