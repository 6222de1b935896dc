"""The Ray cluster of a command: that of RAY_ADDRESS, or a local one that ends with the command.

The local one is its user's own: it listens on loopback only, asks for a token that is made for it, and has a private session.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import ray
from ray._private import services
from ray._private.authentication import authentication_token_setup as authentication
from ray._private.worker import RayContext
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # pyright: ignore[reportAttributeAccessIssue]  compiled
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from cluster.config.contradictions import unread_here
from cluster.config.run_config import ConfigError, RunConfig, config_hash
from cluster.fleet.calls import within
from cluster.stopping import RunFailed, Stop
from rollout.environment import environment
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
def connected(config: RunConfig, incarnation: int, stop: Stop) -> Iterator[None]:
    """Connected to the cluster. Raises ConfigError where it does not answer or this machine's cannot be, RunFailed where Ray
    fails."""
    job = JobConfig(metadata={"cohort_run": config.name, "cohort_incarnation": str(incarnation), "config": config_hash(config)})
    # A namespace of its own: others of this name may be on the cluster, such as the same recipe with another seed.
    common = {"namespace": f"cohort {config.output.resolve()}", "log_to_driver": False, "job_config": job}
    common["logging_level"] = logging.WARNING
    address = os.environ.get("RAY_ADDRESS")
    if problems := unread_here(config, address=address or ""):
        raise ConfigError(problems)
    log.info("connecting to the Ray cluster at %s" if address else "starting Ray on this machine", *filter(None, [address]))
    if not address:
        with _local(config, stop, common):
            yield
        return
    try:
        await_cluster(address, config.cluster.start_deadline_s)
        _init(stop, address=address, **common)
        yield
    finally:
        ray.shutdown()


@contextmanager
def _local(config: RunConfig, stop: Stop, common: Mapping[str, object]) -> Iterator[None]:
    check_temporary_folder()
    folder = temporary_folder("ray")
    session = private_session(folder)
    try:
        with _own_token(folder) as token:
            try:
                with _temporary_files_in(folder) as outside, _groups_of_their_own():
                    context = _init(
                        stop,
                        address="local",
                        include_dashboard=config.cluster.dashboard is not False,
                        _metrics_export_port=config.cluster.metrics_port,
                        _temp_dir=session,
                        runtime_env={"env_vars": {"TMPDIR": outside}},
                        **common,
                    )
                Path(str(context.address_info["session_dir"])).chmod(0o700)  # Ray lets everyone write there
                if context.dashboard_url:
                    log.info("the dashboard is at http://%s, its token in %s", context.dashboard_url, token)
                yield
            except Exception:
                for logs in folder.glob("r/session_2*/logs"):  # what failed may be told nowhere else
                    with suppress(OSError):
                        shutil.copytree(logs, config.output / "logs" / "ray", symlinks=True, dirs_exist_ok=True)
                raise
            finally:
                ray.shutdown()
    finally:
        remove_folder(folder)


@contextmanager
def _own_token(folder: Path) -> Iterator[Path]:
    """Whatever the user's settings: Ray of this process, and of those that it starts, uses a new token; the file with it."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    try:
        with environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token)}):
            _read_token()
            yield token
    finally:
        _read_token()


def _read_token() -> None:
    """Ray keeps what it read of its settings. The mode goes first: a thread that finds it on and no token ends the process."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def private_session(folder: Path) -> str | None:
    """Where Ray's session goes: into the private folder, unless the user names another with RAY_TMPDIR, or the paths of its
    sockets would be too long there; then into the folder for it that Ray shares among users."""
    inside = folder / "r"  # Ray lets everyone into what it is given
    fits = len(os.fsencode(inside)) + len(LONGEST_SOCKETS[0].removeprefix("/ray")) <= SOCKET_BYTES
    return str(inside) if fits and "RAY_TMPDIR" not in os.environ else None


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
        authentication.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray's own does
    try:  # without one that is asked for, Ray's core would end this process
        authentication.ensure_token_if_auth_enabled(create_token_if_missing=False)
    except AuthenticationError:
        raise _unknown_here(address) from None
    try:
        within(deadline_s, lambda: GcsClient(address=address))
    except AuthenticationError as error:
        raise _unknown_here(address) from error
    except TimeoutError:
        why = f" within {deadline_s:g} s (cluster.start_deadline_s)"
    except Exception as error:
        why = f": {str(error).splitlines()[0].rstrip('.')}"
    else:
        return
    found = f"RAY_ADDRESS: found {address}, where no Ray cluster answers{why}"
    raise ConfigError([f"{found}; expected the address of one, or no RAY_ADDRESS for a local one"])


def _unknown_here(address: str) -> ConfigError:
    """Ray's own words for it are a paragraph."""
    names = "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    found = f"the Ray cluster at {address} wants a token, and this process has none or another"
    return ConfigError([f"RAY_ADDRESS: {found}; expected {names} as where the cluster was begun"])


def _last_cluster() -> str:
    """The address of the cluster of this machine."""
    try:
        found = services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        found = None
    if found is None:
        raise ConfigError(["RAY_ADDRESS: found auto, and no cluster runs on this machine; expected host:port, or none"])
    return found


def _init(stop: Stop, **arguments) -> RayContext:
    with _heard() as signals:
        try:
            context = cast(RayContext, ray.init(**arguments))
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
        return context


@contextmanager
def _heard() -> Iterator[Callable[[], set[int]]]:
    """The signals that came in the block, also those whose handler's exception is swallowed where it is raised."""
    hear, tell = socket.socketpair()
    with hear, tell:
        hear.setblocking(False)
        tell.setblocking(False)
        before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)

        def came() -> set[int]:
            try:
                return set(hear.recv(4096))
            except BlockingIOError:
                return set()

        try:
            yield came
        finally:
            signal.set_wakeup_fd(before)


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Ray's processes that begin in the block are in process groups of their own. A signal to that of the driver, as `timeout`
    and Slurm send it, would end the cluster before the run has saved."""
    popen = services.ConsolePopen
    setattr(services, "ConsolePopen", partial(popen, process_group=0))  # noqa: B010  it is declared as a class
    try:
        yield
    finally:
        setattr(services, "ConsolePopen", popen)  # noqa: B010


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[str]:
    """For the start of Ray's own processes, some of which leave folders behind; its session stays where it would be without.

    Yields the folder of temporary files that the actors are to have, as sockets in this one would have too long a path.
    """
    outside = tempfile.gettempdir()
    with environment({"TMPDIR": str(folder), "RAY_TMPDIR": os.environ.get("RAY_TMPDIR") or outside}):
        yield outside
