"""Triton on this machine, and the command for NVIDIA's container."""
