"""A day with a cluster of two nodes: the commands of docs/jobs.md, in their order, on two raylets of this machine.

    python benchmarks/cluster_day.py --folder runs/day

Submit, watch, 1 -> 3 -> 1 rollout workers, stop, submit again, finish; and the same with Ray's own commands. Each command is
taken from the page, with its addresses and /shared put in place, and must end as the page says. PASS: all did.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cluster.records.metrics import read_jsonl

PAGE = Path(__file__).resolve().parents[1] / "docs" / "jobs.md"
RECIPE = """
name: small
model: {init: small-llama}
data:
  questions: {task: chained-arithmetic, operations: 2, rows: 64}
  prompt: {template: plain}
  max_prompt_tokens: 32
  hold_out: 8
rollout: {max_new_tokens: 16, kv_cache_gb: 0.125}
reward: {format: 1.0}
evaluation: {samples_per_question: 2}
checkpoint_every: 1000
stages:
  - {algorithm: grpo, reward: rule, steps: STEPS, questions_per_step: 4, samples_per_question: 4,
     optimizer: {learning_rate: 1.0e-4}}
"""
CORES = 2
"""Of each node, as Ray counts them."""


class Day:
    """The commands of the page, run one after another."""

    def __init__(self, folder: Path):
        self.folder, self.project, self.failed, self.nodes = folder, folder / "project", False, []
        ports = {"6379": _free_port(), "8265": _free_port()}
        self._places = [
            ("/shared", str(folder)),
            ("head:6379", f"127.0.0.1:{ports['6379']}"),
            ("head:8265", f"127.0.0.1:{ports['8265']}"),
        ]
        self._places += [(f"port={name}", f"port={port}") for name, port in ports.items()]
        blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        self.left = [line for block in blocks for line in block.splitlines()]
        self.env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            self.env.pop(name, None)

    def next(self, begins: str) -> str:
        """The page's next command, which must begin so."""
        command = self.left.pop(0)
        assert command.startswith(begins), f"{PAGE.name}: found {command!r}; expected one that begins with {begins!r}"
        for name, place in self._places:
            command = command.replace(name, place)
        return command

    def export(self) -> None:
        for setting in self.next("export ").split()[1:]:
            name, _, value = setting.partition("=")
            self.env[name] = value

    def node(self) -> None:
        """A node that goes on until the end."""
        command, log = self.next("ray start"), self.folder / f"node-{len(self.nodes)}.log"
        command = f"exec {command} --node-ip-address=127.0.0.1 --num-cpus={CORES}"
        with log.open("w") as out:
            self.nodes.append(
                subprocess.Popen(command, shell=True, env=self.env, stdout=out, stderr=out, start_new_session=True)
            )
        self.until(lambda: "Ray runtime started" in log.read_text(), 90, "a node")

    def run(self, begins: str, expected: str = "", code: int = 0) -> str:
        """The page's next command; what it prints must hold a pattern."""
        command, began = self.next(begins), time.monotonic()
        done = subprocess.run(command, shell=True, env=self.env, cwd=self.project, capture_output=True, text=True, timeout=200)
        said = done.stdout + done.stderr
        self.check(f"$ {command}", done.returncode == code and re.search(expected, said) is not None, time.monotonic() - began)
        print("".join(f"      {line}\n" for line in said.splitlines()[-6:]), end="", flush=True)
        return said

    def begin(self, begins: str) -> subprocess.Popen:
        """The page's next command, which goes on for a while."""
        command = self.next(begins)
        print(f"      $ {command}", flush=True)
        return subprocess.Popen(
            f"exec {command}", shell=True, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def check(self, what: str, passed: bool, seconds: float = 0.0) -> None:
        self.failed |= not passed
        print(f"{'PASS' if passed else 'FAIL'}  {what}  ({seconds:.1f} s)", flush=True)

    def until(self, true: Callable[[], object], seconds: float, what: str) -> None:
        began = time.monotonic()
        while not true():
            if time.monotonic() > began + seconds:
                raise SystemExit(f"FAIL  {what}: not within {seconds:g} s")
            time.sleep(0.3)

    def end(self) -> None:
        """End the nodes that this command began."""
        for node in reversed(self.nodes):
            os.killpg(node.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5  # they drain for half a minute
        for node in self.nodes:
            try:
                node.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait(10)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(read_jsonl(path)) if path.exists() else 0


def day(at: Day) -> None:
    """Everything on the page."""
    recipe, small = at.project / "recipe.yaml", at.folder / "runs/small"
    at.project.mkdir()
    recipe.write_text(RECIPE.replace("STEPS", "10000"))
    at.run("install")
    at.run("python -c")
    at.export()
    at.node()
    at.node()
    at.export()
    at.until(lambda: _listens(at.env["RAY_API_SERVER_ADDRESS"]), 90, "the dashboard")
    at.run("cohort submit", r"recipe\.yaml\n(.*\n)*job small runs ")
    at.until(lambda: _steps(small) >= 3, 150, "three steps")
    at.run("cohort status small", r"job small: RUNNING\nrun .*: running, step \d+ of 10000")
    at.run("cohort logs small", r"grpo \d+/10000")
    following = at.begin("cohort logs small --follow")
    at.run("cohort runs", r"small +running +\d+/10000")
    at.run("cohort scale", r": 3 rollout workers, 1 reward worker\n$")
    _until_workers(at, small, 3)
    at.run("cohort scale", r": 1 rollout worker, 1 reward worker\n$")
    _until_workers(at, small, 1)
    at.run("cohort stop small", r"^stopped by a signal after step \d+; `cohort resume .*small`")
    at.check("whoever follows it ends as the job", following.wait(30) == 4)
    done = _steps(small)
    at.check(f"{done} steps are saved", (small / f"checkpoints/step_{done}/manifest.json").is_file())
    recipe.write_text(RECIPE.replace("STEPS", str(done + 3)))
    at.run("cohort submit", "job small-2 runs ")
    at.run("cohort logs small-2", rf"grpo {done + 3}/{done + 3}")
    steps = [row["step"] for row in read_jsonl(small / "metrics.jsonl")]
    at.check(
        "each step was taken once, and the run is finished",
        steps == list(range(1, done + 4)) and (small / "summary.json").is_file(),
    )
    at.run("ray job submit", r"is finished; to train on(.*\n)+.*Job 'plain' succeeded")
    at.run("cohort submit", r"error: rollout.workers: 9 processes(.*\n)+exit code 2\n$", code=2)
    at.run("cohort status small-3", r"job small-3: FAILED, exit code 2\nerror: rollout.workers: 9 processes")
    at.check("nothing on the page is left out", not at.left)


def _until_workers(at: Day, run: Path, count: int) -> None:
    at.until(lambda: read_jsonl(run / "metrics.jsonl")[-1]["rollout_workers"] == count, 60, f"a step with {count} workers")
    at.check(f"a step with {count} rollout workers", True)


def _listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as s:
        return s.connect_ex((host, int(port))) == 0


def main(folder: Annotated[Path, typer.Option(help="Is made anew.")] = Path("runs/day")) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAIL  stopped"))
    at, began = Day(folder.resolve()), time.monotonic()
    try:
        day(at)
    finally:
        at.end()
    print(f"{'FAIL' if at.failed else 'PASS'} after {time.monotonic() - began:.0f} s")
    raise typer.Exit(at.failed)


if __name__ == "__main__":
    typer.run(main)
