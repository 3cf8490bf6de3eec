"""`python -m intseg.cli`."""

import sys

from intseg.cli.main import main

sys.exit(main())
