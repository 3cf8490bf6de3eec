"""Tools run as scripts and import each other by file name: put their folder on the path as Python would."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
