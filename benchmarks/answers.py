"""Reference answers of real question sets against themselves, against texts of the same value and of another one.

    python benchmarks/answers.py [--data ../shared/data]

For each set: the share of references that cannot be parsed (PASS at under 0.5%), and how many texts are judged wrongly (PASS
at none). The directory has gsm8k, math500, mgsm_zh, cmath and svamp as in the sources that publish them.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from reformattings import changed, kept

from reward.answers.equality import same
from reward.answers.extract import reference
from reward.answers.values import parse

SETS: dict[str, tuple[str, Callable[[dict], str]]] = {
    "gsm8k": ("gsm8k/test.jsonl", lambda row: row["answer"]),
    "math500": ("math500/test.jsonl", lambda row: row["answer"]),
    "mgsm_zh": ("mgsm_zh/test.jsonl", lambda row: row["answer"]),
    "cmath": ("cmath/test.jsonl", lambda row: row["golden"]),
    "svamp": ("svamp/test.jsonl", lambda row: f"{row['Answer']:.15g}"),
}
MOST_UNPARSED = 0.005


class Found(NamedTuple):
    rows: int
    unparsed: list[str]
    texts: int
    wrong: list[tuple[str, str, bool]]
    """(reference, text, whether they were judged the same)."""

    @property
    def passed(self) -> bool:
        return len(self.unparsed) / self.rows < MOST_UNPARSED and not self.wrong


def judged(golds: list[str], chinese: bool) -> Found:
    """Every reference against itself, at least five texts of its value and five of another."""
    unparsed, wrong, texts = [], [], 0
    for gold in map(reference, golds):
        if parse(gold) is None:
            unparsed.append(gold)
            continue
        same_value, other_value = [gold, *kept(gold, chinese)], changed(gold)
        if len(set(same_value)) < 6 or len(set(other_value)) < 5:
            raise ValueError(f"{gold!r}: found {same_value[1:]} and {other_value}, expected five different texts each")
        texts += len(same_value) + len(other_value)
        wrong += [(gold, text, False) for text in same_value if not same(gold, text)]
        wrong += [(gold, text, True) for text in other_value if same(gold, text)]
    return Found(len(golds), unparsed, texts, wrong)


def read(data: Path, name: str) -> list[str]:
    file, column = SETS[name]
    return [column(json.loads(line)) for line in (data / file).read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    passed = True
    for name in SETS:
        found = judged(read(args.data, name), chinese=name in ("mgsm_zh", "cmath"))
        passed &= found.passed
        for gold, text, verdict in found.wrong[:50]:
            print(f"  {gold!r} and {text!r}: judged {'the same' if verdict else 'different'}")
        share = len(found.unparsed) / found.rows
        print(
            f"{name}: {found.rows} references, {share:.2%} cannot be parsed, {len(found.wrong)} of {found.texts} texts judged "
            f"wrongly: {'PASS' if found.passed else 'FAIL'}"
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
