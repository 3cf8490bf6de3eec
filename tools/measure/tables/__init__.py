"""What report.py writes, table by table."""
