"""From a configuration to a finished run: the run directory, the Ray cluster, the actors, the loop, the summary."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import distributions
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.run_config import ConfigError, RunConfig, config_hash, resolved_yaml
from cluster.evaluation.held_out import HeldOut
from cluster.fibers import HUB, Stuck
from cluster.fleet.bundles import PlacementError
from cluster.fleet.calls import RoleFailed
from cluster.fleet.connection import connected
from cluster.fleet.learner_group import LearnerFailed
from cluster.fleet.roles import Roles, patience
from cluster.fleet.versions import Serving
from cluster.fleet.weight_update import UpdateFailed
from cluster.monitoring.alarms import Alarms
from cluster.records import trackers
from cluster.records.clock import Clock
from cluster.records.console import ConsoleSink
from cluster.records.ledger import Ledger, incarnations
from cluster.records.metrics import JsonlSink, RayMetricsSink, Sinks, TensorBoardSink
from cluster.records.records import Records
from cluster.records.report import plot
from cluster.records.samples import evaluation_rows, write_rows, write_text
from cluster.run import inputs
from cluster.run.checkpoints import FULL, CheckpointFailed, Checkpoints, disk_full
from cluster.run.directory import RunDirectory, stage_facts
from cluster.run.loop import Loop
from cluster.run.mirror import mirrored
from cluster.run.request import scaled
from cluster.stopping import RunFailed, Stop, Stopped, grace_s
from rollout.data.datasets import Data
from rollout.leftovers import sweep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("cohort")

STOP_S = 20.0
"""For engines to end in order before they are killed."""


def train(config: RunConfig, stop: Stop) -> dict:
    """A new run. Raises ConfigError when its directory already holds one."""
    with RunDirectory(config.output) as held:
        if (held.path / "config.yaml").exists():
            raise ConfigError([f"{held.path} already holds a run: `cohort resume {held.path}`, or choose another `output`"])
        write_text(held.path / "config.yaml", resolved_yaml(config))
        return run(config, held, stop)


def run(config: RunConfig, held: RunDirectory, stop: Stop, resume_from: tuple[Path, dict] | None = None) -> dict:
    """Run to the end and return the summary. Raises RunFailed, or Stopped after a signal, with everything ended."""
    with named(held, stop, f"`cohort resume {held.path}` goes on from the newest checkpoint"):
        return _run(config, held, stop, resume_from)


def _run(config: RunConfig, held: RunDirectory, stop: Stop, resume_from: tuple[Path, dict] | None) -> dict:
    run_dir, clock = held.path, Clock(stop)
    (run_dir / "summary.json").unlink(missing_ok=True)
    inputs.record(config)
    swept()
    with (
        mirrored(config, stop, begins=resume_from is None) as mirror,
        started(config, incarnations(run_dir / "ledger.jsonl"), stop) as actors,
    ):
        log.info("reading the data")
        data, tokenizer = load_data(config)
        held.begun()
        loop = lived(config, data, tokenizer, actors, clock, resume_from)
        summary = summarise(config, loop.held_out, loop.serving, actors, loop.clock, loop.collector.tokens)
        summary |= {"mirror": mirror.finish()} if mirror else {}
        with loop.records.sinks.dispensable(run_dir / "summary.json"):
            write_text(run_dir / "summary.json", json.dumps(summary, indent=1))
    with loop.records.sinks.dispensable(run_dir / "run.png"):
        plot(run_dir)
    return summary


def lived(
    config: RunConfig,
    data: Data,
    tokenizer: "PreTrainedTokenizerBase",
    actors: Roles,
    clock: Clock,
    resume_from: tuple[Path, dict] | None,
) -> Loop:
    """The loop at the end of the run. Whenever a rank of the learner fails, all ranks are replaced, and another life of the run
    goes on from the newest checkpoint. Raises RunFailed, and RoleFailed where the crash budget is spent."""
    while True:
        try:
            with opened(config, resume_from[1] if resume_from else {}, clock.stop) as records:
                loop = Loop(config, data, tokenizer, actors, records, clock)
                loop.run(resume_from)
                return loop
        except LearnerFailed as error:
            clock = Clock(clock.stop)
            with clock.stop.breakable():
                actors.restart_learner(str(error))
                swept()
            try:
                resume_from = Checkpoints(config.output, keep=config.keep_checkpoints).newest()
            except ConfigError as damages:
                raise RunFailed(f"{error}; {damages}") from error
            log.warning("the run goes on from step %d", resume_from[1]["step"] if resume_from else 0)


@contextmanager
def opened(config: RunConfig, state: dict, stop: Stop) -> Iterator[Records]:
    """The records of one life of the run, from a checkpoint's state on (of a run that begins: an empty one)."""
    run_dir, step = config.output, state.get("step", 0)
    for name in ("evaluations.jsonl", "reward_model.jsonl"):
        if (run_dir / name).exists():
            write_rows(run_dir / name, [r for r in evaluation_rows(run_dir, name) if r["step"] <= step])
    path = run_dir / "ledger.jsonl"
    with ExitStack() as files:
        ledger = Ledger(path, incarnation=incarnations(path), offset=state.get("ledger_offset", 0))
        files.callback(ledger.close)
        openers = {
            "the console": lambda: ConsoleSink(sum(s.steps for s in config.stages)),
            str(run_dir / "metrics.jsonl"): lambda: JsonlSink(run_dir / "metrics.jsonl", resume_step=step),
            str(run_dir / "tensorboard"): lambda: TensorBoardSink(run_dir / "tensorboard", resume_step=step),
            str(run_dir / "alarms.jsonl"): lambda: Alarms(run_dir, resume_step=step),
            "Ray's metrics": lambda: RayMetricsSink(config.name, run_dir.resolve()),
            **trackers.openers(config, stop),
        }
        sinks = Sinks(openers)
        files.push(lambda kind, *_: sinks.close(broken_off=kind is not None))
        yield Records(dir=run_dir.resolve(), ledger=ledger, sinks=sinks)


@contextmanager
def named(held: RunDirectory, stop: Stop, goes_on: str) -> Iterator[None]:
    """Failures as what they mean for the run; `goes_on` tells how a stopped one is taken up again."""
    try:
        yield
    except (RoleFailed, UpdateFailed, CheckpointFailed, Stuck) as error:
        raise RunFailed(str(error)) from error
    except KeyboardInterrupt:
        if not stop.asked:
            raise
        raise Stopped(f"stopped by a signal; {goes_on if held.stays else 'nothing was begun'}") from None
    except OSError as error:
        if error.errno in FULL:
            raise RunFailed(disk_full(held.path, error)) from error
        raise
    except PlacementError as error:
        raise ConfigError([str(error)]) from error


def model_directory(config: RunConfig) -> Path:
    """The policy's directory; a model of the project's own making is written into the run directory once."""
    if config.model.path is not None:
        return config.model.path.resolve()
    directory = (config.output / "model").resolve()
    if not (directory / "config.json").exists():
        from rollout.tasks.arithmetic import make_small_llama

        make_small_llama(directory, config.seed, str(config.model.init))
    return directory


def load_data(config: RunConfig):
    """The data of a run, rendered with its tokenizer, and the tokenizer."""
    from transformers import AutoTokenizer

    from reward.judging.judges import gold_check
    from rollout.data.datasets import load_data

    tokenizer = AutoTokenizer.from_pretrained(model_directory(config))
    return load_data(config.data, tokenizer, config.seed, gold_check(config.reward), bool(config.rollout.tools)), tokenizer


@contextmanager
def started(config: RunConfig, incarnation: int, stop: Stop) -> Iterator[Roles]:
    """The cluster and all actors, started; ended when the block ends, however it ends, and nothing of them is left."""
    stop.grace_s = grace_s(config.cluster.stop_grace_s)
    try:
        with connected(config, incarnation, stop), brought_up(config, incarnation, stop) as actors:
            yield actors
    finally:
        swept()


def swept() -> None:
    """Remove from this node what dead processes left."""
    for name in sweep():
        log.info("removed what a dead process left: %s", name)


@contextmanager
def brought_up(config: RunConfig, incarnation: int, stop: Stop) -> Iterator[Roles]:
    """All actors, started; ended when the block ends, within the time that a stop leaves."""
    counts = {"engine": config.rollout.workers, "learner rank": config.learner.ranks, "reward actor": config.reward.workers}
    log.info("starting %s", ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count))
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    actors = Roles(config, model_directory(config), max_model_len=longest, incarnation=incarnation)
    HUB.allow(*patience(config))
    try:
        actors.start()
        yield actors
    except (RoleFailed, Stuck) as error:
        actors.watch.testify(str(error))
        raise
    finally:
        stop.disarm()
        actors.stop(min(STOP_S, stop.left_s() / 2))


def summarise(config: RunConfig, held_out: HeldOut, serving: Serving, actors: Roles, clock: Clock, sampled_tokens: int) -> dict:
    """summary.json of a run at its end: accuracy before and after, time and speed, who did it, and what was published.

    "Before" is the last evaluation that no outputs of the policy had been trained on.
    """
    rows, last = held_out.rows, sum(stage.steps for stage in config.stages)
    warm = sum(s.steps for s in takewhile(lambda s: not s.trains_policy or s.given == "demonstrations", config.stages))
    before = max((r for r in rows if r["step"] <= warm and r["step"] < last), key=lambda r: r["step"], default=None)
    after = rows[-1]
    at_k = [name for name in after if name.startswith(("maj_at_", "pass_at_"))]
    names = ["accuracy", "greedy_accuracy", "well_formed", "unjudged", *at_k]
    figures = {f"{name}_{when}": row[name] for name in names for when, row in (("before", before), ("after", after)) if row}
    spent = clock.spent()
    return {
        "name": config.name,
        "seed": config.seed,
        "config_hash": config_hash(scaled(config, actors.wanted)),
        "stages": stage_facts(config),
        **figures,
        "seconds": {phase: round(s, 2) for phase, s in spent.items()},
        "tokens_per_second": round(sampled_tokens / sampling, 1) if (sampling := spent["generate"]) else None,
        "reward_models": held_out.reward_models,
        "versions": serving.digests,
        "lives": serving.lives,
        "actors": actors.info,
        "workers": {"rollout": len(actors.slots()), "reward": len(actors.reward_slots())},
        "replaced_workers": actors.deaths,
        "software": installed("cohort-rl", "torch", "transformers", "ray"),
    }


def installed(*names: str) -> dict[str, str]:
    """Versions of these packages; of one that is not installed (a checkout on PYTHONPATH is none) there is no version."""
    return {name: found.version for name in names for found in distributions(name=name)}
