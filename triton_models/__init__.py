"""The Triton model repository's own code: one folder a model, as Triton wants it (see README.md beside this file)."""
