"""The decoder and the projection head on values worked out by hand, and the weights that they begin with."""

import pytest
import torch
from torch import nn

from toco_train.models.decoder import LargeFOV
from toco_train.models.projection import ProjectionHead


def test_the_decoder_sees_places_at_its_dilation_and_no_others():
    decoder = LargeFOV(1, 1, channels=1, dilation=2)
    for conv in (decoder.conv6, decoder.conv7, decoder.conv8):
        nn.init.ones_(conv.weight)
    tokens = torch.zeros(1, 1, 9, 9)
    tokens[0, 0, 4, 4] = 1
    once = torch.tensor([1.0, 0, 2, 0, 3, 0, 2, 0, 1])  # two 3-tap windows of 1s at distance 2, one after the other
    assert torch.equal(decoder(tokens)[0, 0], once[:, None] * once)


def test_the_decoder_cuts_negative_values_off_before_its_classifier():
    decoder = LargeFOV(1, 2, channels=1, dilation=1)
    for conv, value in ((decoder.conv6, -1.0), (decoder.conv7, 1.0), (decoder.conv8, 1.0)):
        nn.init.constant_(conv.weight, value)
    assert torch.equal(decoder(torch.ones(1, 1, 3, 3)), torch.zeros(1, 2, 3, 3))
    nn.init.constant_(decoder.conv6.weight, 1.0)
    nn.init.constant_(decoder.conv7.weight, -1.0)
    assert torch.equal(decoder(torch.ones(1, 1, 3, 3)), torch.zeros(1, 2, 3, 3))
    nn.init.constant_(decoder.conv7.weight, 1.0)
    assert decoder(torch.ones(1, 1, 3, 3))[0, :, 1, 1].tolist() == [49.0, 49.0]  # 4 * 4 + 4 * 6 + 9


def test_the_decoder_has_no_bias_and_begins_with_the_spread_of_a_rectified_layer():
    torch.manual_seed(0)
    decoder = LargeFOV(64, 5)
    assert {name for name, _ in decoder.named_parameters()} == {"conv6.weight", "conv7.weight", "conv8.weight"}
    shapes = [tuple(weight.shape) for weight in decoder.parameters()]
    assert shapes == [(512, 64, 3, 3), (512, 512, 3, 3), (5, 512, 1, 1)]
    assert {(conv.dilation, conv.padding) for conv in (decoder.conv6, decoder.conv7)} == {((5, 5), (5, 5))}
    for weight in decoder.parameters():
        fan_in = weight[0].numel()
        assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)


def test_a_projection_is_the_cosine_with_each_weight_vector():
    torch.manual_seed(0)
    head = ProjectionHead(4, hidden_dim=8, bottleneck_dim=4, out_dim=3)
    head.mlp = nn.Identity()
    head.last_layer.parametrizations.weight.original1.data = torch.tensor(
        [[5.0, 0, 0, 0], [0, 0, 0, -2.0], [1.0, 1, 1, 1]]
    )
    tokens = torch.tensor([[[3.0, 0, 0, 4.0]]])
    expected = torch.tensor([[[0.6, -0.8, 0.7]]])  # (3, 4) / 5 with the axes; (3 + 4) / 5 / 2 with the diagonal
    torch.testing.assert_close(head(tokens), expected)


def test_a_projection_head_begins_with_small_weights_no_bias_and_a_fixed_magnitude():
    torch.manual_seed(0)
    head = ProjectionHead(64)
    layers = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(2048, 64), (2048, 2048), (256, 2048)]
    assert [type(layer) for layer in head.mlp] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    magnitude = head.last_layer.parametrizations.weight.original0
    assert torch.equal(magnitude, torch.ones(1024, 1))
    assert not magnitude.requires_grad
    assert head.last_layer.bias is None


def test_a_moving_average_keeps_the_share_of_its_momentum_in_every_weight_without_gradient():
    torch.manual_seed(0)
    student, teacher = (ProjectionHead(4, hidden_dim=8, bottleneck_dim=4, out_dim=3) for _ in range(2))
    before = [weight.clone() for weight in teacher.parameters()]
    others = [weight.clone() for weight in student.parameters()]
    teacher.ema_update(student, 0.75)
    for own, old, other in zip(teacher.parameters(), before, others, strict=True):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * other)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), others, strict=True))
    teacher.ema_update(student, 1.0)
    kept = [weight.clone() for weight in teacher.parameters()]
    teacher.ema_update(student, 0.0)
    assert not all(torch.equal(a, b) for a, b in zip(kept, teacher.parameters(), strict=True))
    for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(own, other)
