"""The command line: `python -m intseg.cli`, installed as `intseg`."""
