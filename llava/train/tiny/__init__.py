"""The recipe of the embedded model InternVL-Chat-Tiny."""
