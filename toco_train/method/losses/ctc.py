"""Class-token contrast (CTC)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_train.method.losses.full_precision import in_full_precision

_EPSILON = 1e-4


@in_full_precision
def class_token_contrast(student: Tensor, teacher: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Pull class tokens of uncertain regions towards the whole image's, and push those of background regions away.

    Args:
        student: Projections of all views by the student head, float ``[B, V, K]``.
        teacher: Projections of the two global views by the teacher head, float ``[B, 2, K]``.
        positive: Which views are positives, bool ``[B, V]``; the others are the negatives of that image.
        temperature: Softmax temperature tau, above 0.

    Returns:
        Scalar, mean over images. It is finite even for a tau so small that the exponentials would overflow.

    Source: ToCo (CVPR 2023), section 3.4; docs/method.md, step 4.
    """
    # With n = log(N + 1e-4): -log(l / (l + N + 1e-4)) = softplus(n - log l), and no exp can overflow.
    similarity = teacher.detach().float() @ student.float().transpose(1, 2) / temperature
    is_positive = positive[:, None, :]
    negatives = F.pad(similarity.masked_fill(is_positive, -torch.inf), (1, 0), value=math.log(_EPSILON))
    negatives = negatives.logsumexp(dim=2, keepdim=True)
    pull = F.softplus(negatives - similarity) * is_positive
    push = F.softplus(negatives.squeeze(2))
    per_image = (pull.sum(dim=(1, 2)) + push.sum(dim=1)) / teacher.shape[1]
    return (per_image / (is_positive.sum(dim=(1, 2)) + _EPSILON)).mean()
