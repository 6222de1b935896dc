"""Checkpoints: every state of a run gathered under one manifest, and the way back from it.

A checkpoint is written beside its place, its files are hashed into `manifest.json`, and one rename makes it exist; so a
crash at any moment leaves the newest complete one intact. Resuming takes the newest whose hashes hold. On several nodes the
run directory must be on a file system that all of them share.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.config import ConfigError, RunConfig, diff, load, refusals, resolved_yaml
from rollout.config import absolute

log = logging.getLogger("cohort")


class Checkpoints:
    """The checkpoints of a run directory, `checkpoints/step_N`."""

    def __init__(self, run_dir: Path, *, keep: int):
        self.root, self.keep = run_dir / "checkpoints", keep

    def save(self, step: int, write: Callable[[Path], None], state: dict) -> Path:
        """`write(directory)` stores the learner; `state` is everything else, JSON-able. Complete or absent, never half."""
        place, beside = self.root / f"step_{step}", self.root / f".step_{step}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside / "learner")
        (beside / "state.json").write_text(json.dumps(state))
        files = sorted(p for p in beside.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(beside)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        (beside / "manifest.json").write_text(json.dumps({"step": step, "files": manifest}, indent=1))
        for path in (*files, beside / "manifest.json", beside):
            sync(path)
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
        sync(self.root)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.root / f"step_{old}")
        return place

    def steps(self) -> list[int]:
        return sorted(int(p.name.removeprefix("step_")) for p in self.root.glob("step_*"))

    def newest(self, step: int | None = None) -> tuple[Path, dict] | None:
        """(directory, state) of the newest checkpoint whose files match its manifest, or of the one asked for."""
        for n in reversed([step] if step is not None else self.steps()):
            place = self.root / f"step_{n}"
            if damage := damaged(place):
                log.warning("checkpoint %s is skipped: %s", place, damage)
                continue
            return place, json.loads((place / "state.json").read_text())
        return None


def damaged(place: Path) -> str:
    """What is wrong with a checkpoint, naming the file; empty when all of it is as its manifest says."""
    if not (place / "manifest.json").exists():
        return "manifest.json is missing"
    for name, entry in json.loads((place / "manifest.json").read_text())["files"].items():
        path = place / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            return f"{name} does not have the content that was saved"
    return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class RunLock:
    """One driver a run directory: held while the process lives, freed by the system however it ends."""

    def __init__(self, run_dir: Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        self._file = (run_dir / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError([f"{run_dir} is in use by another cohort process"]) from None

    def release(self) -> None:
        self._file.close()


def resume(run_dir: Path, overrides: list[str]) -> dict:
    """Continue a run from its newest complete checkpoint (from the start when there is none) and return its summary.

    Raises ConfigError when the directory is no run, or an override touches what a resumed run may not change.
    """
    from cluster.launch import run

    config, changed = run_config(run_dir), run_config(run_dir, overrides)
    if refused := refusals(config, changed):
        raise ConfigError(refused)
    for line in diff(config, changed):
        log.warning("changed on resume: %s", line)
    found = Checkpoints(run_dir, keep=config.keep_checkpoints).newest()
    (run_dir / "config.yaml").write_text(resolved_yaml(changed))
    return run(changed, found)


def export(run_dir: Path, out: Path, step: int | None = None) -> Path:
    """Write a checkpoint's policy as a Hugging Face directory. Needs neither Ray nor a GPU."""
    from cluster.launch import model_directory
    from learner.worker import LearnerWorker

    config = run_config(run_dir)
    found = Checkpoints(run_dir, keep=config.keep_checkpoints).newest(step)
    if found is None:
        raise ConfigError([f"{run_dir}: no complete checkpoint" + (f" of step {step}" if step else "")])
    if out.exists() and any(out.iterdir()):
        raise ConfigError([f"{out} is not empty"])
    place, state = found
    stage = config.stages[state["stage"]]
    learner_config = config.learner.model_copy(update={"ranks": 1})
    worker = LearnerWorker(learner_config, model_directory(config), rendezvous=f"file://{run_dir.resolve()}/.export")
    try:
        worker.load(place / "learner", stage.spec(config.reward.model, config.seed))
        worker.export(out)
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
