"""Checkpoints: every state of a run gathered under one manifest.

A checkpoint is written beside its place, its files are hashed into `manifest.json`, and one rename makes it exist; so a
crash at any moment leaves those before it intact. The manifest lists what its writers say that it takes, not what was found.
On several nodes the run directory must be on a file system that all of them share.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from cluster.config.recipe import ConfigError

log = logging.getLogger("cohort")

NAME = re.compile(r"step_(\d+)")
FULL = {errno.ENOSPC, errno.EDQUOT}
LITTLE_BYTES = 16 * 2**20
"""With less room than this, a failed write is put down to the disk: torch's own errors do not say."""
SETTLED_SECONDS = 1.0
"""A file that has not changed for so long shows a later change in its times."""


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are intact."""


class Checkpoints:
    """The checkpoints of a run directory, `checkpoints/step_N`."""

    def __init__(self, run_dir: Path, *, keep: int):
        self.root, self.keep = run_dir / "checkpoints", keep

    def save(self, step: int, write: Callable[[Path], Mapping[str, int]], state: dict) -> Path:
        """`write(directory)` stores the learner and returns {file: least size in bytes} of what that takes; `state` is
        everything else, JSON-able. Complete or absent, never half; then only the `keep` newest good ones stay.

        Raises CheckpointFailed where a file is missing or the disk is full.
        """
        place, beside = self.root / f"step_{step}", self.root / f".step_{step}.tmp"
        for left in self.root.glob(".step_*.tmp"):
            shutil.rmtree(left)
        try:
            beside.mkdir(parents=True)
            promised = write(beside / "learner")
            (beside / "state.json").write_text(json.dumps(state))
            self._seal(beside, step, {"state.json": 0} | {f"learner/{name}": size for name, size in promised.items()})
        except BaseException as error:
            full = disk_full(beside, error)
            shutil.rmtree(beside, ignore_errors=True)
            if full:
                raise CheckpointFailed(f"checkpoint of step {step}: {full}; {self._intact()}") from error
            raise
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
        sync(self.root)
        self._prune()
        return place

    def _seal(self, folder: Path, step: int, promised: Mapping[str, int]) -> None:
        """Write the manifest, everything being there and on disk."""
        for name, least in promised.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found is None or found < least:
                why = f"{name} is missing" if found is None else f"{name} has {found} of at least {least} bytes"
                shared = "on several nodes the run directory must be on a file system that all of them share"
                raise CheckpointFailed(f"checkpoint of step {step}: {why} ({shared}); {self._intact()}")
        files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in promised}
        number = 1 + max(map(_number, self._places()), default=0)
        (folder / "manifest.json").write_text(_manifest({"step": step, "number": number, "files": files}))
        for path in (*(folder / name for name in promised), folder / "manifest.json", folder / "learner", folder):
            sync(path)

    def _prune(self) -> None:
        """Remove what is older than the newest `keep` good ones."""
        good = 0
        for place in self._places():
            if good == self.keep:
                shutil.rmtree(place)
            elif not damage(place):
                good += 1

    def _places(self) -> list[Path]:
        """Newest first, by when they were written: a resumed run may have gone back to an earlier step."""
        places = [p for p in self.root.glob("step_*") if NAME.fullmatch(p.name) and p.is_dir()]
        return sorted(places, key=lambda p: (_number(p), _step(p)), reverse=True)

    def _intact(self) -> str:
        kept = self.steps()
        return (
            f"the checkpoints before it are intact (steps {', '.join(map(str, kept))})" if kept else "there is none before it"
        )

    def steps(self) -> list[int]:
        """Of which steps there are checkpoints, good or damaged."""
        return sorted(map(_step, self._places()))

    def newest(self, step: int | None = None) -> tuple[Path, dict] | None:
        """(directory, state) of the newest checkpoint that is as its manifest says, or of the one asked for; None where there
        is none. Raises ConfigError, naming each damage, where there are some and none of them is good.
        """
        damages = []
        for place in self._places():
            if step is not None and _step(place) != step:
                continue
            if not (why := damage(place)):
                return place, json.loads((place / "state.json").read_text())
            log.warning("checkpoint %s is skipped: %s", place, why)
            damages.append(f"{place}: {why}")
        if damages:
            raise ConfigError(["no checkpoint can be used", *damages])
        return None


def damage(place: Path) -> str:
    """What is wrong with a checkpoint, naming the file; empty when all of it is as its manifest says."""
    try:
        text = (place / "manifest.json").read_text()
        manifest = json.loads(text)
        if text != _manifest(manifest):
            return "manifest.json does not have the content that was saved"
        for name, entry in manifest["files"].items():
            path = place / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} does not have the content that was saved"
    except FileNotFoundError:
        return "manifest.json is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is not a checkpoint's"
    return ""


def disk_full(place: Path, error: BaseException) -> str:
    """That the disk of `place` is full, with what is free, where that is why writing there failed; else nothing."""
    chain, seen = error, []
    while chain is not None and chain not in seen:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__
    said = any(getattr(e, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(e) for e in seen)
    there = next(p for p in (place, *place.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if not said and (free >= LITTLE_BYTES or isinstance(error, KeyboardInterrupt)):
        return ""
    return f"disk full: {place}: {free / 1e6:.1f} MB free"


def _manifest(body: Mapping) -> str:
    """The manifest's text, which holds its own digest."""
    body = {name: value for name, value in body.items() if name != "sha256"}
    return json.dumps(body | {"sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest()}, indent=1)


def _number(place: Path) -> int:
    """The place among all checkpoints written in the run, from 1; 0 where the manifest does not say."""
    try:
        return int(json.loads((place / "manifest.json").read_text())["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step_"))


def sha256(path: Path) -> str:
    """Digest of a file's content; remembered while the file does not change."""
    found = path.stat()
    if time.time() - found.st_mtime < SETTLED_SECONDS:
        return _digest.__wrapped__(path, None)
    return _digest(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=4096)
def _digest(path: Path, version: object) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
