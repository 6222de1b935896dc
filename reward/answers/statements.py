"""Answers stated in words: "the answer is 4", 【答案】D, "option B is right"; what is said there, to the end of a sentence."""

import re
from functools import lru_cache
from typing import NamedTuple

from reward.answers.mentions import MONTH, mentions
from reward.answers.notations import choice
from reward.answers.rules import FUNCTIONS, NUMBER_WORD
from reward.answers.units import changes
from reward.answers.values import Words, parse
from reward.config import Reading

LONGEST = 300
LONGEST_TAIL = 2000
_OPTION_IS = r"(?:correct|right|best|true|final)\s+(?:option|choice|statement|selection|response)"
_OF = r"(?:\s+(?:to|for|of|in|here)\b[^.:=\n]{0,60}?)?"
_LINK = (
    r"(?:\b(?:is|are|was|equals|(?:must|should|would|will|can only|has to) be)(?![A-Za-z])|[:：=是为為は은는]|(?=不)|选(?!择)"
    r"|\b(?:est|es|é|è|ist|lautet|là|adalah|jest|هي|है)(?=[\s:])|\s[-–—→]\s)"
)
_ADVERB = (
    r"(?:(?:therefore|thus|hence|then|clearly|simply|definitely|certainly|obviously|indeed|exactly|for sure|equal to|given by)"
    r"(?![A-Za-z])[,:]?\s*)*"
)
_VALUE = (
    rf"[\s*_]*(?:[:：=])?[\s*_]*{_ADVERB}"
    r"(\\\[[^\[\]]*\\\]|\$\$[^$]*\$\$|\\begin\{(?s:.*?)\\end\{[a-z]+\}|[^\n]*?)\s*(?=</answer>|\n|\Z)"
)
_NO_STATEMENT = re.compile(r"(?:in)?correct\b|right\b|wrong\b|clear\b|reasonable\b|as follows|below|above", re.IGNORECASE)
_LETTERS = r"(?>[(\[{*\"“]*[A-J](?![A-Za-z'])[\s,、和与&)\]}*(\[{\"”]*+(?:and\s++)?)++"
_SO = r"(?:\A|\n|[.;:,]\s|(?i:\b(?:so|thus|hence|therefore),?\s)|(?<![A-J)\]}*])\s(?i:and|but)\s)"
_TRUE = r"\s*(?:is|are)\s+(?:(?:the\s+)?(?:correct|right|best)|(?:the|my)\s+(?:final\s+)?answers?)"
# fmt: off
CHOSEN = (
    (rf"(?i:\b(?:choose|pick|select|go with|opt for)\s+(?:(?:the )?(?:option|choice|answer|letter)\s+)?)({_LETTERS})",
     "I choose B"),
    (rf"(?i:\b(?:it's|it is|it must be|option|choice)\s+(?:option\s+)?)({_LETTERS})(?:[.!。]?\s*\Z|(?i:{_TRUE}))", "It's B."),
    (rf"{_SO}[ \t*]*(?i:(?:the\s+|my\s+)?(?:final\s+|correct\s+)?answer)[\s*]+"
     rf"({_LETTERS})(?<=[\s)\]}}*A-J\"”])[.。]?[ \t]*(?:\Z|\n|(?<=\n))", "A: no\nB: yes\nAnswer B"),
    (rf"{_SO}\s?({_LETTERS})(?i:{_TRUE})", "Thus B is correct."),
    (rf"(?:选择?|选项|選)\s*(?:项|是|为)?\s*[:：]?\s*({_LETTERS}|[A-J]+)(?!\s*(?:选?项)?\s*[错误不点])", "选项B正确"),
    (rf"(?:\A|\n)[ \t]?({_LETTERS})(?<=[\s)\]}}*A-J])[.。]?[ \t]*(?:\Z|\n|(?<=\n))", "It fits.\n(B)"),
)
# fmt: on
"""What says that an option is right in other words, and an example of B."""
_CHOSEN = re.compile("|".join(pattern for pattern, _ in CHOSEN))
_IS = re.compile(r"\b(?:is|are)\b(?=.*[0-9$\\])", re.DOTALL)
# What follows "or", or another candidate, belongs to the answer: a list of candidates is none.
_SENTENCE_END = re.compile(
    r"[。！]|(?<!\\)!(?=\s|$)|[；;](?!\s*[-$0-9])|\.(?![0-9]|\s?m\b)|\bbecause\b|\bsince\b"
    rf"|, (?=[A-Za-z]{{2}})(?!(?:{FUNCTIONS}|pi|infinity|inf|oo|or|maybe|perhaps|possibly|{NUMBER_WORD})\b|{MONTH}"
    rf"|[A-Za-z]+(?:,|[.!?]?$))"
)
_SEVERAL = re.compile(r"\b(?:not|either|or|between|maybe|perhaps|possibly|one of)\b|或|不是", re.IGNORECASE)
MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
LAST_WORDS = re.compile(r"(?:[是为]|\b(?:is|are)\s)\s*([^.。!！\n是为]{1,40})[.。!！]?\s*\Z")
"""What a last sentence without a number says something is."""


class Statement(NamedTuple):
    start: int
    end: int
    words: str


@lru_cache(maxsize=64)
def _headings(reading: Reading) -> tuple[re.Pattern, re.Pattern]:
    """What finds a heading with what stands behind it, and a heading alone."""
    bracketed = "|".join(re.escape(name) for name in reading.headings if name[0] in "【[")
    names = "|".join([re.escape(name) for name in reading.headings if name[0] not in "【["]) or "(?!)"
    name = rf"(?<![A-Za-z解问])(?<!\bif the )(?:{names}|{_OPTION_IS})s?(?![A-Za-z])"
    heading = (
        rf"(?:[【\[]\s*[^【】\[\]\n]{{0,6}}(?:{names})\s*[】\]]{f'|{bracketed}' if bracketed else ''}|<answer>"
        rf"|{name}(?:(?<=[：:选])|{_OF}[\s*_]*{_LINK})"
        rf"|(?:\A|\n)[ \t]*(?:[#*_]+[ \t]*(?:the )?)?(?:final )?{name}[ \t*_]*\n)"
    )
    return re.compile(heading + _VALUE, re.IGNORECASE), re.compile(heading, re.IGNORECASE)


def headed(text: str, reading: Reading) -> list[Statement]:
    """What stands behind headings, in order: of several in a line, behind the last."""
    (stating, heading), out = _headings(reading), []  # pyright: ignore[reportArgumentType]  a frozen model of pydantic has a hash
    for match in stating.finditer(text):
        inner = max(heading.finditer(match[1]), key=re.Match.end, default=None)
        words = match[1][inner.end() :].strip(" *_:：") if inner else match[1]
        if not _NO_STATEMENT.match(words):
            out.append(Statement(match.start(), match.end(), words))
    return out


def chosen(text: str) -> Statement | None:
    """The last option that is said to be right. Numbers behind it are what the text is about: there is none then."""
    # At the end, or in a first line with reasons behind it.
    for start, end in ((max(0, len(text) - LONGEST_TAIL), len(text)), (0, text.find("\n", 0, LONGEST) + 1)):
        last = max(_CHOSEN.finditer(text, start, end), key=re.Match.start, default=None)
        if last and not next(mentions(text[last.end() : end]), None):
            return Statement(last.start(), last.end(), last[last.lastindex or 0].strip())
    return None


def plainly(sentence: str) -> str:
    """What stands behind "the answer is", up to the end of that sentence; all of it where that lists options."""
    options = choice(sentence[:LONGEST].strip("*_ .。"))
    if options and len(options.letters) > 1:
        return sentence.strip()
    return _SENTENCE_END.split(sentence[:LONGEST].strip())[0].strip(" *_")


def answer_in(sentence: str) -> str | None:
    """The answer in what stands behind "the answer is"; all of it where that is several."""
    said = plainly(sentence)
    if (value := parse(said)) is not None:
        named = LAST_WORDS.search(said)
        return named[1] if named and isinstance(value, Words) else said
    # What it is made of stands behind it: "72 (48 + 24)".
    if made_of := re.search(r"\s+\(([^()]*)\)\W*$", said):
        if changes(made_of[1]) and not re.search("[0-9]", made_of[1]):
            return said
        if parse(bare := said[: made_of.start()]) is not None and not _SEVERAL.search(said):
            return bare
    # A sentence around it: "the volume of $ABCD$ is 120", "48 + 24 = 72 clips", "18 apples that she sells", "at $x = 3$".
    said = _IS.split(said)[-1].strip()
    if parse(said) is not None:
        return said
    worked = said.rpartition("=")[2].strip(" $") if "," not in said else said
    if parse(worked) is not None and not _SEVERAL.search(said):
        return worked
    # One formula, or one number however often.
    found = [match[match.lastindex or 0] for match in MATHS.finditer(said)]
    found = found or list({parse(mention.text): mention.text for mention in reversed(list(mentions(said)))}.values())
    return found[0] if len(found) == 1 and not _SEVERAL.search(said) else said or None
