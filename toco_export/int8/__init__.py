"""Calibration, and linear layers in int8."""
