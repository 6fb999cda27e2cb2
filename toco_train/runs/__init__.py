"""A run on disk, as everything but training sees it: names of its files, its network, its history, its data."""
