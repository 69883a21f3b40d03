"""Tests of llava.train.parallel."""
