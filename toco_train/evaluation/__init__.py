"""How good masks are: mIoU, boundary IoU, F1 and AP on a split."""
