"""The whole system on a machine with NVIDIA GPUs, in at most eight minutes: is it right there, and how fast is it?

    python benchmarks/gpu.py                          every part; figures go to benchmarks/gpu.json
    python benchmarks/gpu.py --parts exact grpo-ipc   these parts; what others found is kept

A part is a process of its own with a deadline, so that one that fails, hangs or runs out of memory takes nothing from the
others. They run one after the other, the most telling first; each prints a line or more with PASS or FAIL. What the machine
lacks, or the time does not suffice for, is NOT RUN. Needs the checkout and its dependencies on the path, no installed package.
Exit codes: 0 every part that the machine can run passed; 1 some did not, or had no time; 2 there is no GPU.
"""

import argparse
import ctypes
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STATUS = {True: "PASS", False: "FAIL", None: "NOT RUN"}
LOG_LINES = 40
"""Kept of each log of a part that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One result. `passed` is None for what could not be tried, such as a model that does not fit on the card."""

    name: str
    passed: bool | None
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`function` (module:name, beside this file) yields Lines. It is started where `expected_s` are left, and killed after
    `deadline_s`."""

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    expected_s: float
    deadline_s: float
    gpus: int = 1
    modules: tuple[str, ...] = ()
    """Beyond the learner's, which must be there."""


WHOLE = {"modules": ("vllm", "ray"), "deadline_s": 240}
QUICKSTART = WHOLE | {"function": "gpu_runs:quickstart", "expected_s": 90}
RANDOM = WHOLE | {"function": "gpu_runs:random_policy"}
SPEED = {"function": "gpu_speed:speed", "expected_s": 20, "deadline_s": 90}
PARTS = (
    Part(name="exact", function="gpu_exact:exact", expected_s=30, deadline_s=120),
    Part(name="grpo-ipc", arguments={"transport": "ipc"}, **QUICKSTART),
    Part(name="speed-1.5b", arguments={"shape": "qwen2.5-1.5b"}, **SPEED),
    Part(name="grpo-1.5b", arguments={"shape": "qwen2.5-1.5b", "overrides": ["rollout.sleep=true"]}, expected_s=120, **RANDOM),
    Part(name="speed-0.5b", arguments={"shape": "qwen2.5-0.5b"}, **SPEED),
    Part(name="grpo-135m", arguments={"shape": "smollm2-135m"}, expected_s=60, **RANDOM),
    Part(name="speed-7b", arguments={"shape": "qwen2.5-7b"}, **SPEED),
    Part(name="grpo-nccl", arguments={"transport": "nccl"}, gpus=2, **QUICKSTART),
)


def machine() -> dict[str, Any]:
    """GPUs that this process may use, asked of the driver (0 where there is none), the first one's name, and the software."""
    found = {name: version(name) for name in ("torch", "transformers", "vllm", "ray") if list(distributions(name=name))}
    found |= {"python": platform.python_version(), "gpus": 0, "gpu": ""}
    try:
        driver, count, name = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(100)
    except OSError:
        return found
    if driver.cuInit(0) == 0 == driver.cuDeviceGetCount(ctypes.byref(count)) and count.value:
        driver.cuDeviceGetName(name, len(name), 0)
    return found | {"gpus": count.value, "gpu": name.value.decode()}


def run(part: Part, seconds: float, folder: Path) -> dict[str, Any]:
    """The part in a process of its own, for at most so long; all its temporary files, Ray's logs among them, are in the folder.

    Leaves no process behind.
    """
    folder.mkdir()
    lines, work = folder / "lines", json.dumps([part.function, part.arguments])
    command = [sys.executable, __file__, "--work", work, "--lines", str(lines)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    limit, began, code = min(part.deadline_s, seconds), time.monotonic(), None
    with (folder / "part.log").open("wb") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        child = subprocess.Popen(command, **streams, env=environment, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                kill_tree(child.pid)
                child.wait(30)
    found = [json.loads(text) for text in lines.read_text().splitlines()] if lines.exists() else []
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if code != 0:
        # Killed by its own deadline it has failed; where all the time was up, it is unknown.
        passed = None if code is None and limit < part.deadline_s else False
        text = f"killed after {limit:.0f} s" if code is None else f"exit {code}"
        result["logs"] = logs(folder)
        found.append(asdict(Line(name="end", passed=passed, text=text)))
    return {"passed": verdict([line["passed"] for line in found]), "lines": found} | result


def logs(folder: Path) -> dict[str, list[str]]:
    """The ends of the part's log and of those of its actors that tell of an error: there vLLM says why it did not start."""
    found = {}
    for path in [folder / "part.log", *sorted(folder.glob("ray/session_*/logs/*.err"))]:
        text = path.read_text(errors="replace")
        if path.name == "part.log" or "Error" in text:
            found[path.name] = text.splitlines()[-LOG_LINES:]
    return found


def verdict(passed: Sequence[bool | None]) -> bool | None:
    """Of several: failed if one failed, else passed if one passed."""
    return False if False in passed else True if True in passed else None


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, whatever sessions they are in; parents first, so that none is started anew."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
        below.setdefault(parent, []).append(int(stat.parent.name))
    todo = [pid]
    for each in todo:
        todo += below.get(each, [])
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def lacking(part: Part, count: int) -> str:
    """What the part needs and the machine does not have."""
    missing = [name for name in part.modules if find_spec(name) is None]
    if missing:
        return f"there is no {' and no '.join(missing)}"
    return f"needs {part.gpus} GPUs, and there is {count}" if count < part.gpus else ""


def show(name: str, result: dict[str, Any]) -> None:
    for line in result["lines"]:
        print(f"{STATUS[line['passed']]:7} {name} {line['name']}: {line['text']}", flush=True)
    for log, tail in result.get("logs", {}).items():
        print(*(f"        {log}: {text}" for text in tail[-8:]), sep="\n", flush=True)


def write(path: Path, report: dict[str, Any]) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(report, indent=1) + "\n")
    beside.replace(path)


def measure(parts: Sequence[Part], machine: dict[str, Any], minutes: float, out: Path, kept: dict[str, Any]) -> int:
    """Run the parts in order; after each, `out` has their results so far beside those that are kept. Returns the exit code."""
    report = dict(kept)
    until, late = time.monotonic() + 60 * minutes, False
    # A short path: below it are sockets, whose paths the system limits to 107 characters.
    with tempfile.TemporaryDirectory(prefix="gpu-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for part in parts:
            left, why = until - time.monotonic(), lacking(part, machine["gpus"])
            if not why and left < part.expected_s:
                why, late = f"{left:.0f} s were left, and it takes {part.expected_s:g}", True
            if why:
                result = {"passed": None, "lines": [asdict(Line(name="start", passed=None, text=why))], "seconds": 0}
            else:
                result = run(part, left, Path(folder) / part.name)
                late = late or (result["passed"] is None and result["seconds"] >= left)
            show(part.name, result)
            report[part.name] = result | {"when": time.strftime("%Y-%m-%d %H:%M"), "on": machine}
            write(out, report)
    failed = [part.name for part in parts if report[part.name]["passed"] is False]
    left_out = [part.name for part in parts if report[part.name]["passed"] is None]
    print(f"gpu: {'FAIL' if failed else 'INCOMPLETE' if late else 'PASS'}", end="; ")
    print(f"failed: {', '.join(failed) or 'none'}; not run: {', '.join(left_out) or 'none'}", flush=True)
    return 1 if failed or late else 0


def work(function: str, arguments: dict[str, Any], lines: Path) -> None:
    """A part's own process: every line is in the file as soon as it is known."""
    module, _, name = function.partition(":")
    made: Iterator[Line] = getattr(import_module(module), name)(**arguments)
    with lines.open("w") as file:
        for line in made:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.work:
        work(*json.loads(args.work), args.lines)
        return 0
    here = machine()
    if not here["gpus"]:
        print("no GPU: found no NVIDIA driver with a device; this benchmark needs one", file=sys.stderr)
        return 2
    chosen = [part for part in PARTS if not args.parts or part.name in args.parts]
    kept = json.loads(args.out.read_text()) if args.parts and args.out.exists() else {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is under way is ended first
    return measure(chosen, here, args.minutes, args.out, kept)


if __name__ == "__main__":
    sys.exit(main())
