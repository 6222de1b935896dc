"""Other ways to write an answer: some keep its value, some change it. Made from its text, by no code of the judge."""

import re
from fractions import Fraction

_CHINESE = "零一二三四五六七八九"
_PLAIN = re.compile(r"-?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]+)?|-?\.[0-9]+")


def kept(gold: str, chinese: bool) -> list[str]:
    """At least five texts with the answer's value."""
    if _PLAIN.fullmatch(gold):
        return _number_kept(gold.replace(",", ""), chinese)
    if re.fullmatch(r"-?[0-9]+/[0-9]+", gold):
        top, bottom = gold.split("/")
        sign, top = ("-", top[1:]) if top.startswith("-") else ("", top)
        doubled = f"{sign}{2 * int(top)}/{2 * int(bottom)}"
        forms = [rf"{sign}\{kind}frac{{{top}}}{{{bottom}}}" for kind in ("", "d", "t")]
        return [*forms, f"${gold}$", rf"\({gold}\)", f"{gold}.", f"{sign}{top} / {bottom}", doubled, *_decimal(gold)]
    if gold.endswith("%"):
        number = gold[:-1]
        return [number, f"{number} %", rf"{number}\%", f"{number} percent", f"${gold}$", str(Fraction(number) / 100)]
    return _latex_kept(gold)


def changed(gold: str) -> list[str]:
    """At least five texts with another value, or none."""
    if _PLAIN.fullmatch(gold):
        number = Fraction(gold.replace(",", ""))
        others = [
            number + 1,
            number - 1,
            10 * number + 1,
            number + Fraction(1, 3),
            -number - Fraction(7, 9),
            number + Fraction(1, 1000),
        ]
        return [*map(str, others), f"{gold} and {number + 1}", f"{gold}, {number + 1}, {number + 2}", "", "x"]
    if re.fullmatch(r"-?[0-9]+/[0-9]+", gold):
        number = Fraction(gold)
        return [str(number + 1), str(number * 2 + 1), str(-number), f"{float(number) + 1e-7}", f"{gold}, 17", "", "x"]
    if gold.endswith("%"):
        number = Fraction(gold[:-1])
        return [f"{float(number) + 1}%", f"{float(-number)}%", f"{float(number / 10)}%", str(number + 3), f"{gold}, 17%", ""]
    return _latex_changed(gold)


def _number_kept(number: str, chinese: bool) -> list[str]:
    value = Fraction(number)
    whole = value.denominator == 1
    separated = f"{int(value):,}" if whole else number
    top, bottom = abs(value.numerator), value.denominator
    fraction = rf"{'-' if value < 0 else ''}\dfrac{{{3 * top}}}{{{3 * bottom}}}"
    out = [
        separated, f"{number}.00" if whole else f"{number}0", f"${number}$", rf"\({number}\)", rf"\text{{{number}}}",
        f"{number}.",
        f"**{number}**", f"x = {number}", f"{number} apples", rf"{number}\text{{ cm}}^2",
        rf"\${number}", f"{number}元", fraction,
        separated.replace(",", "{,}"), number.translate(str.maketrans("0123456789-.", "０１２３４５６７８９－．")),
    ]  # fmt: skip
    if chinese and whole and 0 <= value < 100:
        tens, ones = divmod(int(value), 10)
        before = f"{'' if tens == 1 else _CHINESE[tens]}十" if tens else ""
        out.append(before + (_CHINESE[ones] if ones or not tens else ""))
    return out + ([f"{value.numerator}/{bottom}"] if not whole else [])


def _decimal(fraction: str) -> list[str]:
    """The decimal of a fraction that has an exact short one."""
    value = Fraction(fraction)
    text = str(float(value))
    return [text] if "e" not in text and Fraction(text) == value else []


def _latex_kept(gold: str) -> list[str]:
    words = re.fullmatch(r"\\text\{(\(?\w+\)?)\}", gold)
    if words:
        bare = words[1]
        return [bare, rf"\textbf{{{bare}}}", f"${gold}$", f"{gold}.", rf"\mathrm{{{bare}}}", bare.strip("()"), f" {bare} "]
    spaced = re.sub(r"(?<=[^\\])([-+=,])", r" \1 ", gold) if "begin" not in gold and r"\!" not in gold else f"  {gold} "
    out = [
        f"${gold}$",
        rf"\({gold}\)",
        rf"\[{gold}\]",
        f"{gold}.",
        f"$${gold}$$",
        rf"\displaystyle {gold}",
        spaced,
        gold.replace("frac", "dfrac").replace("ddfrac", "tfrac"),
    ]
    out.append(
        re.sub(r"\\d?frac\s*\{(-?\w+)\}\s*\{(\w+)\}(?!\w|\s*[\\a-z(])", r"{\1}/{\2}", gold)
        if not re.search(r"\^|[0-9] *\\d?frac", gold)
        else gold
    )
    if not re.search(r"left|right", gold) and re.fullmatch(r"[(\[].*[)\]]", gold) and ")(" not in gold and "cup" not in gold:
        out.append(rf"\left{gold[:-1]}\right{gold[-1]}")
    if r"\sqrt" in gold:
        out.append(re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", gold))
    if r"^\circ" in gold:
        out += [gold.replace(r"^\circ", ""), gold.replace(r"^\circ", r"^{\circ}"), gold.replace(r"^\circ", "°")]
    return out


def _latex_changed(gold: str) -> list[str]:
    if re.fullmatch(r"\\text\{.*\}", gold):
        return [r"\text{west}", r"\text{(F)}", "0", f"{gold}, {gold}", r"\text{Evelyn or Navin or east}", ""]
    digits = list(re.finditer(r"[0-9]", gold.split(r"\mbox")[0]))
    out = [f"{gold}, 17", f"17, {gold}", r"\text{none of these}", "", rf"({gold}, 17, 18)"]
    for match in (digits[0], digits[-1]) if digits else ():
        other = str((int(match[0]) + 1) % 10 or 2)
        out.append(gold[: match.start()] + other + gold[match.end() :])
    if not re.search(r"[=,_]|\\text|\\mbox|begin|pm|cup|circ|\$", gold):
        out += [f"{gold} + 1", f"2({gold})", f"-({gold}) + 5"]
    if re.fullmatch(r"[(\[].*,.*[)\]]", gold) and "cup" not in gold:
        out.append(gold[:-1] + {")": "]", "]": ")"}[gold[-1]])
    return out
