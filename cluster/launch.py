"""From a configuration to a finished run: the run directory, the Ray cluster, the actors, the loop, the summary."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import ray
from ray.job_config import JobConfig

from cluster import inputs
from cluster.checkpoints import FULL, CheckpointFailed, disk_full
from cluster.config import ConfigError, RunConfig, config_hash, resolved_yaml
from cluster.console import ConsoleSink
from cluster.contradictions import unread_here
from cluster.ledger import Ledger, incarnations
from cluster.metrics import JsonlSink, RayMetricsSink, Sinks, TensorBoardSink
from cluster.pipeline import Loop
from cluster.placement import PlacementError
from cluster.records import evaluation_rows, write_rows, write_text
from cluster.report import plot
from cluster.resume import RunDirectory, stage_facts
from cluster.roles import RoleFailed, Roles
from cluster.sampling import RunFailed
from cluster.sync import UpdateFailed

log = logging.getLogger("cohort")


def train(config: RunConfig) -> dict:
    """A new run. Raises ConfigError when its directory already holds one."""
    with RunDirectory(config.output) as held:
        if (held.path / "config.yaml").exists():
            raise ConfigError([f"{held.path} already holds a run: `cohort resume {held.path}`, or choose another `output`"])
        write_text(held.path / "config.yaml", resolved_yaml(config))
        return run(config, held)


def run(config: RunConfig, held: RunDirectory, resume_from: tuple[Path, dict] | None = None) -> dict:
    """Run to the end and return the summary. Raises RunFailed, or Stopped after a signal, with everything ended."""
    from rollout.leftovers import sweep

    run_dir, state = held.path, resume_from[1] if resume_from else {}
    began = time.monotonic()
    ledger = sinks = None
    try:
        (run_dir / "summary.json").unlink(missing_ok=True)
        inputs.record(config)
        for name in sweep():
            log.info("removed what a dead run left: %s", name)
        incarnation = incarnations(run_dir / "ledger.jsonl")
        ledger = Ledger(run_dir / "ledger.jsonl", incarnation=incarnation, offset=state.get("ledger_offset", 0))
        step = state.get("step", 0)
        for name in ("evaluations.jsonl", "reward_model.jsonl"):
            if (run_dir / name).exists():
                write_rows(run_dir / name, [r for r in evaluation_rows(run_dir, name) if r["step"] <= step])
        with cluster(config, incarnation), stop_flag() as stopping, roles(config, incarnation) as actors:
            sinks = Sinks(
                {
                    "the console": lambda: ConsoleSink(sum(s.steps for s in config.stages)),
                    str(run_dir / "metrics.jsonl"): lambda: JsonlSink(run_dir / "metrics.jsonl", resume_step=step),
                    str(run_dir / "tensorboard"): lambda: TensorBoardSink(run_dir / "tensorboard", resume_step=step),
                    "Ray's metrics": lambda: RayMetricsSink(config.name, run_dir.resolve()),
                }
            )
            loop = Loop(config, *load_data(config), actors, ledger, sinks)
            loop.seconds["start"] = time.monotonic() - began
            held.begun()
            loop.run(stopping, resume_from)
            summary = summarise(loop)
            with sinks.dispensable(run_dir / "summary.json"):
                write_text(run_dir / "summary.json", json.dumps(summary, indent=1))
        with sinks.dispensable(run_dir / "run.png"):
            plot(run_dir)
        return summary
    except (RoleFailed, UpdateFailed, CheckpointFailed) as error:
        raise RunFailed(str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise RunFailed(disk_full(run_dir, error)) from error
        raise
    except PlacementError as error:
        raise ConfigError([str(error)]) from error
    finally:
        for each in (sinks, ledger):
            if each is not None:
                each.close()


def model_directory(config: RunConfig) -> Path:
    """The policy's directory; a model of the project's own making is written into the run directory once."""
    if config.model.path is not None:
        return config.model.path.resolve()
    directory = (config.output / "model").resolve()
    if not (directory / "config.json").exists():
        from rollout.tasks import make_small_llama

        make_small_llama(directory, config.seed, config.model.init)
    return directory


def load_data(config: RunConfig):
    """The data of a run, rendered with its tokenizer, and the tokenizer."""
    from transformers import AutoTokenizer

    from reward.judges import gold_check
    from rollout.data import load_data

    tokenizer = AutoTokenizer.from_pretrained(model_directory(config))
    return load_data(config.data, tokenizer, config.seed, gold_check(config.reward), bool(config.rollout.tools)), tokenizer


@contextmanager
def cluster(config: RunConfig, incarnation: int) -> Iterator[None]:
    """The cluster of RAY_ADDRESS where that is set, else one of this machine's that ends with the run."""
    job = JobConfig(metadata={"cohort_run": config.name, "cohort_incarnation": str(incarnation), "config": config_hash(config)})
    common = {"namespace": "cohort", "log_to_driver": False, "job_config": job, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    if problems := unread_here(config, address=address):
        raise ConfigError(problems)
    if address:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local", include_dashboard=config.cluster.dashboard is not False,
            _metrics_export_port=config.cluster.metrics_port, **common,
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def roles(config: RunConfig, incarnation: int) -> Iterator[Roles]:
    """All actors, started; ended when the block ends, however it ends."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    actors = Roles(config, model_directory(config), max_model_len=longest, incarnation=incarnation)
    try:
        actors.start()
        yield actors
    finally:
        actors.stop()


@contextmanager
def stop_flag() -> Iterator:
    """A callable that says whether SIGTERM or SIGINT came; the second one interrupts at once."""
    came: list[int] = []

    def handle(number: int, frame) -> None:
        came.append(number)
        log.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)
        signal.signal(number, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def summarise(loop: Loop) -> dict:
    """summary.json: accuracy before and after, time and speed, who did it, and what was published.

    "Before" is the last evaluation that no outputs of the policy had been trained on.
    """
    config, rows = loop.config, loop.held_out.rows
    warm = 0
    for stage in config.stages:
        if stage.trains_policy and stage.given != "demonstrations":
            break
        warm += stage.steps
    before = max((r for r in rows if r["step"] <= warm and r["step"] < loop.step), key=lambda r: r["step"], default=None)
    after = rows[-1]
    names = ["accuracy", "greedy_accuracy", "well_formed", "unjudged"] + [
        n for n in after if n.startswith(("maj_at_", "pass_at_"))
    ]
    scores = {f"{name}_{when}": row[name] for name in names for when, row in (("before", before), ("after", after)) if row}
    sampling = loop.seconds["generate"]
    return {
        "name": config.name, "seed": config.seed, "config_hash": config_hash(config),
        "stages": stage_facts(config),
        **scores,
        "seconds": {phase: round(s, 2) for phase, s in loop.seconds.items()},
        "tokens_per_second": round(loop.sampled_tokens / sampling, 1) if sampling else None,
        "reward_models": loop.held_out.reward_models,
        "versions": loop.serving.digests, "actors": loop.roles.info, "replaced_workers": loop.roles.deaths,
        "software": installed("cohort-rl", "torch", "transformers", "ray"),
    }  # fmt: skip


def installed(*names: str) -> dict[str, str]:
    """Versions of these packages; of one that is not installed (a checkout on PYTHONPATH is none) there is no version."""
    return {name: found.version for name in names for found in distributions(name=name)}
