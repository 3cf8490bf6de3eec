"""What experiments.py measures, table by table."""
