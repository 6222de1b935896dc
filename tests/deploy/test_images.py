"""deploy/Dockerfile: its instructions, what it copies, whom it runs as, and that it installs what `make setup` does."""

import fnmatch
import re
import shutil
import subprocess
import tomllib

import pytest

from tests.deploy.files import DEPLOY, ROOT, shellcheck

TEXT = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
INSTRUCTIONS = [(line.split()[0], line.split(maxsplit=1)[1]) for line in LINES if line]
KNOWN = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def given(kind):
    return [text for name, text in INSTRUCTIONS if name == kind]


def ignored(path):
    """Whether the builder does not see a path: the last pattern decides that matches it or a folder that it is in."""
    parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 2)]
    out = False
    for pattern in IGNORED:
        name = pattern.removeprefix("!").removeprefix("**/")
        if not pattern.startswith("#") and any(
            fnmatch.fnmatch(p.split("/")[-1] if "**/" in pattern else p, name) for p in parents
        ):
            out = not pattern.startswith("!")
    return out


def test_instructions_are_known_and_the_base_has_a_tag_and_names_no_registry():
    assert {name for name, _ in INSTRUCTIONS} == KNOWN
    (base,) = given("FROM")
    name, _, tag = base.partition(":")
    assert re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"3\.\d+-slim-\w+", tag)
    assert not [text for text in (*given("ENV"), *given("ARG")) if re.search("token|password|secret|key", text, re.IGNORECASE)]


def test_what_is_copied_is_there_and_all_that_is_installed_is_copied():
    sources = [source for text in given("COPY") for source in text.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists() or ignored(source)] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.rstrip("*") for package in packages} | {"deploy", "pyproject.toml", "Makefile"} <= set(sources)


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", ".env", "runs/a/config.yaml", "models/a", "id_rsa", "cluster/__pycache__/a.pyc"]
)
def test_nothing_private_goes_to_the_builder(path):
    assert ignored(path) and not ignored("cluster/cli/main.py")


def test_the_shell_of_the_builder_has_no_fault_that_shellcheck_knows():
    scripts = [re.sub(r"--mount=\S+\s*", "", text) for text in given("RUN")]
    assert [shellcheck(f"export HARDWARE=cpu\n{script}\n", "sh") for script in scripts] == ["", ""]


def test_it_is_run_by_a_user_without_rights_who_need_compile_nothing():
    assert given("USER") == ["1000"] and "useradd --uid 1000 " in given("RUN")[0]
    assert "UV_COMPILE_BYTECODE=1" in given("RUN")[1] and "compileall" in given("RUN")[1]


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
def test_it_installs_what_make_setup_does_with_the_same_pins(tmp_path, hardware):
    for name in ("Makefile", "pyproject.toml", "deploy/constraints-cpu.txt", "deploy/constraints-gpu.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (asked,) = re.findall(r"make setup \S+ \S+", given("RUN")[1])
    command = asked.replace('"$HARDWARE"', hardware).replace("make", "make --dry-run", 1).split()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"--constraint deploy/constraints-{hardware}.txt" in done and f'--editable ".[{hardware},trackers]"' in done
    assert ("uninstall" in done and "torchvision torchaudio torchcodec" in done) == (hardware == "cpu")
