"""Scores that a judge model gives: asking it, reading what it says, and how far to believe it."""
