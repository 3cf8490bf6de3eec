"""Tools run as scripts and import each other by file name: their folder and this one go on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "tools"), str(HERE.parent)]
