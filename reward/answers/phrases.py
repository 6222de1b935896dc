"""What stands around a number in running text and makes it another value, or none: (pattern, example, why), a table for each
side and one of labels. In an example a number would stand by itself without its row."""

_FILLER = r"(?:the|an?|about|be(?:en|ing)?|equal(?:s| to)?|exactly|actually|always|necessarily|even|really|just|going to|by)\s+"
_LINE = r"(?:(?<=\n)|\A)[ \t]*"
PLAIN_COMMANDS = (
    r"(?:text[a-z]*|math(?:rm|bf|it|bb|sf|tt|normal)|[mh]box|f?box(?:ed)?|underline|emph|bf|rm|it|left|right|[bB]igg?[lr]?|q?quad"
    r"|approx(?:eq)?|implies|iff|(?:Long|long)?(?:[Rr]ight|[Ll]eft(?:right)?)arrow|to|therefore|because|displaystyle|item|hline"
    r"|newline|hfill|color|ensuremath|boldsymbol|in|and|or|[lc]?dots|begin|end|colon|[lg]eq?(?:slant)?|[lg]t|neq?|pm|mid|[hv]space"
    r"|unit|si|SI|qty|pounds|euro|circ|degree|equiv|pmod|noindent|par|small|[lL]arge)"
)
"""Commands beside which a number stays what it is."""

# fmt: off
BEFORE = (
    (r"(?i:\b(?:never|not|no longer|can\s?not|(?:is|was|are|were|ca|wo|would|could|should|must|does|do|did|has)n['’]?t)\s+"
     rf"(?:{_FILLER}){{0,3}})", "It isn't 4", "denied"),
    (r"(?i:\b(?:(?:any|every)thing\s+(?:but|except)|(?<!none )other than|rather than|far from|instead of|except(?: for)?|unlike"
     r"|different from|unequal to|nowhere near|nor|neither|hardly)\s+)", "It is anything but 4", "denied"),
    (r"(?i:\b(?:(?:factors?|divisors?|powers?|digits?|complement|supplement|negation|successor|predecessor|log(?:arithm)?|ln"
     r"|(?:arc|co)?(?:sine?|tan(?:gent)?)|(?:arc)?cos|(?:co)?secant|exp(?:onential)?|floor|ceiling|absolute value|modulus"
     r"|magnitude|norm|sign|derivative|integral)\s+(?:function\s+)?of|the\s+(?:[a-z]+\s+){0,2}(?:remainder|sum|product|ratio"
     r"|difference|quotient|number|gcd|lcm)\s+(?:of|between))\s+(?:the\s+)?)", "x is the remainder of 7", "made of it"),
    (r"(?i:\b(?:(?:congruent|proportional|(?:co|relatively |mutually )prime|next|adjacent|(?:near|clos)est(?:\s+[a-z]+)?"
     r"(?:\s+(?:integer|number|multiple|power))?)\s+to|(?:integer|number|prime|multiple|digit)\s+(?:after|before|following"
     r"|preceding))\s+)", "x is the nearest integer to 3.7", "near it"),
    (r"(?<=[\w)\]}|])(?:[ \t]*(?:[×÷·^]|\\(?:cdot|times|div)(?![a-z]))[ \t]*|[ \t]+[*/][ \t]+|[*/]|[ \t]*\+[ \t]+)",
     "so width * 3", "a product, a quotient or a sum"),
    (r"(?i:(?<![A-Za-z])(?:sqrt|log|ln|sin|cos|tan|exp)\s*\(?\s*)", "so sin 3", "a function of it"),
)
"""On the left."""
BEHIND = (
    (r"\^(?!\s*\{?\s*(?:\\circ|o\b))", "we get 2^", "a power that is cut off"),
    (r"(?:[ \t]*[×÷·]|[ \t]+[*+/]|(?<!\*)\*(?=[A-Za-z]))[ \t]*(?!\*)[A-Za-z]+", "so 3 * width", "a product or a sum"),
    (r"(?i:\s+mod(?:ulo)?\s+[0-9a-z]+)", "so 7 mod 4", "a remainder"),
    (r"(?:(?<=%)|(?<=/[0-9]))\s+of\s+(?:the\s+)?[$€£]?[0-9.,]*[0-9]", "so 10% of 30", "a part of it"),
    (r"[ \t]+[xyz](?=\s*(?:[.,;)$^+-]|\Z|\n))", "so 3/4 x", "a product"),
)
"""On the right."""
LABELS = (
    (r"(?i:(?<![A-Za-z])(?:thought|page|pp?\.|trial|scenario|observation|slide|exhibit|proof|sub-?(?:step|task)|ref\.|no\.)"
     r"\s*\(?[\[#]?[0-9]+\]?(?:\s*[-–]\s*[0-9]+)?(?![0-9.,]*[0-9])(?!\s*[-+*/=×÷]))", "page 10", "one of a series"),
    (rf"{_LINE}[*#>-]*[ \t]*[A-Z][a-z]+(?:[ \t][A-Za-z][a-z]+)?[ \t]+#?[0-9]+[ \t*]*[:：](?![0-9])", "Wave 2:", "a heading"),
    (rf"{_LINE}#+[ \t]+(?!.*(?i:answer|total|result))[A-Z][A-Za-z -]*[ \t][0-9]+[.:*\s]*(?=\n|\Z)", "## Wave 2", "a heading"),
    (rf"{_LINE}#{{1,3}}(?!#)[ \t]*[0-9]{{1,2}}(?:\.[0-9]+)*[.)、:：]?(?=[ \t*]|\n|\Z)", "### 3.", "a heading"),
    (rf"{_LINE}\[[0-9]{{1,3}}\](?=:|[ \t]+(?:https?:|www\.|[A-Z]))", "[1] https://x", "a reference"),
    (r"\\pmod\s*(?:\{[^{}]*\}|[0-9]+)", r"\equiv \pmod{7}", "what is divided by"),
    (r"(?:https?://|www\.)\S+", "https://x.org/?n=3", "an address"),
    (r"(?<!#)#[0-9]+(?![0-9.,]*[0-9])", "we are #3", "a rank in a row"),
)
"""Numbers that are no values; each hides what it matches."""
# fmt: on


def any_of(phrases: tuple[tuple[str, str, str], ...]) -> str:
    return "|".join(pattern for pattern, _, _ in phrases)
