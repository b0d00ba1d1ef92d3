"""Scores with intervals beside honest baselines."""
