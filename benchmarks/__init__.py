"""Measurements and the demonstration: each prints a table and says how it was made."""
