"""Tests of tools/ share the configurations beside them: this folder goes on the path."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
