"""The verification workbench: traces, dumps, and the search for the first wrong bit and its cause."""
