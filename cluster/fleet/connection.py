"""The Ray cluster of a command: that of RAY_ADDRESS, or a local one that ends with the command and listens on loopback only."""

import logging
import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import services
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]  it is compiled
from ray.job_config import JobConfig

from cluster.config.contradictions import unread_here
from cluster.config.run_config import ConfigError, RunConfig, config_hash
from cluster.stopping import RunFailed, Stop
from rollout.leftovers import remove_folder, temporary_folder

log = logging.getLogger("cohort")

SOCKET_BYTES = 107
"""Longest path of a Unix socket."""
LONGEST_SOCKETS = (
    "/ray/session_2026-11-27_11-23-53_923799_4194304/sockets/dash_MetricsHead",
    "/cohort_engine_4194304_abcdefgh/01234567-89ab-cdef-0123-456789abcdef",
)
"""Ray's and vLLM's, below the folder of temporary files."""


@contextmanager
def cluster(config: RunConfig, incarnation: int, stop: Stop) -> Iterator[None]:
    """Connected to the cluster. Raises ConfigError where it does not answer or this machine's cannot be, RunFailed where Ray
    fails."""
    job = JobConfig(metadata={"cohort_run": config.name, "cohort_incarnation": str(incarnation), "config": config_hash(config)})
    common = {"namespace": "cohort", "log_to_driver": False, "job_config": job, "logging_level": logging.WARNING}
    address = os.environ.get("RAY_ADDRESS")
    if problems := unread_here(config, address=address):
        raise ConfigError(problems)
    folder = None
    log.info("connecting to the Ray cluster at %s" if address else "starting Ray on this machine", *filter(None, [address]))
    try:
        if address:
            await_cluster(address, config.cluster.start_deadline_s)
            _init(stop, address=address, **common)
        else:
            check_temporary_folder()
            folder = temporary_folder("ray")
            with _temporary_files_in(folder) as outside:
                _init(
                    stop,
                    address="local",
                    include_dashboard=config.cluster.dashboard is not False,
                    _metrics_export_port=config.cluster.metrics_port,
                    runtime_env={"env_vars": {"TMPDIR": outside}},
                    **common,
                )
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            remove_folder(folder)


def check_temporary_folder() -> None:
    """Raises ConfigError where paths of sockets below the folder of temporary files would be too long."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name, "")
        room = SOCKET_BYTES - max(map(len, LONGEST_SOCKETS))
        if len(os.fsencode(folder)) > room:
            found = f"{name}: found a path of {len(os.fsencode(folder))} bytes; expected at most {room}"
            raise ConfigError([f"{found}: Ray and vLLM put Unix sockets there, whose paths may have {SOCKET_BYTES}"])


def await_cluster(address: str, deadline_s: float) -> None:
    """Raises ConfigError unless a cluster answers at host:port, or at what Ray takes `auto` for, in time.

    `ray.init` itself tries for many minutes, and cannot be interrupted meanwhile.
    """
    if "://" in address:
        raise ConfigError([f"RAY_ADDRESS: found {address}; expected host:port: a run's driver is a process of the cluster"])
    if address == "auto":
        address = _last_cluster()
    answers: list[str] = []

    def ask() -> None:
        try:
            GcsClient(address=address)
            answers.append("")
        except Exception as error:
            answers.append(f": {str(error).splitlines()[0].rstrip('.')}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(deadline_s)
    why = answers[0] if answers else f" within {deadline_s:g} s (cluster.start_deadline_s)"
    if why:
        found = f"RAY_ADDRESS: found {address}, where no Ray cluster answers{why}"
        raise ConfigError([f"{found}; expected the address of one, or no RAY_ADDRESS for a local one"])


def _last_cluster() -> str:
    """The address of the cluster of this machine."""
    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if found is None:
        raise ConfigError(["RAY_ADDRESS: found auto, and no cluster runs on this machine; expected host:port, or none"])
    return found


def _init(stop: Stop, **arguments) -> None:
    with _heard() as signals:
        try:
            ray.init(**arguments)
        except SystemExit as error:  # Ray's own handler of SIGTERM, which it puts in the place of ours
            stop.ask(int(error.code or 0))
            raise KeyboardInterrupt from None
        except Exception as error:
            raise RunFailed(f"Ray did not start: {str(error).strip().splitlines()[0]}") from error
        finally:
            stop.arm()
        if not stop.asked and (numbers := signals() & {signal.SIGTERM, signal.SIGINT}):
            stop.ask(numbers.pop())
        if stop.asked:
            raise KeyboardInterrupt


@contextmanager
def _heard() -> Iterator[Callable[[], set[int]]]:
    """The signals that came in the block, also those whose handler's exception is swallowed where it is raised."""
    hear, tell = socket.socketpair()
    with hear, tell:
        hear.setblocking(False)
        tell.setblocking(False)
        before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: set(hear.recv(4096)) if select.select([hear], [], [], 0)[0] else set()
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[str]:
    """For the start of Ray's own processes, some of which leave folders behind; its session stays where it would be without.

    Yields the folder of temporary files that the actors are to have, as sockets in this one would have too long a path.
    """
    outside = tempfile.gettempdir()
    before = {name: os.environ.get(name) for name in ("TMPDIR", "RAY_TMPDIR")}
    os.environ |= {"TMPDIR": str(folder), "RAY_TMPDIR": before["RAY_TMPDIR"] or outside}
    try:
        yield outside
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
