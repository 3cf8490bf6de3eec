"""Measurements: benchmarks, experiments and the tables and pictures made of them."""
