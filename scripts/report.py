"""Makes pages about finished runs: python scripts/report.py --help."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this checkout, not an installed one

from sppnet.commands.startup import run

if __name__ == "__main__":
    run("report")
