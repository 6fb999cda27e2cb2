"""Token Contrast as the paper states it: CAM, PAR, pseudo labels, local crops, the losses, the objective."""
