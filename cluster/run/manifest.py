"""The manifest of a checkpoint: its files with their digests, and what is wrong with them."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

FILE = "manifest.json"
SETTLED_SECONDS = 1.0
"""A file that has not changed for so long shows a later change in its times."""


def seal(folder: Path, head: Mapping, promised: Mapping[str, int]) -> None:
    """Write the manifest of {file: least size in bytes}, everything being there and on disk. Raises RuntimeError where a file
    is missing or short."""
    for name, least in promised.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found is None or found < least:
            why = f"{name} is missing" if found is None else f"{name} has {found} of at least {least} bytes"
            raise RuntimeError(f"{why} (on several nodes the run directory must be on a file system that all of them share)")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in promised}
    (folder / FILE).write_text(_text({**head, "files": files}))
    written = [folder / name for name in (*promised, FILE)]
    for path in (*written, *{path.parent for path in written}):
        sync(path)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, naming the file; empty when all of it is as its manifest says."""
    try:
        text = (folder / FILE).read_text()
        manifest = json.loads(text)
        if text != _text(manifest):
            return f"{FILE} does not have the content that was saved"
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} does not have the content that was saved"
    except FileNotFoundError:
        return f"{FILE} is missing"
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{FILE} is not a checkpoint's"
    return ""


def number(folder: Path) -> int:
    """The position among all checkpoints written in the run, from 1; 0 where the manifest does not say."""
    try:
        return int(json.loads((folder / FILE).read_text())["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def size(folder: Path) -> int:
    """Bytes of the checkpoint's files; 0 where the manifest does not say."""
    try:
        return sum(int(entry["bytes"]) for entry in json.loads((folder / FILE).read_text())["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _text(body: Mapping) -> str:
    """The manifest's text, which holds its own digest."""
    body = {name: value for name, value in body.items() if name != "sha256"}
    return json.dumps(body | {"sha256": hashlib.sha256(json.dumps(body).encode()).hexdigest()}, indent=1)


def sha256(path: Path) -> str:
    """Digest of a file's content; remembered while the file does not change."""
    found = path.stat()
    if time.time() - found.st_mtime < SETTLED_SECONDS:
        return _digest.__wrapped__(path, None)
    return _digest(path, (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=4096)
def _digest(path: Path, version: object) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
