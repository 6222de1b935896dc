"""A run taken up again, or exported from."""

import logging
from pathlib import Path

from cluster.config.run_config import ConfigError, RunConfig, diff, refusals, resolved_yaml
from cluster.records.ledger import history
from cluster.records.samples import write_text
from cluster.run import inputs
from cluster.run.checkpoints import Checkpoints
from cluster.run.directory import RunDirectory, finished, run_config
from cluster.run.mirror import restore
from cluster.run.store import Store, newest_first, unusable
from cluster.stopping import Stop

log = logging.getLogger("cohort")


def resume(run_dir: Path, wanted: list[str] | RunConfig, stop: Stop, mirror: str | None = None) -> dict:
    """Continue a run from its newest good checkpoint and return its summary; of a finished run, only that.

    `wanted`: overrides, or the whole configuration that it is to have from here on. With a `mirror`, the directory is new, and
    made of the newest good copy there.
    Raises ConfigError when the directory is no run or in use, when an override touches what a resumed run may not change, when
    data or tokenizer are not those it began with, and when the run would begin again although it had checkpoints.
    """
    from cluster.run.launch import run

    if mirror is None:
        run_config(run_dir)
    with RunDirectory(run_dir) as held:
        if mirror is not None:
            if held.stays:
                raise ConfigError([f"{run_dir} is not empty; expected a new directory for what is taken from {mirror}"])
            restore(mirror, held.path)
            held.begun()
        config = run_config(run_dir)
        changed = wanted if isinstance(wanted, RunConfig) else run_config(run_dir, wanted)
        if refused := refusals(config, changed):
            raise ConfigError(refused)
        if (summary := finished(run_dir, changed)) is not None:
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
        kept = (run_dir / "config.yaml").read_text(encoding="utf-8")
        write_text(run_dir / "config.yaml", resolved_yaml(changed))
        try:
            return run(changed, held, stop, found)
        except ConfigError:  # what does not fit here is not what the run has
            write_text(run_dir / "config.yaml", kept)
            raise


def resume_as(config: RunConfig, stop: Stop) -> dict | None:
    """Continue the run that `output`, or else `mirror`, holds, by the rules of `resume`; None where neither holds one."""
    if (config.output / "config.yaml").exists():
        return resume(config.output, config, stop)
    if config.mirror and not unusable(config.mirror) and newest_first(Store(config.mirror).copies()):
        return resume(config.output, config, stop, config.mirror)
    return None


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


def export(
    run_dir: Path, out: Path, step: int | None = None, dtype: str = "float32", *, best: bool = False, adapter: bool = False
) -> Path:
    """Write a checkpoint's policy as a Hugging Face directory, merged where it has an adapter, or the `adapter` alone: the
    newest's, that of a step, or the best one's by held-out accuracy. Needs neither Ray nor a GPU."""
    from cluster.run.launch import model_directory
    from learner.worker import LearnerWorker

    config = run_config(run_dir)
    if adapter and config.learner.lora is None:
        raise ConfigError([f"{run_dir}: found no adapter, as the run has no learner.lora; expected no --adapter"])
    checkpoints = Checkpoints(run_dir, keep=config.keep_checkpoints)
    found = checkpoints.best() if best else checkpoints.newest(step)
    if found is None:
        which = " with a held-out accuracy" if best else f" of step {step}" if step else ""
        raise ConfigError([f"{run_dir}: found no checkpoint{which}"])
    if out.exists() and any(out.iterdir()):
        raise ConfigError([f"{out} is not empty"])
    folder, state = found
    stage = config.stages[state["stage"]]
    learner_config = config.learner.model_copy(update={"ranks": 1})
    worker = LearnerWorker(learner_config, model_directory(config), rendezvous=f"file://{run_dir.resolve()}/.export")
    try:
        spec = stage.spec(config.reward.model, config.seed)
        worker.load(folder / "learner", spec.model_copy(update={"teacher": None}))  # nothing is taught
        worker.export(out, dtype, adapter=adapter)
    finally:
        worker.close()
        (run_dir / ".export").unlink(missing_ok=True)
    return out
