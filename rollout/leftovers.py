"""What processes of ours leave behind when they are killed, and how it is removed: shared memory and temporary folders.

Names carry the process id of their owner: `cohort_run_41_v7_0` under /dev/shm, `cohort_sandbox_41_k2x8` among temporary files.
"""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

SHM = Path("/dev/shm")
SEGMENT = re.compile(r"cohort_[\w.-]+_(?P<pid>\d+)_(?:v\d+_\d+|engine)")
_FOLDER = re.compile(r"cohort_(?:engine|sandbox)_(?P<pid>\d+)_\w+")
_REMOVAL_SECONDS = 60


def record_engine(prefix: str, pids: Sequence[int]) -> Path:
    """Note which segments of vLLM an engine's processes map: a SIGKILL leaves them all, and even a regular end some."""
    mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    segments = set(re.findall(r"/dev/shm/((?:psm_|sem\.mp-|vllm_dist_)\S+)", mapped))
    record = SHM / f"cohort_{prefix}_{os.getpid()}_engine"
    record.write_text(json.dumps({"pids": list(pids), "segments": sorted(s for s in segments if (SHM / s).exists())}))
    return record


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


def temporary_folder(owner: Literal["engine", "sandbox"]) -> Path:
    """A new folder for temporary files, which this process removes, or `sweep` should it be killed before."""
    return Path(tempfile.mkdtemp(prefix=f"cohort_{owner}_{os.getpid()}_"))


def remove_folder(folder: Path) -> None:
    """Remove a tree. Python's own way to do so follows it recursively, and a program may nest folders beyond that."""
    subprocess.run(["rm", "-rf", str(folder)], stderr=subprocess.DEVNULL, timeout=_REMOVAL_SECONDS)


def sweep() -> list[str]:
    """Remove what dead processes left on this node, and return the names.

    vLLM's own segments are removed only if `record_engine` noted them and the engine's processes are dead too.
    """
    removed = []
    for path in sorted(SHM.glob("cohort_*")):
        if not _left(SEGMENT, path):
            continue
        try:
            if path.name.endswith("_engine"):
                removed += remove_engine(path)
            else:
                path.unlink()
                removed.append(path.name)
        except FileNotFoundError:  # another sweep was faster
            continue
    for path in sorted(Path(tempfile.gettempdir()).glob("cohort_*")):
        if _left(_FOLDER, path):
            remove_folder(path)
            removed.append(path.name)
    return removed


def _left(names: re.Pattern[str], path: Path) -> bool:
    match = names.fullmatch(path.name)
    return match is not None and not running(int(match["pid"]))


def running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
