"""A run's page: one HTML file that needs no network. Whatever the data says goes into it compressed, never as markup."""

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from cluster.page.curves import page_head
from cluster.page.outputs import Pieces, chosen, count_lines, parts_of, sample_files, token_pieces
from cluster.records.samples import write_text

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("core.js", "charts.js", "views.js", "samples.js")
LIMIT = 50_000
"""So many samples of a run are put into a file."""


def write_page(run_dirs: Sequence[Path], path: Path, limit: int = LIMIT) -> dict:
    """The page of one run, or of several side by side; returns its head (see `page_head`).

    Raises ValueError where a directory is no run.
    """
    head = page_head(run_dirs)
    blocks = []
    for number, run_dir in enumerate(run_dirs):
        counts = {step: count_lines(file) for step, file in sample_files(run_dir).items()}
        steps = chosen(counts, limit)
        parts = list(parts_of(run_dir, steps, pieces_of(run_dir)))
        head["runs"][number]["samples"] = [part.index for part in parts]
        head["runs"][number]["left_out"] = sum(counts.values()) - sum(counts[step] for step in steps)
        blocks += [_block(f"part-{number}-{part.index['step']}", part.data) for part in parts]
    write_text(path, page(" | ".join(run["name"] for run in head["runs"]), [_block("head", packed(head)), *blocks]))
    return head


def page(title: str, blocks: Sequence[str], *, live: bool = False) -> str:
    """The markup: nothing may be loaded, and only the page's own script and style are in force."""
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    allowed = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
        + "; connect-src 'self'" * live
    )
    parts = {
        "@POLICY": allowed, "@STYLE": style, "@LIVE": str(int(live)), "@SCRIPT": script, "@BLOCKS": "\n".join(blocks),
        "@TITLE": html.escape(title),
    }  # fmt: skip
    text = (ASSETS / "page.html").read_text(encoding="utf-8")
    for mark, part in parts.items():
        before, _, after = text.partition(mark)
        text = before + part + after
    return text


def packed(value: object) -> bytes:
    """As gzipped JSON."""
    return gzip.compress(json.dumps(value, ensure_ascii=False).encode(), 6, mtime=0)


def pieces_of(run_dir: Path) -> Pieces | None:
    """What tells the text of a token of this run."""
    config = run_dir / "config.yaml"
    settings = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}) if config.is_file() else {}
    return token_pieces(run_dir, (settings.get("model") or {}).get("path"))


def _block(name: str, data: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode()}</script>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
