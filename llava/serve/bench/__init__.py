"""`llava bench`: how fast an engine answers, alone and under load."""
