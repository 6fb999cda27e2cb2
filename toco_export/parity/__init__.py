"""Whether exported files answer as PyTorch does, on real images."""
