"""Tests of llava.serve.http."""
