"""The pins of deploy/ resolve for every Python that pyproject.toml allows, asked of the indexes that this machine has."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
UNREACHED = re.compile(r"request failed|failed to fetch|dns error|timed out|network was disabled", re.IGNORECASE)


def pins(hardware: str) -> dict[str, str]:
    lines = (ROOT / f"deploy/constraints-{hardware}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_a_lock_holds_everything_and_names_no_index(hardware):
    text = (ROOT / f"deploy/constraints-{hardware}.txt").read_text()
    assert "://" not in text and "--" not in text
    assert len(pins(hardware)) > 150 and {"torch", "ray", "transformers", "pydantic", "pytest"} <= pins(hardware).keys()


def resolved(hardware: str, python: str, folder: Path) -> subprocess.CompletedProcess:
    """What uv takes for this Python, from wheels. torch's CPU builds have an index of their own: the ordinary one stands in."""
    kept, free = pins(hardware), {"torch", "triton"} if hardware == "cpu" else {"torch"}
    constraints, overrides = folder / f"{hardware}-{python}.txt", folder / f"torch-{hardware}-{python}.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items() if name not in free))
    overrides.write_text(f"torch=={kept['torch'].removesuffix('+cpu')}\n")
    options = ["--extra", hardware, "--extra", "dev", "--python-version", python, "--python-platform", "x86_64-manylinux_2_31"]
    output = ["--only-binary", ":all:", "--no-annotate", "--no-header", "--no-progress"]
    command = [UV, "pip", "compile", "pyproject.toml", *options, *output, "--constraint", constraints, "--override", overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.lock
def test_a_lock_resolves_and_nothing_else_is_needed(tmp_path):
    if not UV.exists():
        pytest.skip("no uv beside python; `make setup` brings it")
    asked = [(hardware, python) for hardware in ("cpu", "gpu") for python in ("3.11", "3.12", "3.13")]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: resolved(*one, tmp_path), asked))
    for (hardware, python), done in zip(asked, answers, strict=True):
        if done.returncode and UNREACHED.search(done.stderr):
            pytest.skip(f"no index can be reached: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, f"{hardware} {python}: {done.stderr}"
        found = dict(line.split("==") for line in done.stdout.splitlines())
        of_torch = {name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))} if hardware == "cpu" else set()
        others = {name: version for name, version in found.items() if name not in of_torch | {"torch"}}
        assert len(others) > 150 and others.items() <= pins(hardware).items(), f"{hardware} {python}"
