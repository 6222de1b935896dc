"""The pins of deploy/ resolve for every Python that pyproject.toml allows, asked of the indexes that this machine has."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
UNREACHED = re.compile(r"error sending request|dns error|failed to fetch|failed to lookup|timed out|connect", re.IGNORECASE)


def pins(hardware: str) -> dict[str, str]:
    lines = (ROOT / f"deploy/constraints-{hardware}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_a_lock_holds_everything_and_names_no_index(hardware):
    text = (ROOT / f"deploy/constraints-{hardware}.txt").read_text()
    assert "://" not in text and "--" not in text
    assert len(pins(hardware)) > 150 and {"torch", "ray", "transformers", "pydantic", "pytest"} <= pins(hardware).keys()


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_a_lock_resolves_and_nothing_else_is_needed(hardware, python, tmp_path):
    """From wheels. torch's CPU builds are on an index of their own: the ordinary build stands in, with what it asks for."""
    if not UV.exists():
        pytest.skip("no uv beside python; `make setup` brings it")
    kept = pins(hardware)
    stands_in = {"torch": kept["torch"].removesuffix("+cpu")}
    constraints, overrides, out = tmp_path / "constraints.txt", tmp_path / "overrides.txt", tmp_path / "out.txt"
    free = {"torch", "triton"} if hardware == "cpu" else set()
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items() if name not in free))
    overrides.write_text("".join(f"{name}=={version}\n" for name, version in stands_in.items()))
    options = ["--extra", hardware, "--extra", "dev", "--python-version", python, "--only-binary", ":all:", "--no-annotate"]
    files = ["--constraint", constraints, "--override", overrides, "--output-file", out, "--no-header", "--quiet"]
    command = [UV, "pip", "compile", "pyproject.toml", *options, "--python-platform", "x86_64-manylinux_2_31", *files]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    if done.returncode and UNREACHED.search(done.stderr) and "No solution" not in done.stderr:
        pytest.skip(f"no index can be reached: {done.stderr.strip().splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("==") for line in out.read_text().splitlines())
    of_torch = {name for name in found if name.startswith(("nvidia-", "cuda-", "triton"))} if hardware == "cpu" else set()
    assert {k: v for k, v in found.items() if k not in of_torch | {"torch"}}.items() <= kept.items()
