"""Every kind of file that intseg reads, ways to spoil it, and the functions that read it: what fuzz.py runs.

A case is a kind, the number of a base (a small valid file or folder) and seeds of mutations; the same case is always
the same bytes. Mutations know the structure: digests, checksums of PNG chunks and lists of files are made right again
afterwards, most of the time, so that a mutation reaches the checks behind them.
"""
