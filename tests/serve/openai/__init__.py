"""Tests of llava.serve.openai."""
