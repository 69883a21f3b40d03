"""The scorers: plain functions from answers and references to figures, each with its source named."""
