"""`llava selftest --attack URL`: attacks one's own deployment on this machine, and says what came of it.

    command.py -> running.py -> network.py, wire.py, pictures.py, text.py -> target.py -> service.py

Each attack is a generator of trials over a `Target`; `corpus.py` makes the hostile pictures, and
`canary.py` the listeners that nobody may call.
"""
