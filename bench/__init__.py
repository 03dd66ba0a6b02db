"""Measurements of what ships: each module is a command, `python -m bench.NAME`."""
