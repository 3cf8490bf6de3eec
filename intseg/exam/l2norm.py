"""l2norm (SPEC 4.12)."""

from ._exam import Exam, row_extremes

EXAMS = (Exam("l2norm", "4.12", worst=row_extremes),)
