"""The web page, and what it does without gradio: dialogues, pictures, votes, logs, moderation, model list."""
