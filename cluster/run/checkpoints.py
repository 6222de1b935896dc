"""Checkpoints: every state of a run gathered under one manifest.

A checkpoint is written beside its folder, its files are hashed into `manifest.json`, and one rename makes it exist; so a
crash at any moment leaves those before it intact. Training waits only until the learner has copied what is to be saved; the
rest is done where it is written. The manifest lists what its writers say that it takes, not what was found.
On several nodes the run directory must be on a file system that all of them share.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from cluster.config.recipe import ConfigError
from cluster.fleet.learner_group import LearnerFailed
from cluster.records.samples import evaluation_rows
from cluster.run.manifest import damage, number, seal, sync

log = logging.getLogger("cohort")

NAME = re.compile(r"step_(\d+)")
HELD = ".held"
"""Names the checkpoint that is not to be removed."""
FULL = {errno.ENOSPC, errno.EDQUOT}
LITTLE_BYTES = 16 * 2**20
"""With less room than this, a failed write is put down to the disk: torch's own errors do not say."""


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are intact."""


class Writer(Protocol):
    """The learner, as checkpoints see it."""

    def save(self, directory: Path, written: Callable[[Mapping[str, int]], None], /) -> None:
        """Store it. It may change when this returns; `written` is called, wherever it is stored, when all is there, with
        {file: least size in bytes}."""
        ...

    def writing(self, wait: bool, /) -> bool:
        """Whether it is still being stored; `wait` until it is not. Raises what that failed of."""
        ...


class Checkpoints:
    """The checkpoints of a run directory, `checkpoints/step_N`: the `keep` newest, and the best one of those measured."""

    def __init__(self, run_dir: Path, *, keep: int):
        self.run_dir, self.root, self.keep = run_dir, run_dir / "checkpoints", keep
        self._newest = 0
        self._under_way: tuple[int, Writer] | None = None
        self.seconds = 0.0
        """That the newest one took, from its beginning until it was whole."""

    def save(self, step: int, learner: Writer, state: dict) -> None:
        """Begin a checkpoint of the learner and of `state`, which is everything else, JSON-able. It will be complete or absent.

        Raises CheckpointFailed where that can be told already, or where the one before it failed.
        """
        self.finish()
        for left in self.root.glob(".step_*.tmp"):
            shutil.rmtree(left)
        self._under_way, beside = (step, learner), self._beside(step)
        try:
            beside.mkdir(parents=True)
            (beside / "state.json").write_text(json.dumps(state))
            learner.save(beside / "learner", partial(Checkpoints(self.run_dir, keep=self.keep).complete, step))
        except BaseException as error:
            self._fail(error)
        self.finish(wait=False)

    def finish(self, *, wait: bool = True) -> None:
        """See to the checkpoint under way, if there is one; `wait` until there is none. Raises CheckpointFailed."""
        if self._under_way is None:
            return
        step, learner = self._under_way
        try:
            if self._beside(step).exists() and learner.writing(wait):
                return
        except Exception as error:
            self._fail(error)
        self._under_way, self._newest = None, step
        with suppress(OSError):  # one that a newer one has replaced
            first, last = (self.root / f"step_{step}" / name for name in ("state.json", "manifest.json"))
            self.seconds = last.stat().st_mtime - first.stat().st_mtime

    @property
    def newest_step(self) -> int:
        """Of the newest whole one that this driver began from or wrote; 0 where there is none."""
        step = self._under_way and self._under_way[0]
        return step if step and not self._beside(step).exists() else self._newest

    def begun_from(self, step: int) -> None:
        self._newest = step

    def complete(self, step: int, promised: Mapping[str, int]) -> None:
        """All being there, make the checkpoint exist, and remove those that it replaces."""
        folder, beside = self.root / f"step_{step}", self._beside(step)
        accuracies, best = self.accuracies(), self._best()
        known = [s for s in (step, *([step_of(best.name)] if best else ())) if s in accuracies]
        head = {"step": step, "number": 1 + max(map(number, self._folders()), default=0), "accuracy": accuracies.get(step)}
        head["best"] = max(known, key=lambda s: accuracies[s], default=None)
        seal(beside, head, {"state.json": 0} | {f"learner/{name}": size for name, size in promised.items()})
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
        sync(self.root)
        self._prune()

    def _beside(self, step: int) -> Path:
        return self.root / f".step_{step}.tmp"

    def _fail(self, error: BaseException) -> NoReturn:
        assert self._under_way
        step, self._under_way = self._under_way[0], None
        full = disk_full(self._beside(step), error)
        shutil.rmtree(self._beside(step), ignore_errors=True)
        if not full and (isinstance(error, LearnerFailed) or not isinstance(error, Exception)):
            raise error
        raise CheckpointFailed(f"checkpoint of step {step}: {full or error}; {self._intact()}") from error

    def kept(self) -> list[Path]:
        """The newest ones and the best, newest first."""
        folders, best = self._folders(), self._best()
        return [folder for i, folder in enumerate(folders) if i < self.keep or folder == best]

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """While the block lasts, it is not removed, whichever process writes new ones."""
        mark = self.root / HELD
        mark.write_text(folder.name)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def _prune(self) -> None:
        """Remove what is older than the newest `keep` good ones, but for the best one, and one that is held."""
        good, best, mark = 0, self._best(), self.root / HELD
        held = mark.read_text() if mark.exists() else ""
        for folder in self._folders():
            if good < self.keep:
                good += not damage(folder)
            elif folder != best and folder.name != held:
                try:
                    shutil.rmtree(folder)
                except OSError as error:  # it is tried again with the next one
                    log.warning("checkpoint %s cannot be removed: %s", folder, error)

    def _best(self) -> Path | None:
        """Of the good ones, that with the best held-out accuracy; of several, the newest."""
        accuracies = self.accuracies()
        measured = [folder for folder in self._folders() if step_of(folder.name) in accuracies]
        ranked = sorted(measured, key=lambda folder: -accuracies[step_of(folder.name)])
        return next((folder for folder in ranked if not damage(folder)), None)

    def accuracies(self) -> dict[int, float]:
        """Held-out accuracy by step, none where its file cannot be read: a run goes on without that. Of a stage's last step it
        is measured when the checkpoint is made already."""
        try:
            rows = evaluation_rows(self.run_dir)
        except (OSError, ValueError):
            return {}
        return {row["step"]: row["accuracy"] for row in rows if row["accuracy"] is not None}

    def _folders(self) -> list[Path]:
        """Newest first, by when they were written: a resumed run may have gone back to an earlier step."""
        folders = [p for p in self.root.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(folders, key=lambda p: (number(p), step_of(p.name)), reverse=True)

    def _intact(self) -> str:
        kept = self.steps()
        return (
            f"the checkpoints before it are intact (steps {', '.join(map(str, kept))})" if kept else "there is none before it"
        )

    def steps(self) -> list[int]:
        """Of which steps there are checkpoints, good or damaged."""
        return sorted(step_of(folder.name) for folder in self._folders())

    def newest(self, step: int | None = None) -> tuple[Path, dict] | None:
        """(directory, state) of the newest checkpoint that is as its manifest says, or of the one asked for; None where there
        is none. Raises ConfigError, naming each damage, where there are some and none of them is good.
        """
        damages = []
        for folder in self._folders():
            if step is not None and step_of(folder.name) != step:
                continue
            if not (why := damage(folder)):
                return folder, state_of(folder)
            log.warning("checkpoint %s is skipped: %s", folder, why)
            damages.append(f"{folder}: {why}")
        if damages:
            raise ConfigError(["no checkpoint can be used", *damages])
        return None

    def best(self) -> tuple[Path, dict] | None:
        """The same of the good one with the best held-out accuracy; None where none was measured."""
        folder = self._best()
        return folder and (folder, state_of(folder))


def state_of(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


def disk_full(folder: Path, error: BaseException) -> str:
    """That the disk of `folder` is full, with what is free, where that is why writing there failed; else nothing."""
    chain, seen = error, []
    while chain is not None and chain not in seen:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__
    said = any(getattr(e, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(e) for e in seen)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if not said and (free >= LITTLE_BYTES or isinstance(error, KeyboardInterrupt)):
        return ""
    return f"disk full: {folder}: {free / 1e6:.1f} MB free"


def step_of(name: str) -> int:
    return int(name.removeprefix("step_"))
