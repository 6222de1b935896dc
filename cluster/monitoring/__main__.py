"""`python -m cluster.monitoring [FOLDER]`: write the generated files below a folder, by default this one."""

import sys
from pathlib import Path

from cluster.monitoring.files import write

if __name__ == "__main__":
    write(Path(*sys.argv[1:2]))
