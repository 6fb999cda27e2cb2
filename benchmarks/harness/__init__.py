"""Measuring: timing in turns, fresh processes, load, peaks of the machine, provenance."""
