"""Measuring: timing calls in turn, fresh processes, load, peaks of the machine, provenance."""
