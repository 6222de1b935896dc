"""Short runs with everything, parts of `gpu.py`: engine, reward and learner on GPUs as `cohort train` starts them."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu import Line

RECIPE = Path(__file__).resolve().parents[1] / "deploy" / "recipes" / "quickstart.yaml"
MISMATCH = {"float32": 2e-3, "bfloat16": 3e-2}
"""Mean |engine - learner| of the sampled tokens' log-probabilities that different kernels may cause, in nats."""


def quickstart(transport: str, warm_up: int = 200, steps: int = 20, overrides: Sequence[str] = ()) -> Iterator[Line]:
    """The quickstart recipe with a shorter warm start and GRPO stage, all in float32."""
    settings = [f"stages.sft.steps={warm_up}", f"stages.grpo.steps={steps}", "evaluation.questions=64"]
    with tempfile.TemporaryDirectory() as folder:
        yield grpo(Path(folder), steps, [f"rollout.transport={transport}", *settings, *overrides])


def random_policy(shape: str, transport: str = "ipc", steps: int = 3, overrides: Sequence[str] = ()) -> Iterator[Line]:
    """GRPO in bfloat16 on a randomly initialised model; what its outputs are worth is as random."""
    import torch
    from gpu_shapes import write

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "model", shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        stage = f"{{algorithm: grpo, reward: rule, steps: {steps}, questions_per_step: 8, samples_per_question: 8, "
        settings = [
            f"model={{path: {folder}/model}}", "data.demonstrations=null", "data.questions.rows=512", "data.hold_out=16",
            f"stages=[{stage}optimizer: {{learning_rate: 1e-5}}}}]", f"reward.function={__file__}:worth",
            "rollout.dtype=bfloat16", "learner.compute_dtype=bfloat16", "learner.max_tokens_per_microbatch=8192",
            "rollout.max_new_tokens=128", "evaluation.questions=8", "evaluation.samples_per_question=1",
        ]  # fmt: skip
        yield grpo(Path(folder), steps, [f"rollout.transport={transport}", *settings, *overrides])


def worth(output: str) -> float:
    """A reward with a spread in every group."""
    return len(output) % 8 / 7


def grpo(folder: Path, steps: int, overrides: Sequence[str]) -> Line:
    """Trains in this process. Passed: every step took place on the asked device and transport, every version was another
    and was served as the canary expects (the run fails otherwise), and engine and learner agree on what was sampled."""
    from cluster.config.run_config import load
    from cluster.records.metrics import read_jsonl
    from cluster.run.launch import train
    from cluster.stopping import Stop

    run = folder / "run"
    config = load(RECIPE, [f"output={run}", "cluster.dashboard=false", *overrides])
    with Stop() as stop:
        summary = train(config, stop)
    rows = [row for row in read_jsonl(run / "metrics.jsonl") if row["stage"] == "grpo"]
    engine, learner = (summary["actors"][f"{role}-0"] for role in ("rollout", "learner"))
    figures = {
        "canary_max": max(row["canary_mean"] for row in rows),
        "mismatch_mean": max(row["mismatch_mean"] for row in rows), "mismatch_p99": max(row["mismatch_p99"] for row in rows),
        "rewards": [row["reward"] for row in rows], "seconds": summary["seconds"],
        "seconds_of_a_step": {p: sum(r[f"seconds_{p}"] for r in rows) / steps for p in ("generate", "score", "train", "sync")},
        "tokens_per_second": summary["tokens_per_second"],
        "accuracy": [summary.get(f"accuracy_{when}") for when in ("before", "after")],
        "versions": len(summary["versions"]), "different": len(set(summary["versions"].values())),
        "engine": engine, "learner": learner["device"],
    }  # fmt: skip
    passed = (
        len(rows) == steps
        and figures["different"] == figures["versions"] >= steps
        and figures["mismatch_mean"] <= MISMATCH[config.rollout.dtype]
        and engine["device"] == learner["device"]
        and engine["transport"] == config.rollout.transport
    )
    took = ", ".join(f"{phase} {seconds:.3g}" for phase, seconds in figures["seconds_of_a_step"].items())
    text = (
        f"{len(rows)} steps in {config.rollout.dtype} on {engine['device']}; {figures['versions']} versions by "
        f"{engine['transport']}{', asleep while the learner trains' if config.rollout.sleep else ''}, "
        f"{figures['different']} of them different; "
        f"canary at most {figures['canary_max']:.2g}, mismatch {figures['mismatch_mean']:.2g} (99th percentile "
        f"{figures['mismatch_p99']:.2g}) nats; seconds of a step: {took}; start {summary['seconds']['start']:.0f} s"
    )
    return Line(name="grpo", passed=passed, text=text, figures=figures)
