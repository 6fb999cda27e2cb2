"""The losses of Token Contrast, as pure functions of tensors.

Shapes: B images, D token width, h x w tokens, N = h * w, V views of an image, K width of the projection, C foreground
classes, H x W pixels. Labels: 0 background, 1..C classes, 255 ignored.

If several processes each hold an equal share of a batch, the mean of a loss over the processes (and the mean of its
gradients, which ``DistributedDataParallel`` computes) equals the loss of the whole batch in one process. A loss that
divides by a count therefore sums that count over all processes, so all of them must compute it. Deviation: the
published code divides by the counts of each GPU, so its loss depends on which GPU got which images. With gradient
accumulation "the batch" is one micro-batch over all processes.
"""

from toco_train.method.losses.classification import classification_loss
from toco_train.method.losses.ctc import class_token_contrast
from toco_train.method.losses.dense_energy import dense_energy_loss
from toco_train.method.losses.ptc import patch_token_contrast
from toco_train.method.losses.segmentation import balanced_segmentation_loss

__all__ = [
    "balanced_segmentation_loss",
    "class_token_contrast",
    "classification_loss",
    "dense_energy_loss",
    "patch_token_contrast",
]
