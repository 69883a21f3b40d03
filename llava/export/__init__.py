"""Checkpoints in the formats of other programs, each proved against its source.

`command` is `llava export`; `gguf`, `hf`, `legacy` and `merged` write one format each; `certify` reloads what
was written and measures how far it is from the source.
"""
