"""A run's directory: held by one driver at a time, and what is in it."""

import fcntl
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from cluster.config.run_config import ConfigError, RunConfig, load
from cluster.records.samples import write_text
from cluster.stopping import Stopped
from rollout.strict import absolute

ENDED = "ended.json"
"""How the last driver left the run before its end; of a driver that was killed there is none."""


class RunDirectory:
    """A run's directory, held while the process lives and freed by the system however it ends.

    A directory that is new is removed again unless the run began: one that did not leaves nothing.
    """

    def __init__(self, path: Path):
        self.path = absolute(path)
        self.stays = self.path.is_dir() and any(self.path.iterdir())
        """Whether the run has begun."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]

    def begun(self) -> None:
        """From here on the directory stays."""
        self.stays = True
        (self.path / ENDED).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError([f"{self.path} is in use by another cohort process"]) from None
        return self

    def __exit__(self, kind: object = None, error: BaseException | None = None, trace: object = None) -> None:
        if self.stays and error is not None and not isinstance(error, ConfigError):  # after that one nothing was begun
            with suppress(OSError):  # the disk may be why
                state = "stopped" if isinstance(error, Stopped) else "failed"
                write_text(self.path / ENDED, json.dumps({"state": state, "why": str(error) or type(error).__name__}))
        if not self.stays:
            for inside in self.path.iterdir():
                shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
            for folder in self._made:
                if any(folder.iterdir()):
                    break
                folder.rmdir()
        self._file.close()


def in_use(run_dir: Path) -> bool:
    """Whether a driver, on any machine, holds the run's directory."""
    try:
        with (run_dir / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def run_config(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run; its `output` is this directory, wherever the run was begun, unless an override names another.

    Raises ConfigError when the directory is no run.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ConfigError([f"{run_dir} is not a run directory: config.yaml is missing"])
    begun, config = load(path), load(path, list(overrides))
    return config if config.output != begun.output else config.model_copy(update={"output": absolute(run_dir)})


def stage_facts(config: RunConfig) -> list[dict]:
    """What summary.json says of the stages that it sums up."""
    return [stage.model_dump(include={"name", "algorithm", "steps", "questions_per_step"}) for stage in config.stages]


def finished(run_dir: Path, config: RunConfig) -> dict | None:
    """The summary of a run that has done all stages of its configuration."""
    if not (run_dir / "summary.json").exists():
        return None
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary if summary["stages"] == stage_facts(config) else None
