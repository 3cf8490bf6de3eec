"""JSON of unknown origin: see intseg/files.py."""

from intseg.files import parse_json as parse
from intseg.files import require_shallow

__all__ = ["parse", "require_shallow"]
