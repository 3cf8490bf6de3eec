"""shiftmax (SPEC 4.7)."""

from ._exam import Exam, dtypes, row_extremes, softmax_rows

EXAMS = (Exam("shiftmax", "4.7", branches=(*softmax_rows(), *dtypes("int8", "int16")), worst=row_extremes),)
