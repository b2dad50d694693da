"""Faults in real server processes under load, and what the callers get to see."""
