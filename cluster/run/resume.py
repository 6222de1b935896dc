"""A run's directory: held by one driver at a time, taken up again, exported from."""

import fcntl
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cluster.config.run_config import ConfigError, RunConfig, diff, load, refusals, resolved_yaml
from cluster.records.ledger import history
from cluster.records.samples import write_text
from cluster.run import inputs
from cluster.run.checkpoints import Checkpoints
from cluster.stopping import Stop
from rollout.config import absolute

log = logging.getLogger("cohort")


class RunDirectory:
    """A run's directory, held while the process lives and freed by the system however it ends.

    A directory that is new is removed again unless the run began: one that did not leaves nothing.
    """

    def __init__(self, path: Path):
        self.path = absolute(path)
        self.stays = self.path.is_dir() and any(self.path.iterdir())
        """Whether the run has begun."""
        self._made = [place for place in (self.path, *self.path.parents) if not place.exists()]

    def begun(self) -> None:
        """From here on the directory stays."""
        self.stays = True

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError([f"{self.path} is in use by another cohort process"]) from None
        return self

    def __exit__(self, *_) -> None:
        if not self.stays:
            for inside in self.path.iterdir():
                shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
            for place in self._made:
                if any(place.iterdir()):
                    break
                place.rmdir()
        self._file.close()


def resume(run_dir: Path, overrides: list[str], stop: Stop) -> dict:
    """Continue a run from its newest good checkpoint and return its summary; of a finished run, only that.

    Raises ConfigError when the directory is no run or in use, when an override touches what a resumed run may not change, when
    data or tokenizer are not those it began with, and when the run would begin again although it had checkpoints.
    """
    from cluster.run.launch import run

    run_config(run_dir)
    with RunDirectory(run_dir) as held:
        config, changed = run_config(run_dir), run_config(run_dir, overrides)
        if refused := refusals(config, changed):
            raise ConfigError(refused)
        if (summary := _finished(run_dir, changed)) is not None:
            log.info("%s is finished; to train on, add a stage at the end of its config.yaml", run_dir)
            return summary
        if edited := inputs.changed(config):
            raise ConfigError(edited)
        found = Checkpoints(run_dir, keep=config.keep_checkpoints).newest()
        if found is None:
            _check_beginning(run_dir, config)
        elif refused := _refused_steps(config, changed, found[1]):
            raise ConfigError(refused)
        for line in diff(config, changed):
            log.warning("changed on resume: %s", line)
        write_text(run_dir / "config.yaml", resolved_yaml(changed))
        return run(changed, held, stop, found)


def stage_facts(config: RunConfig) -> list[dict]:
    """What summary.json says of the stages that it sums up."""
    return [stage.model_dump(include={"name", "algorithm", "steps", "questions_per_step"}) for stage in config.stages]


def _finished(run_dir: Path, config: RunConfig) -> dict | None:
    """The summary of a run that has done all stages of its configuration."""
    if not (run_dir / "summary.json").exists():
        return None
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary if summary["stages"] == stage_facts(config) else None


def _check_beginning(run_dir: Path, config: RunConfig) -> None:
    """Raises ConfigError unless the run had not come to its first checkpoint."""
    path = run_dir / "ledger.jsonl"
    last = max((line["step"] for line in history(path) if line["event"] == "trained"), default=0) if path.exists() else 0
    due = min(config.checkpoint_every, config.stages[0].steps)
    if last > due:
        found = f"found no checkpoint, and the ledger shows {last} steps, the first checkpoint after {due}"
        raise ConfigError([f"{run_dir / 'checkpoints'}: {found}; expected one, as a resumed run would begin again at step 0"])
    if last:
        log.warning("no checkpoint yet, the first comes after step %d: the run begins again, its %d steps are lost", due, last)


def _refused_steps(config: RunConfig, changed: RunConfig, state: dict) -> list[str]:
    """Other `steps` of what a checkpoint's state has done."""
    out = []
    for i, (old, new) in enumerate(zip(config.stages, changed.stages, strict=False)):
        done = old.steps if i < state["stage"] else state["done"] if i == state["stage"] else 0
        if new.steps != old.steps and (done == old.steps or new.steps < done):
            out.append(f"stages.{i}.steps: {old.steps} -> {new.steps}: a resumed run cannot change it, {done} steps are done")
    return out


def export(run_dir: Path, out: Path, step: int | None = None, dtype: str = "float32") -> Path:
    """Write a checkpoint's policy as a Hugging Face directory. Needs neither Ray nor a GPU."""
    from cluster.run.launch import model_directory
    from learner.worker import LearnerWorker

    config = run_config(run_dir)
    found = Checkpoints(run_dir, keep=config.keep_checkpoints).newest(step)
    if found is None:
        raise ConfigError([f"{run_dir}: found no checkpoint" + (f" of step {step}" if step else "")])
    if out.exists() and any(out.iterdir()):
        raise ConfigError([f"{out} is not empty"])
    place, state = found
    stage = config.stages[state["stage"]]
    learner_config = config.learner.model_copy(update={"ranks": 1})
    worker = LearnerWorker(learner_config, model_directory(config), rendezvous=f"file://{run_dir.resolve()}/.export")
    try:
        worker.load(place / "learner", stage.spec(config.reward.model, config.seed))
        worker.export(out, dtype)
    finally:
        worker.close()
        (run_dir / ".export").unlink(missing_ok=True)
    return out


def run_config(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run; its `output` is this directory, wherever the run was begun, unless an override names another.

    Raises ConfigError when the directory is no run.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ConfigError([f"{run_dir} is not a run directory: config.yaml is missing"])
    begun, config = load(path), load(path, overrides)
    return config if config.output != begun.output else config.model_copy(update={"output": absolute(run_dir)})
