"""`cohort evaluate`: a model's outputs on a benchmark, sampled by rollout workers and judged by reward workers.

Every generation is stored, question by question, in OUT/generations.jsonl; a run that was killed goes on with the questions
that are left. OUT/results.json and OUT/at_k.png are made of that file alone.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from cluster.config.run_config import ConfigError, RunConfig, diff, load, resolved_yaml
from cluster.evaluation.measures import record
from cluster.fleet.sampler import Bound, Sampler, leases
from cluster.fleet.versions import OnDisk
from cluster.records.metrics import Sinks, read_jsonl
from cluster.records.samples import write_rows, write_text
from cluster.run import inputs
from cluster.run.directory import RunDirectory
from cluster.run.launch import named, started
from cluster.stopping import Stop
from reward.judging.judges import gold_check
from reward.statistics.figures import Judged, accuracy, figures, shown
from reward.types import ScoredGroup, samples_of
from rollout.data.benchmarks import BENCHMARKS
from rollout.data.datasets import load_questions
from rollout.types import Question, Sampling

log = logging.getLogger("cohort")

WAVE = 512
"""Outputs that are asked for together; what a kill loses at most."""
MAY_CHANGE = (
    *("output", "cluster.", "rollout.workers", "rollout.max_concurrent_samples", "rollout.kv_cache_gb"),
    *("reward.workers", "reward.judge", "reward.max_unscored_share"),
)
"""Settings that a run which goes on may have otherwise: they do not change its outputs' distribution."""


def evaluate_benchmark(config: RunConfig, benchmark: str, ks: Sequence[int], stop: Stop) -> dict:
    """Sample and judge what is missing, then sum up. Raises ConfigError, RunFailed, or Stopped after a signal."""
    questions = _questions(config, benchmark)
    with RunDirectory(config.output) as held:
        done = {row["ordinal"]: row for row in _kept(config)}
        left = [question for question in questions if question.ordinal not in done]
        if left:
            log.info("%s: %d questions, %d of them done before", benchmark, len(questions), len(done))
            with named(held, stop, f"what was generated is in {held.path}; the same command goes on"):
                _sample(config, held, left, len(questions), BENCHMARKS[benchmark].breakdown, stop)
        rows = read_jsonl(held.path / "generations.jsonl")
        results = {"benchmark": benchmark, "model": str(config.model.path)} | summarise(
            rows, ks, BENCHMARKS[benchmark].breakdown
        )
        results_path, picture, spare = held.path / "results.json", held.path / "at_k.png", Sinks({})
        with spare.dispensable(results_path):
            write_text(results_path, json.dumps(results, indent=1))
        if max(ks) > 1:
            from cluster.records.report import plot_at_k

            with spare.dispensable(picture):
                plot_at_k(figures(_judged(rows)), benchmark, picture)
        return results


def summarise(rows: Sequence[dict], ks: Sequence[int], breakdown: Sequence[str]) -> dict:
    """The figures of the stored generations, and accuracy by the values of the breakdown's columns."""
    found = {"rows": len(rows)} | figures(_judged(rows), ks)
    del found["questions"]
    parts = {}
    for name in breakdown:
        values = sorted({row["extras"][name] for row in rows if name in row["extras"]}, key=lambda v: (str(type(v)), v))
        if values:
            parts[name] = {str(x): _part([row for row in rows if row["extras"].get(name) == x]) for x in values}
    outputs = [output for row in rows for output in row["outputs"]]
    return found | {
        "truncated": sum(o["finish_reason"] == "length" for o in outputs) / len(outputs) if outputs else None,
        "tokens": sum(o["tokens"] for o in outputs) / len(outputs) if outputs else None,
        "breakdown": parts,
    }


def _part(rows: Sequence[dict]) -> dict:
    scorable = [[one for one in outputs if one.status != "unscorable"] for outputs in _judged(rows)]
    return {"questions": len(rows)} | shown(accuracy(scorable))


def _judged(rows: Sequence[dict]) -> list[list[Judged]]:
    names = [f.name for f in fields(Judged)]
    return [[Judged(**{name: output[name] for name in names}) for output in row["outputs"]] for row in rows]


def _questions(config: RunConfig, benchmark: str) -> list[Question]:
    """The questions, by ordinal. Raises ConfigError for a model or a file that cannot be used."""
    from transformers import AutoTokenizer

    model = Path(str(config.model.path))
    if not (model / "config.json").is_file():
        raise ConfigError([f"{model}: found no config.json; expected a Hugging Face model directory"])
    try:
        return load_questions(config.data, AutoTokenizer.from_pretrained(model), gold_check(config.reward))
    except ValueError as error:
        raise ConfigError([f"--benchmark {benchmark}, or else --question and --gold: {error}"]) from error


def _kept(config: RunConfig) -> list[dict]:
    """What an earlier run with the same settings stored. Raises ConfigError when the directory holds something else."""
    before, kept = config.output / "config.yaml", config.output / "generations.jsonl"
    if before.exists():
        changed = [line for line in diff(load(before), config) if not line.startswith(MAY_CHANGE)]
        if changed := changed + inputs.changed(config, weights=True):
            raise ConfigError([f"{config.output} holds an evaluation of something else; expected another --out", *changed])
    elif any(path.name != "lock" for path in config.output.iterdir()):
        raise ConfigError([f"{config.output} is not empty and holds no evaluation; expected another --out"])
    write_text(before, resolved_yaml(config))
    inputs.record(config, weights=True)
    if not kept.exists():
        return []
    rows = read_jsonl(kept)
    write_rows(kept, rows)  # a kill may have cut the last line
    return rows


def _sample(
    config: RunConfig, held: RunDirectory, questions: Sequence[Question], total: int, breakdown: Sequence[str], stop: Stop
) -> None:
    """Outputs of the questions, judged, into generations.jsonl as they come. Raises KeyboardInterrupt after a signal."""
    size = config.evaluation.samples_per_question
    sampling = Sampling(temperature=config.evaluation.temperature, max_new_tokens=config.rollout.max_new_tokens)
    at_once = max(1, WAVE // size)
    with started(config, 0, stop) as actors, (held.path / "generations.jsonl").open("a") as file:
        held.begun()
        stop.hold()
        sampler = Sampler(actors, Bound(config.reward.max_unscored_share), OnDisk())
        for start in range(0, len(questions), at_once):
            part = questions[start : start + at_once]
            name = f"{config.name} {part[0].ordinal}..{part[-1].ordinal}"
            with stop.breakable():
                made = sampler.sample(leases(part, config.name, size), sampling, name)
                groups = sampler.score(made, name, "rule", whole=False)
            file.writelines(json.dumps(_row(group, breakdown), ensure_ascii=False) + "\n" for group in groups)
            file.flush()
            scored = samples_of(groups)
            right = sum(s.verdict.components.get("correct") == 1.0 for s in scored)
            lost = sum(s.verdict.failed for s in scored)
            counts = part[-1].ordinal + 1, total, right, len(scored), lost
            log.info("%s: %d of %d questions, %d of the last %d outputs right, %d without a verdict", config.name, *counts)


def _row(group: ScoredGroup, breakdown: Sequence[str]) -> dict:
    extras = {name: group.question.columns[name] for name in breakdown if name in group.question.columns}
    return record(group, outputs=group) | {"extras": extras}
