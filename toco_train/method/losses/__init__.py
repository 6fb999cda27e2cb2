"""The losses of Token Contrast, as pure functions of tensors.

Shapes: B images, D token width, h x w tokens, N = h * w, V views of an image, K width of the projection, C foreground
classes, H x W pixels. Labels: 0 background, 1..C classes, 255 ignore.

Where several processes hold equal shares of a batch, the mean of a loss over them, and of its gradient (which is what
``DistributedDataParallel`` takes), is that of the whole batch in one process. A loss that divides by what the batch
holds adds its counts up over the processes for that, so all of them must compute it. Deviation: the published code
divides by what each GPU holds, and its loss depends on how the images were dealt. Under gradient accumulation "the
batch" is one micro-batch, over all processes.
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
