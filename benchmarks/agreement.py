"""The judge against other people's labels of stored responses.

    python benchmarks/agreement.py FILE --response response --gold answer --label is_correct --least 0.995

PASS when at least that share of the responses is judged as they were labelled. Every disagreement is printed, to be read.
"""

import argparse
import sys
from pathlib import Path

from reward.config import RewardConfig
from reward.judging.judges import rule_pool
from reward.judging.stored import StoredRow, judge_stored
from rollout.config import SourceConfig
from rollout.data.rows import load_rows
from rollout.data.templates import column, fill


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--response", default="response", help="column")
    parser.add_argument("--gold", default="answer", help="column")
    parser.add_argument("--label", default="is_correct", help="column of true or false")
    parser.add_argument("--answer-format", default="auto")
    parser.add_argument("--least", type=float, default=0.995)
    args = parser.parse_args()
    rows = load_rows(SourceConfig(file=args.file))
    golds, responses = fill(rows, f"{{{args.gold}}}", "gold"), fill(rows, f"{{{args.response}}}", "response")
    labels = [bool(label) for label in column(rows, args.label, "label")]
    stored = [
        StoredRow(where=row.where, question=row.where, gold=gold, responses=(response,), scores=None)
        for row, gold, response in zip(rows, golds, responses, strict=True)
    ]
    config = RewardConfig(answer_format=args.answer_format)
    with rule_pool(config) as pool:
        judged = [found for (found,) in judge_stored(stored, pool, config, lambda count: None)]
    agree = 0
    for row, found, label in zip(stored, judged, labels, strict=True):
        agree += found.correct is label
        if found.correct is not label:
            said = found.reason or f"judged {'right' if found.correct else 'wrong'}"
            print(f"{row.where}: labelled {'right' if label else 'wrong'}, {said}: {found.extracted!r} for {row.gold[-60:]!r}")
    share = agree / len(stored)
    print(f"{share:.2%} of {len(stored)} (at least {args.least:.1%}): {'PASS' if share >= args.least else 'FAIL'}")
    return 0 if share >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
