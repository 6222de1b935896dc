"""What processes of ours leave behind when they are killed, and how it is removed: shared memory and temporary folders.

Names carry the process id of their owner: `cohort_run_41_v7_0` under /dev/shm, `cohort_sandbox_41_k2x8` among temporary files.
"""

import json
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

log = logging.getLogger("cohort")

SHM = Path("/dev/shm")
SEGMENT = re.compile(r"cohort_[\w.-]+_(?P<pid>\d+)_(?:v\d+_\d+|engine)")
_SEGMENT = re.compile(r"psm_|sem\.mp-|vllm_dist_")
"""Of vLLM and of Python's multiprocessing."""
_FOLDER = re.compile(r"cohort_(?:engine|sandbox|ray|learner)_(?P<pid>\d+)_\w+")
_REMOVAL_SECONDS = 60


def record_engine(prefix: str, pids: Sequence[int]) -> Path:
    """Note which segments of vLLM a started engine's processes map, and take the names of those that hold memory.

    All who need a segment have it open by then. So the memory (hundreds of megabytes) is freed with the last of them however
    they end, where a SIGKILL would leave it for good.
    """
    # By number: a semaphore is mapped under the name that it had before its own.
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    mapped = {int(line.split()[4]) for line in lines if " /dev/shm/" in line}
    segments = sorted(entry.name for entry in os.scandir(SHM) if _SEGMENT.match(entry.name) and entry.inode() in mapped)
    record = SHM / f"cohort_{prefix}_{os.getpid()}_engine"
    record.write_text(json.dumps({"pids": list(pids), "segments": segments}))
    for segment in _unnamed(record):
        segment.unlink(missing_ok=True)
    return record


def before_shutdown(record: Path) -> None:
    """Give the names back, to empty files: vLLM's orderly end unlinks them, and complains where there is none."""
    for segment in _unnamed(record):
        segment.touch()


def _unnamed(record: Path) -> list[Path]:
    return [SHM / name for name in json.loads(record.read_text())["segments"] if name.startswith("psm_")]


def remove_engine(record: Path) -> list[str]:
    """Remove what `record_engine` noted, once the engine's processes are gone; the names of what was still there."""
    noted = json.loads(record.read_text())
    if any(map(running, noted["pids"])):
        return []
    left = [segment for segment in noted["segments"] if (SHM / segment).exists()]
    for segment in left:
        (SHM / segment).unlink(missing_ok=True)
    record.unlink(missing_ok=True)
    return [*left, record.name]


def temporary_folder(owner: Literal["engine", "sandbox", "ray", "learner"]) -> Path:
    """A new folder for temporary files, which this process removes, or `sweep` should it be killed before."""
    return Path(tempfile.mkdtemp(prefix=f"cohort_{owner}_{os.getpid()}_"))


def remove_folder(folder: Path) -> None:
    """Remove a tree. Python's own way to do so follows it recursively, and a program may nest folders beyond that."""
    subprocess.run(["rm", "-rf", str(folder)], stderr=subprocess.DEVNULL, timeout=_REMOVAL_SECONDS)


def sweep() -> list[str]:
    """Remove what dead processes of this user left on this node, and return the names. What cannot be removed stays, with a
    warning: it is no reason to stop.

    vLLM's own segments are removed only if `record_engine` noted them and the engine's processes are dead too.
    """
    removed = []
    for folder, names in ((SHM, SEGMENT), (Path(tempfile.gettempdir()), _FOLDER)):
        for path in sorted(folder.glob("cohort_*")):
            try:
                if _left(names, path):
                    removed += _remove(path)
            except FileNotFoundError:  # another sweep was faster
                continue
            except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired) as error:
                log.warning("%s, which a dead process left, stays: %r", path, error)
    return removed


def _remove(path: Path) -> list[str]:
    if path.name.endswith("_engine"):
        return remove_engine(path)
    if path.is_dir():
        remove_folder(path)
    else:
        path.unlink()
    return [path.name]


def _left(names: re.Pattern[str], path: Path) -> bool:
    match = names.fullmatch(path.name)
    return match is not None and path.lstat().st_uid == os.getuid() and not running(int(match["pid"]))


def running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
