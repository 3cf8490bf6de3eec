"""What another implementation is judged by: vectors, digests, coverage, truth tables, the flat form."""
