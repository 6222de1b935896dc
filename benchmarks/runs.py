"""Runs of the project's recipes for claims and studies: kept in directories, taken up where they stopped, and read."""

import json
import math
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.records.metrics import read_jsonl
from learner.algorithms.table import TABLE

RECIPES = Path(__file__).resolve().parents[1] / "deploy" / "recipes"
COHORT = Path(sys.executable).with_name("cohort")
JUDGES = {"ppo": "outcome_model", "grpo": "outcome_model", "grpo_iterative": "process_model", "grpo_process": "process_model"}
"""Recipes whose reward is a trained model, and the recipe that trains it."""
Point = tuple[float, float, float]
"""x, and over the seeds the mean of y and its standard error."""


def finished(run_dir: Path, recipe: str, *overrides: str) -> dict:
    """The summary of the run in this directory, run or resumed first if it is not finished."""
    if not (run_dir / "summary.json").exists():
        command = ["train", str(RECIPES / f"{recipe}.yaml"), f"output={run_dir}", *overrides]
        if (run_dir / "config.yaml").exists():
            command = ["resume", str(run_dir)]
        subprocess.run([str(COHORT), *command], check=True, timeout=4 * 3600)
    return summary(run_dir)


class Runs:
    """Runs from a warm start that all recipes share, one of each for a seed."""

    def __init__(self, root: Path, seeds: Sequence[int]):
        self.root, self.seeds = root, seeds

    def warm_start(self, seed: int) -> Path:
        """The directory of the seed's warm start."""
        run, policy = self.root / f"sft-{seed}", self.root / f"sft-{seed}-policy"
        finished(run, "sft", f"seed={seed}")
        if not policy.exists():
            beside = policy.with_name(policy.name + ".new")
            shutil.rmtree(beside, ignore_errors=True)
            subprocess.run([str(COHORT), "export", str(run), str(beside)], check=True, timeout=600)
            beside.rename(policy)
        return policy

    def run(self, name: str, recipe: str, seed: int, *overrides: str) -> Path:
        """The finished run of a recipe from the seed's warm start and, where it takes one, the seed's reward model."""
        folder = self.root / f"{name}-{seed}"
        if recipe in JUDGES:
            judge = self.run(JUDGES[recipe], JUDGES[recipe], seed)
            overrides = (f"reward.model.path=[{judge / 'reward_model'}]", *overrides)
        finished(folder, recipe, f"seed={seed}", f"model.path={self.warm_start(seed)}", *overrides)
        return folder

    def all(self, name: str, recipe: str, *overrides: str) -> list[Path]:
        """One run a seed."""
        return [self.run(name, recipe, seed, *overrides) for seed in self.seeds]


def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def steps(run: Path) -> list[dict]:
    """The metrics of the steps that a run, which may go on, has finished."""
    path = run / "metrics.jsonl"
    return read_jsonl(path) if path.exists() else []


def newest_step(run: Path) -> int:
    return max((row["step"] for row in steps(run)[-1:]), default=0)


def minutes(run: Path) -> float:
    return sum(summary(run)["seconds"].values()) / 60


def gain(run: Path) -> float:
    """In held-out accuracy, from before the first step to after the last."""
    return summary(run)["accuracy_after"] - summary(run)["accuracy_before"]


def evaluations(run: Path) -> list[dict]:
    return read_jsonl(run / "evaluations.jsonl")


def questions_seen(run: Path, evaluation: dict) -> float:
    """By the policy: steps of stages that train it, times their questions."""
    seen, left = 0, evaluation["step"]
    for stage in summary(run)["stages"]:
        steps = min(left, stage["steps"])
        left -= steps
        seen += steps * stage["questions_per_step"] * (stage["algorithm"] in TABLE)
    return seen


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error over the seeds."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def curve(folders: Sequence[Path], points: Callable[[Path], Sequence[tuple[float, float]]]) -> list[Point]:
    """The points (x, y) of every run, averaged. Raises ValueError unless the runs have the same x."""
    out = []
    for at in zip(*map(points, folders), strict=True):
        if len({x for x, _ in at}) > 1:
            raise ValueError(f"{', '.join(map(str, folders))}: found points at {[x for x, _ in at]}, expected the same")
        out.append((at[0][0], *spread([y for _, y in at])))
    return out


def accuracy(run: Path) -> list[tuple[float, float]]:
    """(questions seen, held-out accuracy) at every evaluation."""
    return [(questions_seen(run, e), e["accuracy"]) for e in evaluations(run)]


def windows(run: Path, key: str, size: int = 5) -> list[tuple[float, float]]:
    """(middle step, mean of a metric) of every `size` steps."""
    lines = read_jsonl(run / "metrics.jsonl")
    parts = [lines[i : i + size] for i in range(0, len(lines), size)]
    return [(spread([r["step"] for r in part])[0], spread([r[key] for r in part])[0]) for part in parts]


def by_length(run: Path, at: int, length: dict[str, int]) -> dict[int, float]:
    """Accuracy of sampled outputs by the number of operations, at the first (0) or last (-1) evaluation."""
    marks: dict[int, list[bool]] = defaultdict(list)
    for row in read_jsonl(run / "evaluations" / f"step_{evaluations(run)[at]['step']}.jsonl"):
        marks[length[row["question"]]] += [o["correct"] is True for o in row["sampled"]]
    return {count: sum(found) / len(found) for count, found in marks.items()}
