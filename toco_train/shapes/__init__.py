"""A synthetic data set that poses the problem of weak supervision: shared bodies, telling parts, telling backdrops."""
