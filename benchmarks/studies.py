"""Studies of the methods against each other, on the built-in task and the small model, from one warm start a seed.

    python benchmarks/studies.py rows        every recipe against its warm start: PASS when the gain is over two standard errors
    python benchmarks/studies.py judges      outcome model: 80% of held-out pairs; process model: 85% balanced accuracy of steps
    python benchmarks/studies.py figure5     RFT, Online RFT, GRPO with either supervision: accuracy by questions seen
    python benchmarks/studies.py figure6     iterative GRPO: accuracy after 0, 1, 2 iterations
    python benchmarks/studies.py figure7     Maj@K and Pass@K, K = 1..64, before and after GRPO, temperature 0.7
    python benchmarks/studies.py noise       flipped rewards: plain against noise-robust credit
    python benchmarks/studies.py selection   which questions are asked: uniform, by difficulty, prioritised
    python benchmarks/studies.py transfer    questions longer and shorter than those trained on

One run per (row, seed) below --runs: a study goes on where it stopped, and studies share their runs. Each writes
benchmarks/<study>.json and .png and prints what it found.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from claims import finished, rows

from learner.algorithms import TABLE

HERE = Path(__file__).resolve().parent
COHORT = Path(sys.executable).with_name("cohort")
ROWS = ("rft", "online_rft", "dpo", "ppo", "grpo", "grpo_process", "grpo_rule", "grpo_iterative")
MORE_ROWS = ("dr_grpo", "dapo", "rloo", "gspo", "cispo")
JUDGES = {"ppo": "outcome_model", "grpo": "outcome_model", "grpo_iterative": "outcome_model", "grpo_process": "process_model"}
"""Recipes whose reward is a trained model, and the recipe that trains it."""


class Runs:
    """Runs of the recipes, one a directory."""

    def __init__(self, root: Path, seeds: Sequence[int]):
        self.root, self.seeds = root, seeds

    def warm_start(self, seed: int) -> Path:
        """The directory of the seed's warm start."""
        run, policy = self.root / f"warm-{seed}", self.root / f"warm-{seed}-policy"
        if not policy.exists():
            finished(run, "sft", f"seed={seed}")
            beside = policy.with_name(policy.name + ".new")
            shutil.rmtree(beside, ignore_errors=True)
            subprocess.run([str(COHORT), "export", str(run), str(beside)], check=True, timeout=600)
            beside.rename(policy)
        return policy

    def run(self, name: str, recipe: str, seed: int, *overrides: str) -> Path:
        """The finished run of a recipe from the seed's warm start and, where it takes one, the seed's reward model."""
        place = self.root / f"{name}-{seed}"
        if recipe in JUDGES:
            judge = self.run(JUDGES[recipe], JUDGES[recipe], seed)
            overrides = (f"reward.model.path=[{judge / 'reward_model'}]", *overrides)
        finished(place, recipe, f"seed={seed}", f"model.path={self.warm_start(seed)}", *overrides)
        return place

    def all(self, name: str, recipe: str, *overrides: str) -> list[Path]:
        """One run a seed."""
        return [self.run(name, recipe, seed, *overrides) for seed in self.seeds]


def evaluations(run: Path) -> list[dict]:
    return rows(run / "evaluations.jsonl")


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error over the seeds."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def rows_study(runs: Runs) -> tuple[dict, list[str], bool]:
    """Every recipe against its warm start."""
    data, words, passed = {}, [], True
    for row in ROWS + MORE_ROWS:
        places = runs.all(row, row)
        gains = [summary(p)["accuracy_after"] - summary(p)["accuracy_before"] for p in places]
        minutes = max(sum(summary(p)["seconds"].values()) for p in places) / 60
        mean, error = spread(gains)
        better = mean > 2 * error and minutes <= 4
        passed &= better
        data[row] = {"gains": gains, "mean": mean, "standard_error": error, "minutes": minutes}
        words.append(
            f"{row}: {mean:+.3f} ± {error:.3f} (standard error), {minutes:.1f} minutes: {'PASS' if better else 'FAIL'}"
        )
    return data, words, passed


def curve(places: Sequence[Path], x, y: str = "accuracy") -> list[tuple[float, float, float]]:
    """(x, mean, standard error) over the runs at every evaluation; `x` maps (run, evaluation) to a number."""
    per_run = [[(x(p, e), e[y]) for e in evaluations(p)] for p in places]
    return [(points[0][0], *spread([v for _, v in points])) for points in zip(*per_run, strict=True)]


def questions_seen(run: Path, evaluation: dict) -> float:
    """By the policy: steps of stages that train it, times their questions."""
    seen = 0
    left = evaluation["step"]
    for stage in summary(run)["stages"]:
        steps = min(left, stage["steps"])
        left -= steps
        seen += steps * stage["questions_per_step"] * (stage["algorithm"] in TABLE)
    return seen


def judges(runs: Runs) -> tuple[dict, list[str], bool]:
    """Outcome and process models on held-out outputs."""
    data, words, passed = {}, [], True
    for recipe, measure, least in (("outcome_model", "pair_accuracy", 0.80), ("process_model", "balanced_accuracy", 0.85)):
        found = [rows(place / "reward_model.jsonl")[-1] for place in runs.all(recipe, recipe)]
        values, areas = [row[measure] for row in found], [row["auroc"] for row in found]
        passed &= min(values) >= least
        data[recipe] = {measure: values, "auroc": areas, "mean": spread(values)[0], "standard_error": spread(values)[1]}
        shown = ", ".join(f"{value:.3f}" for value in values)
        words.append(f"{recipe}: {measure} {shown} (at least {least}); AUROC {', '.join(f'{area:.3f}' for area in areas)}")
    return data, words, passed


def figure5(runs: Runs) -> tuple[dict, list[str], bool]:
    """The paper's four, and GRPO with the rule as the reward, which separates the change of reward from that of credit."""
    names = {
        "RFT": "rft", "Online RFT": "online_rft", "GRPO, rule": "grpo_rule", "GRPO+OS": "grpo", "GRPO+PS": "grpo_process",
    }  # fmt: skip
    data = {label: curve(runs.all(recipe, recipe), questions_seen) for label, recipe in names.items()}
    ends = {label: points[-1][1:] for label, points in data.items()}
    words = [f"{label}: {mean:.3f} ± {error:.3f} at the end" for label, (mean, error) in ends.items()]
    paper = ["RFT", "Online RFT", "GRPO+OS", "GRPO+PS"]
    found = sorted(paper, key=lambda label: ends[label][0])
    words.append(f"the paper's order is {' < '.join(paper)}; found {' < '.join(found)}")
    return data, words, True


def figure6(runs: Runs) -> tuple[dict, list[str], bool]:
    """Accuracy after each iteration."""
    points = curve(runs.all("grpo_iterative", "grpo_iterative"), lambda run, e: e["step"])
    data = {"iterative GRPO": [(i, mean, error) for i, (_, mean, error) in enumerate(points)]}
    gains = [b[1] - a[1] for a, b in zip(points, points[1:], strict=False)]
    words = [f"iteration {i}: {gain:+.3f}" for i, gain in enumerate(gains, 1)]
    words.append(
        "the paper: two rounds of iteration, the first helps most; here " + ("so too" if gains[0] > gains[1] else "not so")
    )
    return data, words, True


def figure7(runs: Runs) -> tuple[dict, list[str], bool]:
    """Maj@K and Pass@K before and after, from 64 outputs a question."""
    wide = ("evaluation.samples_per_question=64", "evaluation.temperature=0.7")
    places, data, words = runs.all("grpo_rule-64", "grpo_rule", *wide), {}, []
    for kind in ("maj", "pass"):
        for when, at in (("before", 0), ("after", -1)):
            ks = [2**i for i in range(7)]
            data[f"{kind}@K {when}"] = [(k, *spread([evaluations(p)[at][f"{kind}_at_{k}"] for p in places])) for k in ks]
        gain = data[f"{kind}@K after"][-1][1] - data[f"{kind}@K before"][-1][1]
        words.append(f"{kind}@64 {gain:+.3f} (the paper, GSM8K: {'+0.015' if kind == 'maj' else '-0.018'})")
    return data, words, True


def noise(runs: Runs) -> tuple[dict, list[str], bool]:
    """Held-out true accuracy after training on flipped rewards.

    Denoised credit does not divide by the standard deviation, so plain credit without it stands beside.
    """
    cells = {
        "plain": "{{}}",
        "without-std": "{{normalize_std: false}}",
        "denoised": "{{cell: denoised_group_relative, flip_to_right: {0}, flip_to_wrong: {0}}}",
    }
    # Without flips these are the same runs.
    names = {("plain", 0.0): "grpo_rule", ("denoised", 0.0): "noise-without-std-0"}
    data, words = {label: [] for label in cells}, []
    for share in (0.0, 0.1, 0.3):
        for label, cell in cells.items():
            name = names.get((label, share), f"noise-{label}-{share:g}")
            overrides = f"reward.flip_share={share}", f"stages.grpo.credit={cell.format(share)}"
            places = runs.all(name, "grpo_rule", *overrides)
            data[label].append((share, *spread([summary(p)["accuracy_after"] for p in places])))
        shown = ", ".join(f"{label} {points[-1][1]:.3f} ± {points[-1][2]:.3f}" for label, points in data.items())
        words.append(f"{share:.0%} flipped: {shown}")
    return data, words, True


def selection(runs: Runs) -> tuple[dict, list[str], bool]:
    """A pool of 128 questions, so that each is asked several times."""
    data = {}
    for cell in ("uniform", "by_difficulty", "prioritised"):
        places = runs.all(
            f"selection-{cell}",
            "grpo_rule",
            "data.questions.rows=128",
            f"stages.grpo.selection={{cell: {cell}}}",
            "evaluation.every=10",
        )
        data[cell] = curve(places, questions_seen)
    return data, [f"{cell}: {points[-1][1]:.3f} ± {points[-1][2]:.3f}" for cell, points in data.items()], True


def transfer(runs: Runs) -> tuple[dict, list[str], bool]:
    """Trained on three operations, asked for two to five."""
    data, words = {"before": [], "after": []}, []
    for count in (2, 3, 4, 5):
        asked = f"data.evaluation={{task: chained-arithmetic, operations: {count}, rows: 200}}"
        places = runs.all(f"transfer-{count}", "grpo_rule", asked, "rollout.max_new_tokens=64")
        for when in data:
            data[when].append((count, *spread([summary(p)[f"accuracy_{when}"] for p in places])))
        words.append(f"{count} operations: {data['before'][-1][1]:.3f} -> {data['after'][-1][1]:.3f}")
    return data, words, True


STUDIES = {
    "rows": rows_study, "judges": judges, "figure5": figure5, "figure6": figure6, "figure7": figure7,
    "noise": noise, "selection": selection, "transfer": transfer,
}  # fmt: skip
AXES = {
    "figure5": "questions seen", "figure6": "iterations", "figure7": "K", "noise": "share of flipped rewards",
    "selection": "questions seen", "transfer": "operations in a question",
}  # fmt: skip


def draw(study: str, data: dict) -> None:
    """Means with their standard errors over the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    if study not in AXES:
        axes.barh(list(data), [d["mean"] for d in data.values()], xerr=[d["standard_error"] for d in data.values()], capsize=3)
        axes.set_xlabel("gain in held-out accuracy over the warm start" if study == "rows" else "accuracy on held-out outputs")
    else:
        for label, points in data.items():
            x, mean, error = zip(*points, strict=True)
            axes.errorbar(x, mean, yerr=error, marker="o", capsize=3, label=label)
        axes.set_xlabel(AXES[study])
        axes.set_ylabel("held-out accuracy")
        axes.legend(fontsize=8)
    if study == "figure7":
        axes.set_xscale("log", base=2)
    axes.grid(alpha=0.3)
    figure.savefig(HERE / f"{study}.png", dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    args = parser.parse_args()
    data, words, passed = STUDIES[args.study](Runs(args.runs, args.seeds))
    (HERE / f"{args.study}.json").write_text(json.dumps({"seeds": args.seeds, "data": data, "found": words}, indent=1) + "\n")
    draw(args.study, data)
    print("\n".join(words))
    print(f"{args.study}: {'PASS' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
