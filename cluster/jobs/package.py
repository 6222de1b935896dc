"""What a job takes along: its recipe and the files that this names by relative paths, and no other file."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from cluster.config.recipe import ConfigError, Recipe
from cluster.config.run_config import RunConfig, load
from rollout.strict import expanded

LEFT_OUT = {".git", ".gitignore", ".venv", "__pycache__"}
"""Names that are never taken along; the third would have Ray leave out others."""
NAMED = 5
"""How many of the largest paths a refusal names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What is sent for a recipe."""

    config: RunConfig
    recipe: str
    """Its path in the package."""
    sizes: dict[Path, int]
    """Bytes by path, relative to here and to the package."""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def write(self, folder: Path, recipe: Path) -> None:
        """Copy everything into a new folder."""
        for path in self.sizes:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(recipe if str(path) == self.recipe else path, folder / path)


def package(recipe: Path, overrides: Sequence[str], include: Sequence[Path], limit_mb: float) -> Package:
    """For a job that is submitted from the current directory. Raises ConfigError with every problem."""
    config, read = load(recipe, list(overrides)), Recipe(recipe)
    for text in overrides:
        read.override(text, RunConfig)
    read.repeat_iterations()
    problems = []
    if not expanded(Path(read.data.get("output") or "runs")).is_absolute():
        found = f"found {read.data.get('output') or 'none'}; the directory of a job goes with the job"
        problems.append(
            f"output: {found}: expected an absolute path that every node sees, as in output=/shared/runs/{config.name}"
        )
    name = recipe.resolve().relative_to(Path.cwd()) if recipe.resolve().is_relative_to(Path.cwd()) else Path(recipe.name)
    sizes = {name: recipe.stat().st_size}
    for path in (*include, *relative_paths(config, read.data)):
        inside = Path(os.path.normpath(path))
        if inside.is_absolute() or inside.parts[:1] == ("..",):
            problems.append(
                f"{path}: is outside of the current directory; expected an absolute path in the recipe that nodes see"
            )
        elif not path.exists():
            problems.append(f"{path}: no such file or directory")
        else:
            sizes |= {file: file.stat().st_size for file in _files(inside)}
    found = Package(config=config, recipe=str(name), sizes=sizes)
    if found.bytes > limit_mb * 1e6:
        problems.append(_too_large(found, limit_mb))
    if problems:
        raise ConfigError(problems)
    return found


def relative_paths(value: object, written: object) -> Iterator[Path]:
    """The paths of a configuration, `output` aside, that its recipe writes as relative ones, as they are written."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            inner = written.get(name) if isinstance(written, dict) else None
            if name == "function" and isinstance(inner, str):
                yield from relative_paths(Path(inner), inner.rpartition(":")[0])
            elif name != "output":
                yield from relative_paths(getattr(value, name), inner)
    elif isinstance(value, tuple):
        for one, text in zip(value, written if isinstance(written, list) else [written], strict=False):
            yield from relative_paths(one, text)
    elif isinstance(value, Path) and isinstance(written, str) and not expanded(Path(written)).is_absolute():
        yield Path(written)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, inner, names in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if name not in LEFT_OUT]
        yield from (Path(folder, name) for name in names if name not in LEFT_OUT)


def _too_large(found: Package, limit_mb: float) -> str:
    largest = sorted(found.sizes.items(), key=lambda item: -item[1])[:NAMED]
    listed = "".join(f"\n  {size / 1e6:.1f} MB  {path}" for path, size in largest)
    what = f"the job would take {found.bytes / 1e6:.1f} MB along, and --limit-mb is {limit_mb:g}"
    return f"{what}; expected large files under absolute paths that every node sees. The largest:{listed}"
