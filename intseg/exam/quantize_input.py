"""quantize_input (SPEC 4.1)."""

from ._exam import Branch, Exam

_BRANCHES = (
    Branch("pixel-0", "pixel 0", lambda f: f["in0"] == 0),
    Branch("pixel-255", "pixel 255", lambda f: f["in0"] == 255),
    Branch("channels", "three different tables", lambda f: f["table"][0] != f["table"][2]),
)

EXAMS = (Exam("quantize_input", "4.1", branches=_BRANCHES),)
