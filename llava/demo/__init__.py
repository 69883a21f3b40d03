"""The embedded model InternVL-Chat-Tiny, its pictures and its world of scenes."""
