"""Weakly-supervised semantic segmentation with Token Contrast (Ru et al., CVPR 2023): masks learnt from image tags."""
