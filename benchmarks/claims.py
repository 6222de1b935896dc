"""What the project claims, each as one command that prints its figures and PASS or FAIL (and exits 0 or 1).

    python benchmarks/claims.py quickstart --seeds 0 1 2    the quickstart recipe learns: +20 points sampled, greedy not lower
    python benchmarks/claims.py tools --seeds 0 1 2         GRPO with programs: +20 points, by running them more often
    python benchmarks/claims.py zero-rate                   at learning rate 0 nothing moves: accuracy, mismatch, digests
    python benchmarks/claims.py two-by-two                  two rollout workers and two learner ranks learn as well
    python benchmarks/claims.py failures                    a run of which nothing has a score ends in one step: cause, exit 3
    python benchmarks/claims.py smollm2 --model DIR --demonstrations FILE --questions FILE    +5 points on held-out questions

Runs are kept below --runs and taken up where they stopped; a finished run is read, not repeated.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster.records.metrics import read_jsonl
from runs import COHORT, finished


def share(outputs: list[dict]) -> float:
    """Correct outputs of one question; one without a verdict counts as wrong."""
    return sum(o["correct"] is True for o in outputs) / len(outputs)


def show(name: str, summary: dict) -> None:
    pairs = [
        f"{k} {summary[f'{k}_before']:.3f} -> {summary[f'{k}_after']:.3f}"
        for k in ("accuracy", "greedy_accuracy", "well_formed")
    ]
    pairs += [
        f"{k}@8 {summary[f'{k}_at_8_before']:.3f} -> {summary[f'{k}_at_8_after']:.3f}"
        for k in ("maj", "pass")
        if f"{k}_at_8_after" in summary
    ]
    minutes = sum(summary["seconds"].values()) / 60
    print(f"{name}: {', '.join(pairs)}; {minutes:.1f} minutes, {summary['tokens_per_second']:.0f} tokens/s", flush=True)


def learns(name: str, summary: dict, minutes: float) -> bool:
    """+20 points sampled, greedy not lower, and a well-formed warm start, so that the gain is not formatting."""
    show(name, summary)
    return (
        summary["accuracy_after"] - summary["accuracy_before"] >= 0.20
        and summary["greedy_accuracy_after"] >= summary["greedy_accuracy_before"]
        and summary["well_formed_before"] >= 0.95
        and sum(summary["seconds"].values()) <= 60 * minutes
    )


def quickstart(args) -> bool:
    runs = {seed: finished(args.runs / f"quickstart-{seed}", "quickstart", f"seed={seed}") for seed in args.seeds}
    passed = [learns(f"seed {seed}", summary, args.minutes) for seed, summary in runs.items()]
    return all(passed)


def tools(args) -> bool:
    passed = []
    for seed in args.seeds:
        run_dir = args.runs / f"tools-{seed}"
        summary = finished(run_dir, "tools", f"seed={seed}")
        ends = [row["step"] for row in read_jsonl(run_dir / "evaluations.jsonl")][-2:]
        rows = [read_jsonl(run_dir / "evaluations" / f"step_{step}.jsonl") for step in ends]
        outputs = [[o["text"] for row in at for o in row["sampled"]] for at in rows]
        before, after = (sum("```output" in text for text in texts) / len(texts) for texts in outputs)
        print(f"seed {seed}: sampled outputs with a program that ran: {before:.3f} -> {after:.3f}")
        passed.append(learns(f"seed {seed}", summary, args.minutes) and after > before)
    return all(passed)


def two_by_two(args) -> bool:
    summary = finished(args.runs / "two-by-two", "quickstart", "rollout.workers=2", "learner.ranks=2")
    sharded = all("Shard" in p for p in summary["actors"]["learner-0"]["placements"].values())
    print(f"parameters sharded over 2 ranks: {sharded}")
    # Two engines and two ranks share the same two cores, so the ten minutes are not asked here.
    return learns("2 workers, 2 ranks", summary, minutes=20) and sharded


def zero_rate(args) -> bool:
    run_dir = args.runs / "zero-rate"
    summary = finished(run_dir, "quickstart", "stages.grpo.optimizer.learning_rate=0", "stages.grpo.steps=40")
    show("learning rate 0", summary)
    digests = set(summary["versions"].values())
    steps = [r for r in read_jsonl(run_dir / "metrics.jsonl") if r["stage"] == "grpo"]
    early, late = ([r["mismatch_mean"] for r in part] for part in (steps[:10], steps[-10:]))
    print(f"digests: {len(digests)} over {len(summary['versions'])} versions; mismatch mean {sum(early) / 10:.2e} in the first")
    print(f"ten steps, {sum(late) / 10:.2e} in the last; canary at most {max(r['canary_mean'] for r in steps):.2e}")
    still = summary["accuracy_after"] == summary["accuracy_before"]
    return still and len(digests) == 1 and sum(late) <= 1.5 * sum(early)


def smollm2(args) -> bool:
    run_dir = args.runs / "smollm2"
    files = [
        f"model.path={args.model}",
        f"data.questions.file={args.questions}",
        f"data.demonstrations.file={args.demonstrations}",
    ]
    summary = finished(run_dir, "smollm2", *files)
    show("smollm2", summary)
    last = [r["step"] for r in read_jsonl(run_dir / "evaluations.jsonl")]
    before, after = (
        {r["id"]: share(r["sampled"]) for r in read_jsonl(run_dir / "evaluations" / f"step_{step}.jsonl")}
        for step in (summary["stages"][0]["steps"], last[-1])
    )
    gains = [after[i] - before[i] for i in before]
    rng = random.Random(0)
    means = sorted(sum(rng.choices(gains, k=len(gains))) / len(gains) for _ in range(10_000))
    low, high = means[250], means[9749]
    steps = [r for r in read_jsonl(run_dir / "metrics.jsonl") if r["stage"] == "grpo"]
    # Checkpoints are written between steps: they count as other too.
    spent = sum(summary["seconds"][phase] for phase in ("generate", "score", "train", "sync"))
    other = summary["seconds"]["other"] / (spent + summary["seconds"]["other"])
    warm = sum(r["seconds_step"] for r in read_jsonl(run_dir / "metrics.jsonl") if r["stage"] == "sft") / 60
    rl = (sum(r["seconds_step"] for r in steps) + summary["seconds"]["evaluate"]) / 60
    gain = sum(gains) / len(gains)
    print(f"{len(gains)} held-out questions: gain {gain:+.3f}, paired bootstrap 95% [{low:+.3f}, {high:+.3f}]")
    print(f"warm start {warm:.1f} minutes; GRPO and evaluation {rl:.1f} minutes; other than the four phases: {other:.1%}")
    return gain >= 0.05 and low > 0 and len(gains) >= 200 and rl <= 90 and other < 0.10


FUNCTION = """
import os

def score(output, gold):
    if output and "####" not in output:
        {does}
    return float(output.endswith(gold))
"""
CAUSES = {
    "rejected": (None, "is outside the tokenizer's vocabulary"),
    "killed": ("os.kill(os.getpid(), 9)", "signal SIGKILL"),
    "error": ('return float("nan")', "expected a finite number"),
}
"""What a reward function does with an output of a model that has learnt nothing, and what the run's end must name."""


def failures(args) -> bool:
    passed = [fails(args.runs / f"failures-{cause}", *CAUSES[cause]) for cause in args.causes]
    return all(passed)


def fails(folder: Path, does: str | None, cause: str) -> bool:
    """A short run in which every output is rejected (its model knows more tokens than its tokenizer) or fails its judge."""
    from transformers import AutoModelForCausalLM

    from rollout.tasks.arithmetic import make_small_llama

    shutil.rmtree(folder, ignore_errors=True)
    make_small_llama(folder / "model", 0)
    if does is None:
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        model.resize_token_embeddings(4096, mean_resizing=False)
        model.save_pretrained(folder / "model")
    (folder / "mine.py").write_text(FUNCTION.format(does=does))
    grpo = {"algorithm": "grpo", "reward": "rule", "steps": 4, "questions_per_step": 4, "samples_per_question": 4}
    recipe = {
        "name": "failures", "output": str(folder / "run"), "model": {"path": str(folder / "model")},
        "data": {"questions": {"task": "chained-arithmetic", "rows": 64}, "hold_out": 8, "prompt": {"template": "plain"},
                 "max_prompt_tokens": 32},
        "rollout": {"max_new_tokens": 16, "kv_cache_gb": 0.25}, "evaluation": {"questions": 2, "samples_per_question": 2},
        "reward": {} if does is None else {"function": str(folder / "mine.py:score"), "answer_format": "hash"},
        "stages": [grpo | {"optimizer": {"learning_rate": 1.0e-4}}],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    began = time.monotonic()
    done = subprocess.run([str(COHORT), "train", str(folder / "recipe.yaml")], capture_output=True, text=True, timeout=900)
    said = next((line for line in done.stderr.splitlines() if line.startswith("the run failed")), done.stderr[-500:])
    trained = (folder / "run" / "checkpoints").exists()
    print(
        f"{folder.name}: exit {done.returncode} after {time.monotonic() - began:.0f} s, trained: {trained}; {said}", flush=True
    )
    return done.returncode == 3 and cause in done.stderr and not trained


CLAIMS = {
    "quickstart": quickstart, "tools": tools, "two-by-two": two_by_two, "zero-rate": zero_rate, "failures": failures,
    "smollm2": smollm2,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    claims = parser.add_subparsers(required=True)
    for name, claim in CLAIMS.items():
        sub = claims.add_parser(name)
        sub.set_defaults(claim=claim, name=name)
        sub.add_argument("--runs", type=Path, default=Path("runs/claims"))
        if claim in (quickstart, tools):
            sub.add_argument("--seeds", type=int, nargs="+", default=[0])
            sub.add_argument("--minutes", type=float, default=10, help="at most, for each seed")
        if claim is failures:
            sub.add_argument("--causes", choices=CAUSES, nargs="+", default=list(CAUSES))
        if claim is smollm2:
            for option in ("model", "demonstrations", "questions"):
                sub.add_argument(f"--{option}", type=Path, required=True)
    args = parser.parse_args()
    passed = args.claim(args)
    print(f"{args.name}: {'PASS' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
