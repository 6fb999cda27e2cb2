"""A run on disk, as all but training see it: names of its files, its network, its history, its data."""
