"""What turns a request into text. Only `gate.py` may call these for a served answer."""
