"""Training: so far what the embedded model needed, on one process."""
