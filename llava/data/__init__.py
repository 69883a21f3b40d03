"""Training data: records, mixtures, samples as tokens and pixels, their order, and batches."""
