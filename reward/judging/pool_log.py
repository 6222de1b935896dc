"""What judges print, in a file that stays small. Whatever becomes of the file, the judging goes on."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

LARGEST = 10 * 2**20
LONGEST_LINE = 1 << 16
CUT = b"\n[what is printed beyond 10 MiB is not kept]\n"


class PrintLog:
    """Appends to `path`, which is made when something is printed, as long as it has room."""

    def __init__(self, path: Path):
        self._path, self._lost = path, False

    def write(self, text: bytes) -> None:
        if self._lost or not text:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                room = LARGEST - file.tell()
                if room > 0:
                    file.write(text if len(text) <= room else text[:room] + CUT)
        except OSError as error:
            self._lost = True
            log.warning("%s: what reward.function prints is lost: %s", self._path, error)
