"""Evaluation: so far the held-out questions of the embedded model."""
