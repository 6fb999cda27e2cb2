"""The paper's two figures: similarity of patch tokens over the blocks, and to one place in an image."""
