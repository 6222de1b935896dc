"""A folder on an object store, through fsspec, with copies of a run's checkpoints in it.

A copy is the folder `URL/step_N`: the checkpoint's files, and in `run` the records that a resume needs beside them, each with a
manifest. The checkpoint's own is written last and removed first, so that what has none is no copy.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import fsspec
from fsspec.core import url_to_fs

from cluster.config.recipe import ConfigError
from cluster.fleet.calls import within
from cluster.run.checkpoints import NAME
from cluster.run.manifest import FILE, damage, number, seal
from cluster.run.progress import OFFLINE

RECORDS = (
    "config.yaml",
    "inputs.json",
    "ledger.jsonl",
    "metrics.jsonl",
    "evaluations.jsonl",
    "reward_model.jsonl",
    "trackers.json",
)
"""Of the run directory, for every checkpoint."""
PROBE_S = 60.0
"""For a store to take and give a few bytes."""


def unusable(url: str) -> str:
    """Why fsspec cannot open such a URL, or an empty string. Nothing is connected to."""
    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ValueError, ImportError) as error:
        return f"mirror: {url}: {error}"
    return ""


def records(checkpoint: Path, beside: Path) -> list[str]:
    """The files that a resume from the checkpoint needs beside it and that are there: also the outputs that its stage made
    before the first step."""
    memory = json.loads((checkpoint / "state.json").read_text()).get("memory", {})
    made = [f"{OFFLINE}/{PurePosixPath(memory['file']).name}"] if "file" in memory else []
    return [record for record in (*RECORDS, *made) if (beside / record).is_file()]


class Store:
    """A folder of an object store, with copies in it."""

    def __init__(self, url: str):
        """Raises ConfigError for a URL that cannot be opened."""
        self.url = url
        try:
            self._fs, self._root = url_to_fs(url)
        except Exception as error:
            raise ConfigError([f"mirror: {url} cannot be opened: {error}"]) from error

    def check(self) -> None:
        """Raises ConfigError unless it can be written to and read."""

        def try_out() -> None:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(self._at(".probe"), b"probe")
            if self._fs.cat_file(self._at(".probe")) != b"probe":
                raise OSError("what was written is not what is read")
            self._fs.rm_file(self._at(".probe"))

        try:
            within(PROBE_S, try_out)
        except Exception as error:
            raise ConfigError([f"mirror: {self.url} cannot be written to: {error}"]) from error

    def copies(self) -> dict[str, int]:
        """Each folder's number among all checkpoints of the run; 0 where it is no whole copy."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self._root):
            return {}
        names = [PurePosixPath(path).name for path in self._fs.ls(self._root, detail=False)]
        found = {}
        for name in filter(NAME.fullmatch, names):
            with TemporaryDirectory() as beside:
                with suppress(FileNotFoundError):
                    self._fs.get_file(self._at(name, FILE), str(Path(beside, FILE)))
                found[name] = number(Path(beside))
        return found

    def put(self, name: str, checkpoint: Path, run_dir: Path) -> None:
        """Copy a checkpoint with the run's records, in the place of what has its name."""
        self.remove(name)
        with TemporaryDirectory() as beside:
            kept = records(checkpoint, run_dir)
            for record in kept:
                Path(beside, record).parent.mkdir(exist_ok=True)
                shutil.copyfile(run_dir / record, Path(beside, record))
            seal(Path(beside), {}, dict.fromkeys(kept, 0))
            for record in (*kept, FILE):
                self._put(Path(beside, record), name, "run", record)
        for file in (*json.loads((checkpoint / FILE).read_text())["files"], FILE):
            self._put(checkpoint / file, name, file)

    def get(self, name: str, folder: Path) -> str:
        """Fetch a copy; what is wrong with it, naming the file, or an empty string."""
        for part in (folder, folder / "run"):
            inside = part.relative_to(folder).as_posix()
            try:
                self._get(part / FILE, name, inside, FILE)
                files = list(json.loads((part / FILE).read_text())["files"])
                if outside := [file for file in files if file.startswith("/") or ".." in PurePosixPath(file).parts]:
                    return f"{FILE} names {outside[0]!r}"
                for file in files:
                    self._get(part / file, name, inside, file)
            except FileNotFoundError as error:
                return f"a file is missing: {error}"
            except (ValueError, KeyError, TypeError, AttributeError):
                return f"{FILE} is not a checkpoint's"
            if why := damage(part):
                return why
        return ""

    def remove(self, name: str) -> None:
        if self._fs.exists(self._at(name)):
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._at(name, FILE))
            self._fs.rm(self._at(name), recursive=True)

    def _at(self, *names: str) -> str:
        return "/".join((self._root, *(name for name in names if name != ".")))

    def _put(self, file: Path, *names: str) -> None:
        at = self._at(*names)
        self._fs.makedirs(at.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(file), at)
        if (size := self._fs.size(at)) != file.stat().st_size:
            raise OSError(f"{at} has {size} bytes of {file.stat().st_size}")

    def _get(self, file: Path, *names: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._fs.get_file(self._at(*names), str(file))


def newest_first(copies: Mapping[str, int]) -> list[str]:
    """The whole ones."""
    return sorted((name for name, number in copies.items() if number), key=lambda name: -copies[name])
