"""Tests of llava/serve/selftest."""
