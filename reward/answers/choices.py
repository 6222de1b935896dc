"""Options of a multiple choice: letters, alone, several, or with what they stand for: C, (A) and (D), B. Paris."""

import re
from dataclasses import dataclass

from reward.answers.units import LONGEST, TEXT

_LETTER = "[A-J]"
_WORD = r"(?i:(?:options?|choices?|statements?|the\s+letter|选项|选择|选)\s*[:：]?\s*)?"
_TRUE = r"(?i:(?:is|are)\s+(?:the\s+)?(?:correct|right|best|true)(?:\s+(?:one|option|choice|answer)s?)?)"
_BEHIND = rf"\s*(?:选?项|(?i:options?|choices?))?\s*(?:正确|对|{_TRUE})?"
_BARE = rf"[(\[{{<【]?\s*({_LETTER})\s*[)\]}}>】]?"
_ONE = re.compile(rf"{_WORD}{_BARE}\s*[.．、:：]?{_BEHIND}")
_AROUND = re.compile(rf"^{_WORD}|{_BEHIND}$")
_SEPARATOR = re.compile(r"[\s,，、;；&()\[\]]|\band\b|和|与|及")
_LABEL = re.compile(
    rf"{_WORD}(?:[(\[]\s*(?P<bracketed>{_LETTER})\s*[)\]]\s*[.:：、]?|(?P<plain>{_LETTER})"
    r"(?:(?P<mark>[)）、．：]|\.(?![a-z])|:(?=\s|[0-9\\$-])|(?=\s+\())|\s+[-–—](?=\s+[A-Z\u4e00-\u9fff])))\s*(?P<content>\S.*)",
    re.DOTALL,
)
_NAMED = re.compile(rf"(?P<content>.*[A-Za-z]{{3,}})\s+\(({_LETTER})\)", re.DOTALL)
_ABOUT = r"(?:is|are|was|were|can|cannot|could|would|does|do|has|have|fails?|seems?|contradicts?)\b|[不错是]"
"""A sentence about an option is no label."""
_LISTED = re.compile(rf"[,;，；、]\s*(?:[(\[]\s*({_LETTER})\s*[)\]]|({_LETTER})[.)．:：])\s*(?=\S)(?!{_ABOUT})")
"""Behind a comma a label is one however it is written."""
_OPERATOR = re.compile(r"[*/^_=<>]|[-+]\s|\\(?:cap|cup|cdot|times|to|in|subset|le|ge|pm)|[0-9.]*\)")
"""How a formula goes on behind a letter in brackets, and the content of an option does not begin."""


@dataclass(frozen=True, slots=True)
class Choice:
    letters: str
    """In alphabetical order."""
    content: str
    """What a single one stands for, where that is said."""


def choice(text: str) -> Choice | None:
    """The option that an answer names, or the options: where others are labelled behind the first, all of them."""
    if len(text) > LONGEST or not re.search(_LETTER, text):
        return None
    text = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text).replace("*", "").strip()
    if one := _ONE.fullmatch(text):
        return Choice(one[1], "")
    parts = _SEPARATOR.sub(" ", _AROUND.sub("", text)).split()
    if parts and all(re.fullmatch(f"{_LETTER}+", part) for part in parts):
        joined = "".join(parts)
        # Letters side by side are options in alphabetical order only: AB, not BA.
        ordered = all("".join(sorted(part)) == part for part in parts)
        return Choice("".join(sorted(joined)), "") if ordered and len(set(joined)) == len(joined) > 1 else None
    if (named := _NAMED.fullmatch(text)) and not re.search(r"[.;:()]", named["content"]):
        return Choice(named[2], named["content"])
    label = _LABEL.fullmatch(text)
    if label is None or _OPERATOR.match(label["content"]):
        return None
    first, content = label["bracketed"] or label["plain"], label["content"].strip()
    style = rf"[(\[]\s*({_LETTER})\s*[)\]]" if label["bracketed"] else rf"({_LETTER}){re.escape(label['mark'] or '.')}"
    others = re.findall(rf"(?:(?<=[\s,;，；。.])|(?<=[\u4e00-\u9fff])){style}\s*(?=\S)(?!{_ABOUT})", content)
    others += map("".join, _LISTED.findall(content))
    letters = sorted({first, *others})
    return Choice("".join(letters), content if len(letters) == 1 else "")
