"""What every HTTP server of the project is made of: errors as JSON, limits, access, starting and stopping.

    connection.py -> request_id.py -> errors.py -> access.py -> lifecycle.py -> limits.py -> the application

`stack.py` puts the layers together, `running.py` runs the result.
"""
