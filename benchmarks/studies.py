"""Studies of the methods against each other, on the built-in task and the small model, from one warm start a seed.

    python benchmarks/studies.py rows        every recipe against its warm start: PASS when the gain is over two standard errors
    python benchmarks/studies.py judges      outcome model: 80% of held-out pairs; process model: 85% balanced accuracy of steps
    python benchmarks/studies.py figure5     RFT, Online RFT, GRPO with either supervision: accuracy by questions seen
    python benchmarks/studies.py figure6     iterative GRPO: accuracy after every iteration
    python benchmarks/studies.py figure7     Maj@K and Pass@K, K = 1..64, before and after GRPO, temperature 0.7
    python benchmarks/studies.py overoptimisation    a reward model's reward against the true one
    python benchmarks/studies.py noise       flipped rewards: plain against noise-robust credit
    python benchmarks/studies.py transfer    questions longer and shorter than those trained on
    python benchmarks/studies.py staleness   outputs sampled up to 0, 1, 4, 8 steps before they are trained on, corrected or not
    python benchmarks/studies.py lora        adapters against all weights: PASS where as good within the seeds' spread

One run per (row, seed) below --runs: a study goes on where it stopped, and studies share their runs. Each writes
benchmarks/<study>.json and .png and prints what it found. The lengths of recipes were chosen on seed 3.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cluster.records.metrics import read_jsonl
from plots import draw
from rollout.tasks.arithmetic import items
from runs import Runs, accuracy, by_length, curve, evaluations, gain, minutes, spread, summary, windows

HERE = Path(__file__).resolve().parent
ROWS = ("rft", "online_rft", "dpo", "ppo", "grpo", "grpo_process", "grpo_rule", "grpo_iterative")
MORE_ROWS = ("dr_grpo", "dapo", "rloo", "gspo", "cispo")
SHARED = ("sft", "outcome_model", "process_model")
"""Recipes that others start from."""
SHORT = ("stages.grpo.steps=40", "stages.grpo.questions_per_step=16", "evaluation.every=0")
Found = tuple[dict, list[str], bool]
"""The data, in words what was found, and whether it is as was asked."""


def rows(runs: Runs) -> Found:
    """Every recipe against its warm start."""
    data, words, passed = {}, [], True
    for row in ROWS + MORE_ROWS:
        places = runs.all(row, row)
        gains, longest = [gain(p) for p in places], max(minutes(p) for p in places)
        mean, error = spread(gains)
        better = mean > 2 * error and longest <= 4
        passed &= better
        data[row] = {"gains": gains, "mean": mean, "standard_error": error, "minutes": longest}
        words.append(
            f"{row}: {mean:+.3f} ± {error:.3f} (standard error), at most {longest:.1f} minutes: {'PASS' if better else 'FAIL'}"
        )
    shared = {name: max(minutes(runs.root / f"{name}-{seed}") for seed in runs.seeds) for name in SHARED}
    words.append("made once a seed: " + ", ".join(f"{name} {longest:.1f} minutes" for name, longest in shared.items()))
    return data, words, passed


def judges(runs: Runs) -> Found:
    """Outcome and process models on held-out outputs."""
    data, words, passed = {}, [], True
    for recipe, measure, least in (("outcome_model", "pair_accuracy", 0.80), ("process_model", "balanced_accuracy", 0.85)):
        found = [read_jsonl(place / "reward_model.jsonl")[-1] for place in runs.all(recipe, recipe)]
        values, areas = [row[measure] for row in found], [row["auroc"] for row in found]
        passed &= min(values) >= least
        data[recipe] = {measure: values, "auroc": areas, "mean": spread(values)[0], "standard_error": spread(values)[1]}
        shown = ", ".join(f"{value:.3f}" for value in values)
        words.append(f"{recipe}: {measure} {shown} (at least {least}); AUROC {', '.join(f'{area:.3f}' for area in areas)}")
    return data, words, passed


def offline(runs: Runs) -> list[Path]:
    """RFT with as many steps, questions and outputs as Online RFT and GRPO, sampled alike, and the same optimizer."""
    fields = {
        "steps": "30", "questions_per_step": "32", "samples_per_question": "8", "offline_questions": "null",
        "optimizer": "{learning_rate: 5e-5, warmup_updates: 3, schedule: linear}",
    }  # fmt: skip
    overrides = (f"stages.rft.{key}={value}" for key, value in fields.items())
    return runs.all("rft-30", "rft", "rollout.temperature=1.3", "evaluation.every=10", *overrides)


def figure5(runs: Runs) -> Found:
    """The paper's four, and GRPO with the rule as the reward, which separates the change of reward from that of credit."""
    places = {
        "RFT": offline(runs), "Online RFT": runs.all("online_rft", "online_rft"),
        "GRPO, rule": runs.all("grpo_rule", "grpo_rule"), "GRPO+OS": runs.all("grpo", "grpo"),
        "GRPO+PS": runs.all("grpo_process", "grpo_process"),
    }  # fmt: skip
    data = {label: curve(found, accuracy) for label, found in places.items()}
    words = []
    for label, points in data.items():
        best = max(points, key=lambda point: point[1])
        words.append(
            f"{label}: {points[0][1]:.3f} -> {points[-1][1]:.3f} ± {points[-1][2]:.3f} after {points[-1][0]:.0f} questions, "
            f"at best {best[1]:.3f} ± {best[2]:.3f} after {best[0]:.0f}"
        )
    paper = ["RFT", "Online RFT", "GRPO+OS", "GRPO+PS"]
    for when, at in (("at the end", lambda ys: ys[-1]), ("at its best", max)):
        found = sorted(paper, key=lambda label: at([y for _, y, _ in data[label]]))
        words.append(f"{when}: {' < '.join(found)}; the paper: {' < '.join(paper)}")
    asked = {name: summary(runs.run(name, name, runs.seeds[0]))["stages"][0] for name in ("outcome_model", "process_model")}
    seen = [f"{name} {stage['steps'] * stage['questions_per_step']}" for name, stage in asked.items()]
    words.append(f"questions that the reward models were trained on, one output each, are not on the axis: {', '.join(seen)}")
    return data, words, True


def overoptimisation(runs: Runs) -> Found:
    """What either reward model gives to the outputs of a step's questions, which are new, and what the rule says of them.

    As in the recipe, and from 16 questions a step with three times the rate and no higher temperature, which follows the
    model's mistakes on few questions further.
    """
    fast = {
        "steps": "40", "questions_per_step": "16", "samples_per_question": "16",
        "optimizer": "{learning_rate: 1.5e-4, warmup_updates: 10, schedule: linear}",
    }  # fmt: skip
    overrides = ["rollout.temperature=1.0", *(f"stages.0.{key}={value}" for key, value in fast.items())]
    data, words = {}, []
    kinds = [(recipe, how) for recipe in ("grpo_process", "grpo") for how in ("", "-fast")]
    for recipe, how in kinds:
        label, places = recipe + how.replace("-", ", "), runs.all(recipe + how, recipe, *(overrides if how else ()))
        said, true = (curve(places, partial(windows, key=key)) for key in ("reward", "accuracy"))
        data |= {f"{label}: the model's reward": said, f"{label}: true accuracy": true}
        best = max(true, key=lambda point: point[1])
        words.append(
            f"{label}: the model's reward {said[0][1]:.3f} -> {said[-1][1]:.3f}; true accuracy {true[0][1]:.3f} -> "
            f"{true[-1][1]:.3f}, at best {best[1]:.3f} around step {best[0]:.0f}"
        )
    return data, words, True


def figure6(runs: Runs) -> Found:
    """Accuracy after each iteration."""
    places = runs.all("grpo_iterative", "grpo_iterative")
    per_run = [[e["accuracy"] for e in evaluations(place)] for place in places]
    data = {"iterative GRPO": curve(places, lambda place: list(enumerate(e["accuracy"] for e in evaluations(place))))}
    gains = [spread([run[i] - run[i - 1] for run in per_run]) for i in range(1, len(per_run[0]))]
    words = [f"iteration {i}: {mean:+.3f} ± {error:.3f}" for i, (mean, error) in enumerate(gains)]
    most = max(range(len(gains)), key=lambda i: gains[i][0])
    clear = [i for i, (mean, error) in enumerate(gains) if mean > 2 * error]
    words.append(f"iteration {most} helps most; more than two standard errors: {clear or 'none'}")
    words.append("the paper: iterating improves the policy, most of all in the first iteration after iteration 0")
    return data, words, True


def figure7(runs: Runs) -> Found:
    """Maj@K and Pass@K before and after, from 64 outputs a question."""
    wide = ("evaluation.samples_per_question=64", "evaluation.temperature=0.7", "evaluation.every=0")
    places, data, words = runs.all("grpo_rule-64", "grpo_rule", *wide), {}, []
    for kind in ("maj", "pass"):
        ks = [2**i for i in range(7)]
        for when, at in (("before", 0), ("after", -1)):
            data[f"{kind}@K {when}"] = [(k, *spread([evaluations(p)[at][f"{kind}_at_{k}"] for p in places])) for k in ks]
        gains = {k: spread([(e := evaluations(p))[-1][f"{kind}_at_{k}"] - e[0][f"{kind}_at_{k}"] for p in places]) for k in ks}
        words.append(f"{kind}@K: " + ", ".join(f"{mean:+.3f} ± {error:.3f} at {k}" for k, (mean, error) in gains.items()))
    words.append("the paper (GSM8K and MATH): RL lifts Maj@K and leaves Pass@K as it was: outputs right already get likelier")
    return data, words, True


def noise(runs: Runs) -> Found:
    """Held-out true accuracy after training on flipped rewards.

    Denoised credit does not divide by the standard deviation: where nothing is flipped, that is all it changes.
    """
    cells = {"plain": "{{}}", "denoised": "{{cell: denoised_group_relative, flip_to_right: {0}, flip_to_wrong: {0}}}"}
    names = {("plain", 0.0): "grpo_rule"}
    data, words = {label: [] for label in cells}, []
    for share in (0.0, 0.1, 0.3):
        ends = {}
        for label, cell in cells.items():
            name = names.get((label, share), f"noise-{label}-{share:g}")
            overrides = f"reward.flip_share={share}", f"stages.grpo.credit={cell.format(share)}", "evaluation.every=0"
            places = runs.all(name, "grpo_rule", *(() if name == "grpo_rule" else overrides))
            ends[label] = [summary(p)["accuracy_after"] for p in places]
            data[label].append((share, *spread(ends[label])))
        better = spread([a - b for a, b in zip(ends["denoised"], ends["plain"], strict=True)])
        shown = ", ".join(f"{label} {points[-1][1]:.3f} ± {points[-1][2]:.3f}" for label, points in data.items())
        words.append(f"{share:.0%} flipped: {shown}; denoised - plain {better[0]:+.3f} ± {better[1]:.3f}")
    return data, words, True


def transfer(runs: Runs) -> Found:
    """Trained on three operations, asked for two to five: 200 questions each, in one file."""
    counts, path = (2, 3, 4, 5), runs.root.absolute() / "transfer.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = [item for count in counts for item in items("transfer", 200, True, (count, count))]
    path.write_text("".join(json.dumps({"question": item.question, "answer": item.answer}) + "\n" for item in asked))
    length = {item.question: len(item.operations) for item in asked}
    source = f'data.evaluation={{file: {path}, question: "{{question}}", answer: "{{answer}}"}}'
    places = runs.all("transfer", "grpo_rule", source, "rollout.max_new_tokens=64", "evaluation.every=0")
    data, words = {"before": [], "after": []}, []
    found = {when: [by_length(place, at, length) for place in places] for when, at in (("before", 0), ("after", -1))}
    for count in counts:
        for when, points in data.items():
            points.append((count, *spread([run[count] for run in found[when]])))
        (_, before, _), (_, after, _) = data["before"][-1], data["after"][-1]
        more = spread([b[count] - a[count] for a, b in zip(found["before"], found["after"], strict=True)])
        words.append(f"{count} operations: {before:.3f} -> {after:.3f} ({more[0]:+.3f} ± {more[1]:.3f})")
    return data, words, True


def staleness(runs: Runs) -> Found:
    """Gain and drift, for the clipped ratio to the policy that sampled, and with pi_old the learner's, pi_old/mu truncated."""
    cells = {"clipped": (), "decoupled": ("stages.grpo.weighting={old: learner, behaviour: {cell: truncated}}",)}
    data, words = {label: [] for label in cells}, []
    for bound in (0, 1, 4, 8):
        shown = []
        for label, cell in cells.items():
            places = runs.all(f"stale-{label}-{bound}", "grpo_rule", *SHORT, f"stages.grpo.max_staleness={bound}", *cell)
            mean, error = spread([gain(p) for p in places])
            data[label].append((bound, mean, error))
            drift = spread([spread([row["mismatch_mean"] for row in read_jsonl(p / "metrics.jsonl")])[0] for p in places])[0]
            shown.append(f"{label} {mean:+.3f} ± {error:.3f} (behaviour {drift:.4f} nats away)")
        words.append(f"max_staleness {bound}: {'; '.join(shown)}")
    return data, words, True


def lora(runs: Runs) -> Found:
    """GRPO with all weights, and with adapters at ten times the rate, which are to be as good within two standard errors."""
    rate, places = "stages.grpo.optimizer.learning_rate=5e-4", {"all weights": runs.all("short", "grpo_rule", *SHORT)}
    places |= {f"rank {r}": runs.all(f"lora-{r}", "grpo_rule", *SHORT, f"learner.lora.rank={r}", rate) for r in (32, 4)}
    every, words, passed = {label: [gain(p) for p in found] for label, found in places.items()}, [], True
    for label, gains in every.items():
        (mean, error), more = spread(gains), spread([a - b for a, b in zip(gains, every["all weights"], strict=True)])
        words.append(f"{label}: {mean:+.3f} ± {error:.3f}, against all weights {more[0]:+.3f} ± {more[1]:.3f}")
        passed &= mean > 2 * error and more[0] >= -2 * more[1]
    return {label: curve(found, accuracy) for label, found in places.items()}, words, passed


STUDIES: dict[str, Callable[[Runs], Found]] = {
    "rows": rows, "judges": judges, "figure5": figure5, "figure6": figure6, "figure7": figure7,
    "overoptimisation": overoptimisation, "noise": noise, "transfer": transfer, "staleness": staleness, "lora": lora,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"))
    args = parser.parse_args()
    data, words, passed = STUDIES[args.study](Runs(args.runs, args.seeds))
    (HERE / f"{args.study}.json").write_text(json.dumps({"seeds": args.seeds, "data": data, "found": words}, indent=1) + "\n")
    draw(args.study, data, HERE / f"{args.study}.png")
    print("\n".join(words))
    print(f"{args.study}: {'PASS' if passed else 'FAIL'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
