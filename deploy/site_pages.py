"""What the site of docs/ takes from beside that folder: the README as its front page, the changelog, the figures."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
TARGET = re.compile(r"(?<=\]\()(?:\.\./|docs/)?([\w./-]+)")
"""Where a link leads, less the folder that the site does not have."""


def linked(text: str) -> str:
    """Links as they lead on the site."""
    return TARGET.sub(lambda match: PAGES.get(match[1], match[1]), text)


def on_files(files, config):
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=linked((ROOT / name).read_text(encoding="utf-8"))))
    for picture in sorted((ROOT / "benchmarks").glob("*.png")):
        files.append(File.generated(config, f"benchmarks/{picture.name}", content=picture.read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    return linked(markdown)
