"""Evaluation: benchmarks answered, scored, compared and reported (`llava eval`)."""
