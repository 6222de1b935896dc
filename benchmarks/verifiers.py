"""How many answers a warm pool of judges compares in a second, through the pool and back.

    python benchmarks/verifiers.py [--workers 2] [--data ../shared/data]

PASS at 5,000 GSM8K-style and 500 MATH-style judgements a second. Every text occurs once, so that nothing is found in a cache:
GSM8K-style are worked answers with numbers in many dresses, MATH-style the references of MATH-500 in other LaTeX forms.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from answers import read
from reformattings import changed, kept

from reward.answers.extract import reference
from reward.judging.pool import Pool

LEAST = {"gsm8k": 5000, "math500": 500}


def rows(data: Path, name: str) -> list[dict]:
    """Half right, half wrong, in a random order; in an output of the length that such answers have."""
    out = []
    for gold in map(reference, read(data, name)):
        for text in (*kept(gold, False)[:6], *changed(gold)[:6]):
            working = f"We work it out step by step. {gold[:1]} is not yet the answer, {len(out)} steps on.\n" * 4
            out.append({"output": f"{working}#### {text}", "gold": gold, "answer_format": "hash"})
    random.Random(0).shuffle(out)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    passed = True
    with Pool("reward.judging.rule:judge", workers=args.workers, seconds=10, memory_gb=2) as pool:
        pool([{"output": r"#### \sqrt{8}", "gold": r"2\sqrt{2}", "answer_format": "hash"}] * 64 * args.workers)
        for name, least in LEAST.items():
            asked = rows(args.data, name)
            start = time.monotonic()
            outcomes = pool(asked)
            rate = len(asked) / (time.monotonic() - start)
            times = sorted(outcome.seconds for outcome in outcomes)
            failed = sum(outcome.status != "score" for outcome in outcomes)
            good = rate >= least and failed == 0
            passed &= good
            p50, p99 = (1e3 * times[int(share * len(times))] for share in (0.5, 0.99))
            found = f"{rate:.0f} judgements a second (at least {least}), {failed} of {len(asked)} failed"
            print(f"{name}: {found}; one takes p50 {p50:.2f} ms, p99 {p99:.2f} ms: {'PASS' if good else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
