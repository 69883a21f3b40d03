"""Ways to talk with a model: so far the terminal, one question, and batches from files."""
