"""Weights of fewer bits: which layers can do with how many (scores, allocation), and how to round them (rounding)."""
