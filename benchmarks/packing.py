"""How long a rank takes to pack a batch, and how much of what it packs is padding.

    python benchmarks/packing.py [--questions 64] [--outputs 16] [--longest 990]

Each question has a prompt of 100 tokens; its outputs are of all lengths up to the longest, middle ones most often. The time is
the median of five. PASS at 1,000,000 tokens a second and less than 5% padding.
"""

import argparse
import random
import statistics
import sys
import time

from learner.batch.packing import Output, pack


def batch(questions: int, outputs: int, longest: int) -> list[Output]:
    """Lengths between 16 and the longest."""
    draw, prompt, made = random.Random(0), tuple(range(100)), []
    for group in range(questions):
        for _ in range(outputs):
            length = 16 + round((longest - 16) * draw.betavariate(2, 2))
            ids, mask = tuple(range(length)), (True,) * length
            made.append(Output(name=f"output {len(made)}", group=group, prompt_ids=prompt, output_ids=ids, mask=mask))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--outputs", type=int, default=16)
    parser.add_argument("--longest", type=int, default=990)
    parser.add_argument("--max-tokens", type=int, default=16384, help="positions of a micro-batch")
    args = parser.parse_args()
    made, seconds = batch(args.questions, args.outputs, args.longest), []
    for _ in range(5):
        began = time.monotonic()
        packed = pack(made, max_tokens=args.max_tokens)
        seconds.append(time.monotonic() - began)
    took = statistics.median(seconds)
    good = packed.trained_tokens / took >= 1_000_000 and packed.padding_share < 0.05
    found = f"{packed.trained_tokens:,} tokens of {len(made):,} outputs in {len(packed.micro_batches)} micro-batches"
    print(f"{found}: {took:.2f} s, {packed.padding_share:.1%} padding: {'PASS' if good else 'FAIL'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
