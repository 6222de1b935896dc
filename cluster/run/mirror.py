"""A run's checkpoints copied to an object store while it goes on, and a run taken up from there."""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.config.recipe import ConfigError
from cluster.config.run_config import RunConfig
from cluster.run.checkpoints import HELD, Checkpoints, step_of
from cluster.run.manifest import damage, number, size
from cluster.run.store import Store, newest_first, records
from cluster.stopping import Stop

log = logging.getLogger("cohort")

LOOK_S = 1.0
"""Between two looks for new checkpoints."""
LEAST_S, SLOWEST = 60.0, 2e6
"""What copies are waited for: so long, and their bytes at so many a second."""


class Mirror:
    """Keeps on a store what a run directory keeps: the newest checkpoints and the best one. Works on a thread of its own, and
    looks at nothing but files, so that the run neither waits for it nor hears of its failures."""

    def __init__(self, store: Store, run_dir: Path, keep: int):
        self._store, self._run_dir, self._keep = store, run_dir, keep
        self._checkpoints = Checkpoints(run_dir, keep=keep)
        self._begun = max(map(number, self._checkpoints.kept()), default=0)
        """Copies with a higher number are of a life of the run that is lost, but for those made here."""
        self._made: set[str] = set()
        self.copied, self.failed, self.newest_step = 0, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self, wait_s: float | None = None) -> dict[str, object]:
        """Copy what is not yet copied, within `wait_s` or as long as that may take; the facts for the summary."""
        if not self._over.is_set():
            self._over.set()
            self._thread.join(self._limit_s() if wait_s is None else wait_s)
            if self._thread.is_alive():
                self._warn("the copies have not ended in time")
        return {"url": self._store.url, "copied": self.copied, "failed": self.failed, "newest_step": self.newest_step}

    def _run(self) -> None:
        seen: list[tuple[str, int]] | None = None
        over = again = False
        while not over:
            over = self._over.wait(LOOK_S)
            now = [(folder.name, number(folder)) for folder in self._checkpoints.kept()]
            if now != seen or over and again:
                late = threading.Timer(self._limit_s(), self._warn, ["the copies take longer than expected"])
                late.daemon = True
                late.start()
                seen, again = now, False
                try:
                    self._copy()
                except Exception as error:
                    again = True
                    self._warn(f"{type(error).__name__}: {error}")
                late.cancel()

    def _copy(self) -> None:
        """The newest ones first."""
        found = self._store.copies()
        there = {name: n for name, n in found.items() if n <= self._begun or name in self._made}
        for folder in self._checkpoints.kept():
            if there.get(folder.name) == number(folder):
                continue
            with self._checkpoints.held(folder):
                if why := damage(folder):
                    log.warning("checkpoint %s is not copied to %s: %s", folder, self._store.url, why)
                    continue
                self._store.put(folder.name, folder, self._run_dir)
            there[folder.name] = number(folder)
            self._made.add(folder.name)
            self.copied, self.newest_step = self.copied + 1, max(self.newest_step, step_of(folder.name))
        whole, accuracies = newest_first(there), self._checkpoints.accuracies()
        measured = [name for name in whole if step_of(name) in accuracies]
        best = max(measured, key=lambda name: accuracies[step_of(name)], default=None)
        if self._made:
            for name in found.keys() - {*whole[: self._keep], best}:
                self._store.remove(name)

    def _limit_s(self) -> float:
        return LEAST_S + sum(size(folder) for folder in self._checkpoints.kept()) / SLOWEST

    def _warn(self, why: str) -> None:
        self.failed += 1
        log.warning("checkpoints are not copied to %s: %s; it is tried again at the next one", self._store.url, why)


@contextmanager
def mirrored(config: RunConfig, stop: Stop, *, begins: bool) -> Iterator[Mirror | None]:
    """The mirror that the run asks for, while the block lasts. Raises ConfigError where it cannot be used, or, for a run that
    `begins`, holds another one's checkpoints; what is no whole copy is of a machine that was taken away."""
    (config.output / "checkpoints" / HELD).unlink(missing_ok=True)  # of a driver that was killed
    if config.mirror is None:
        yield None
        return
    store = Store(config.mirror)
    store.check()
    if begins and newest_first(store.copies()):
        found = f"mirror: {config.mirror} already holds checkpoints"
        raise ConfigError([f"{found}; expected an empty folder, or `cohort resume RUN --from {config.mirror}`"])
    mirror = Mirror(store, config.output, config.keep_checkpoints)
    try:
        yield mirror
    finally:
        mirror.finish(stop.left_s() if stop.asked else None)


def restore(url: str, run_dir: Path) -> None:
    """Make a run directory of the newest good copy of a mirror. Raises ConfigError, naming each damage, where there is none."""
    store, root, damages = Store(url), run_dir / "checkpoints", []
    try:
        for name in newest_first(store.copies()):
            folder = root / f".{name}.tmp"
            if not (why := store.get(name, folder)):
                for record in records(folder, folder / "run"):
                    (run_dir / record).parent.mkdir(exist_ok=True)
                    (folder / "run" / record).rename(run_dir / record)
                shutil.rmtree(folder / "run")
                folder.rename(root / name)
                log.info("%s is restored from %s", root / name, url)
                return
            shutil.rmtree(folder)
            damages.append(f"{url}/{name}: {why}")
            log.warning("copy %s is skipped", damages[-1])
    except Exception as error:
        raise ConfigError([f"--from: {url} cannot be read: {error}"]) from error
    raise ConfigError([f"--from: {url} holds no whole checkpoint", *damages])
