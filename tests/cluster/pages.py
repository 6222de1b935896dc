"""Runs for the page's tests, and a browser to open them in."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from cluster.records.samples import sample_rows, write_rows
from learner.types import StepReport
from reward.types import RewardEvent, ScoredGroup, ScoredSample, Verdict
from rollout.types import FinishReason, Question, Sample

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """Chromium by way of its debugging pipe: one page, and what it says on the console as an error."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (there, self._to), (self._from, back) = os.pipe(), os.pipe()
        flags = [*FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}", "about:blank"]
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{there} 4>&{back}', str(CHROMIUM), *flags]
        self._process = subprocess.Popen(command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(there)
        os.close(back)
        self._answers = os.fdopen(self._from, "rb")
        self._count, self._session, self.errors = 0, "", []
        page = next(x for x in self.call("Target.getTargets")["targetInfos"] if x["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        self._answers.close()
        self._folder.cleanup()

    def call(self, method: str, **params: object) -> dict:
        """A command's answer; errors that the page reports meanwhile are kept."""
        self._count += 1
        message: dict = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            said = answer.get("params", {})
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(said["exceptionDetails"].get("exception", said)))
            elif answer.get("method") == "Log.entryAdded" and said["entry"]["level"] == "error":
                self.errors.append(said["entry"]["text"])
            elif answer.get("method") == "Runtime.consoleAPICalled" and said["type"] == "error":
                self.errors.append(str(said["args"]))

    def run(self, script: str) -> object:
        """The value of an expression in the page, promises awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, address: str, until: str = "document.body && document.body.dataset.ready", timeout: float = 60.0) -> None:
        """Go there, and wait until an expression of the page is true."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.wait(until, timeout)

    def wait(self, until: str, timeout: float = 60.0) -> None:
        """Until an expression of the page is true."""
        ends = time.monotonic() + timeout
        while not self.run(f"Boolean({until})"):
            assert time.monotonic() < ends, f"not within {timeout:g} s: {until}"
            time.sleep(0.05)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Of the window, and its colours."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """What is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _read(self) -> dict:
        parts = []
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts.append(byte)
        return json.loads(b"".join(parts))


def scored_group(ordinal: int, texts: list[str], question: str = "1 + 1", reward=lambda i: float(i == 0)) -> ScoredGroup:
    """A group with an output a text, of a token a character whose id is its code, and two rewards each."""
    asked = Question(ordinal=ordinal, id=f"f:{ordinal}", text=question, gold="2", prompt_ids=(1,))
    scored = []
    for i, text in enumerate(texts):
        ids = tuple(map(ord, text))
        sample = Sample(
            ordinal=ordinal, group_id=f"grpo/{ordinal}", index=i, attempt=0, prompt_ids=(1,), output_ids=ids,
            sampled_mask=(True,) * len(ids), logprobs=(-0.5,) * len(ids), text=text, versions=((0, 0),),
            finish_reason=FinishReason.STOP,
        )  # fmt: skip
        verdict = Verdict(
            status="score",
            reward=reward(i),
            components={"correct": reward(i)},
            extracted=text[-1:],
            reason="",
            reward_version=None,
        )
        events = (RewardEvent(position=0, value=0.25), RewardEvent(position=len(ids) - 1, value=reward(i)))
        scored.append(ScoredSample(sample=sample, events=events, verdict=verdict))
    return ScoredGroup(question=asked, scored=tuple(scored))


def write_run(folder: Path, groups: dict[int, list[ScoredGroup]], seed: int = 0, rate: float = 1e-4) -> Path:
    """A run directory with these groups by step, its first step a warm start."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 1, "stage": "sft", "response_length": 3.0, "seconds_step": 2.0}]
    rows += [
        {"step": step, "time": f"2026-01-01T00:00:{step:02}+00:00", "stage": "grpo", "reward": 0.1 * step, "accuracy": 0.5,
         "seconds_step": 1.0, "seconds_train": 0.75, "kl": None}
        for step in groups
    ]  # fmt: skip
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(
        folder / "evaluations.jsonl",
        [{"step": 1, "stage": "sft", "n": 4, "accuracy": 0.5, "pass_at_1": 0.5, "pass_at_2": 0.75}],
    )
    (folder / "config.yaml").write_text(
        f"name: x\nseed: {seed}\noutput: {json.dumps(str(folder))}\nmodel: {{path: /m/warm-{seed}}}\n"
        f"stages:\n- {{rate: {rate}}}\n"
    )
    for step, part in groups.items():
        advantages = [1.0 - s.sample.index for group in part for s in group.scored]
        told = StepReport(
            metrics={}, advantages=advantages, tokens=0,
            token_advantages=[(1.0,) * len(s.sample.output_ids) for group in part for s in group.scored],
            mismatch=[(-0.03,) * len(s.sample.output_ids) for group in part for s in group.scored],
        )  # fmt: skip
        write_rows(folder / f"samples/step_{step}.jsonl", sample_rows(part, {"0": 0}, advantages, told))
    return folder
