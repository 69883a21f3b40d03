"""The OpenAI-compatible API: a body becomes a Request, an Answer becomes a completion.

    body.py -> messages.py, pictures.py -> request_queue.py -> an engine -> completions.py

`chat.py` is the route; `models.py` knows which models there are.
"""
