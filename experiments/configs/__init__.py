"""One file per experiment; `default.py` explains every field."""
