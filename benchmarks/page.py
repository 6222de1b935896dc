"""50,000 samples in a run's page: `python -m benchmarks.page [SAMPLES]` makes a run of them and opens its page in Chromium.

Prints the page's size, the time to the first sample and the errors on the console; PASS below a second and without any."""

import random
import sys
import tempfile
import time
from pathlib import Path

from cluster.page.html import write_page
from cluster.records.samples import write_rows
from tests.cluster.pages import CHROMIUM, Browser

MEMBERS, GROUPS, TOKENS = 8, 32, 100
"""Of a group, of a step, of an output."""
LIMIT_S = 1.0
WORDS = [f"{word}{number}" for number in range(200) for word in ("so ", "then ", "= ", "+ ", "therefore ")]


def make(folder: Path, samples: int, rng: random.Random) -> None:
    """A run directory with rows as the loop records them."""
    steps = -(-samples // (MEMBERS * GROUPS))
    write_rows(
        folder / "metrics.jsonl",
        (
            {"step": n, "stage": "grpo", "reward": rng.random(), "accuracy": rng.random(), "seconds_step": 1.0}
            for n in range(1, steps + 1)
        ),
    )
    for step in range(1, steps + 1):
        here = min(samples - (step - 1) * MEMBERS * GROUPS, MEMBERS * GROUPS)
        write_rows(folder / f"samples/step_{step}.jsonl", (row(step, i, rng) for i in range(here)))


def row(step: int, place: int, rng: random.Random) -> dict:
    """One output of TOKENS tokens."""
    ids = [rng.randrange(len(WORDS)) for _ in range(TOKENS)]
    ordinal, reward = step * GROUPS + place // MEMBERS, float(rng.random() < 0.5)
    return {
        "group": f"grpo/{ordinal}", "ordinal": ordinal, "index": place % MEMBERS, "attempt": 0, "versions": [[step - 1, 0]],
        "lives": {str(step - 1): 0}, "id": f"train.jsonl:{ordinal}", "question": "".join(rng.choices(WORDS, k=20)), "gold": "7",
        "response": "".join(WORDS[i] for i in ids), "extracted": "7", "verdict": "score", "reward": reward,
        "components": {"correct": reward, "format": 1.0}, "reward_version": None, "reason": "", "advantage": reward - 0.5,
        "fate": "trained", "finish_reason": "stop", "prompt_ids": ids[:20], "output_ids": ids,
        "logprobs": [round(-rng.expovariate(2), 4) for _ in ids], "mismatch": [float(f"{rng.gauss(0, 1e-3):.3g}") for _ in ids],
        "advantages": [[0, reward - 0.5]], "events": [[TOKENS - 1, reward]],
    }  # fmt: skip


def main() -> int:
    """1 where it fails, 2 without Chromium."""
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    if CHROMIUM is None:
        print("there is no Chromium on this machine")
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, samples, random.Random(0))
        began, page = time.perf_counter(), folder / "run.html"
        write_page([folder], page)
        size, took = page.stat().st_size / 1e6, time.perf_counter() - began
        print(f"{samples} samples of {TOKENS} tokens: {size:.1f} MB, written in {took:.1f} s")
        first, errors = [], []
        for _ in range(3):
            with Browser() as browser:
                browser.open(f"{page.as_uri()}#tab=samples&colour=mismatch", "document.body?.dataset.firstSample")
                first.append(float(str(browser.run("document.body.dataset.firstSample"))) / 1000)
                errors += browser.errors
    good = min(first) < LIMIT_S and not errors
    print(f"first sample after {', '.join(f'{s:.2f}' for s in first)} s, the least counts; {len(errors)} errors on the console")
    print(*errors[:5], "PASS" if good else "FAIL", sep="\n")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
