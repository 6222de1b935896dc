"""The page of a run that goes on: served on loopback, read anew from the run's directory, which is only read."""

import gzip
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cluster.page.curves import balance_facts, page_head
from cluster.page.html import packed, page, pieces_of
from cluster.page.outputs import Part, read_part, sample_files
from cluster.run.directory import in_use

HOST = "127.0.0.1"
FILES = ("metrics.jsonl", "evaluations.jsonl", "reward_model.jsonl", "alarms.jsonl", "summary.json", "config.yaml")
RESTS = 10
"""A ledger is not read again before ten times as long as reading it took."""


class Reader:
    """What the page asks for; a file is read again when it has changed."""

    def __init__(self, run_dirs: Sequence[Path]):
        """Raises ValueError where a directory is no run."""
        self.run_dirs = list(run_dirs)
        self._lock = threading.Lock()
        self._parts: dict[Path, tuple[str, Part]] = {}
        self._balances: dict[Path, tuple[float, dict | None]] = {}
        self._pieces = [pieces_of(path) for path in run_dirs]
        self._head = ("", b"")
        self.head()

    def version(self) -> str:
        """Another one whenever a file of the runs or a run's state is another."""
        marks = [f"{path}:{_mark(path / name)}" for path in self.run_dirs for name in FILES]
        marks += [f"{file}:{_mark(file)}" for path in self.run_dirs for file in sample_files(path).values()]
        return hashlib.sha256("|".join([*marks, *map(state, self.run_dirs)]).encode()).hexdigest()[:16]

    def head(self) -> bytes:
        """Everything but the samples' texts, gzipped JSON."""
        with self._lock:
            if (version := self.version()) != self._head[0]:
                head = page_head(self.run_dirs, self._balance)
                head["version"] = version
                for number, run_dir in enumerate(self.run_dirs):
                    indices = [self._part(number, step, file).index for step, file in sample_files(run_dir).items()]
                    head["runs"][number] |= {"samples": indices, "left_out": 0, "state": state(run_dir)}
                self._head = (version, packed(head))
            return self._head[1]

    def part(self, number: int, step: int) -> bytes:
        """A step's samples, gzipped JSON. Raises KeyError or IndexError where there is none."""
        file = sample_files(self.run_dirs[number])[step]
        with self._lock:
            return self._part(number, step, file).data

    def _part(self, number: int, step: int, file: Path) -> Part:
        mark = _mark(file)
        if self._parts.get(file, ("",))[0] != mark:
            self._parts[file] = (mark, read_part(file, step, self._pieces[number]))
        return self._parts[file][1]

    def _balance(self, run_dir: Path) -> dict | None:
        due, facts = self._balances.get(run_dir, (0.0, None))
        began = time.monotonic()
        if began >= due:
            facts = balance_facts(run_dir)
            ended = time.monotonic()
            self._balances[run_dir] = (ended + RESTS * (ended - began), facts)
        return facts


class Server(ThreadingHTTPServer):
    """Answers this machine only, under an address that cannot be guessed; other names of it than loopback's are refused."""

    daemon_threads = True

    def __init__(self, run_dirs: Sequence[Path], port: int = 0):
        """`port` 0: a free one. Raises ValueError where a directory is no run, OSError where the port is taken."""
        self.reader = Reader(run_dirs)
        self.title = " | ".join(path.resolve().name for path in run_dirs)
        self.token = secrets.token_urlsafe(16)
        super().__init__((HOST, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """/TOKEN/ the page, /TOKEN/version, /TOKEN/head, /TOKEN/part/RUN/STEP; all else is not found."""
        named = self.headers.get("Host", "") in (f"{HOST}:{self.server.server_port}", f"localhost:{self.server.server_port}")
        _, token, *rest = self.path.partition("?")[0].split("/")
        if not named or not rest or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self.send_error(404)
        try:
            kind, body = self._answer(rest)
        except (KeyError, IndexError, ValueError, OSError) as error:
            return self.send_error(404, type(error).__name__)
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is the user's."""

    def _answer(self, path: list[str]) -> tuple[str, bytes]:
        reader = self.server.reader
        match path:
            case [""]:
                return "text/html", gzip.compress(page(self.server.title, [], live=True).encode())
            case ["version"]:
                return "application/json", gzip.compress(json.dumps({"version": reader.version()}).encode())
            case ["head"]:
                return "application/json", reader.head()
            case ["part", run, step]:
                return "application/json", reader.part(int(run), int(step))
        raise KeyError(path)


def state(run_dir: Path) -> str:
    """In a word: finished, running, or stopped or crashed."""
    if in_use(run_dir):
        return "running"
    return "finished" if (run_dir / "summary.json").is_file() else "stopped before its end"


def _mark(path: Path) -> str:
    try:
        found = path.stat()
    except FileNotFoundError:
        return "-"
    return f"{found.st_mtime_ns}.{found.st_size}"
