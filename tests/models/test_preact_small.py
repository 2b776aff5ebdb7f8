"""The PreActSmall against a forward written out by hand, its layers, gradients and cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssat_ray.models.base import LAYERS, num_flops
from ssat_ray.models.preact_small import PreActBlock, PreActSmall


def _net(**changes: object) -> PreActSmall:
    torch.manual_seed(0)
    options = {"widths": (4, 8), "strides": (1, 2), "blocks": 2, **changes}
    return PreActSmall(1, 3, **options)


def _scramble(net: PreActSmall) -> PreActSmall:
    """Statistics and affine parameters that differ from the identity."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for name in ("weight", "running_var"):
                torch.nn.init.uniform_(getattr(module, name), 0.5, 2.0)
            for name in ("bias", "running_mean"):
                torch.nn.init.normal_(getattr(module, name))
    return net.eval()


def _batchnorm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    def at(key: str) -> Tensor:
        return weights[f"{name}.{key}"][None, :, None, None]

    return (x - at("running_mean")) / (at("running_var") + 1e-5).sqrt() * at("weight") + at("bias")


def _by_hand(weights: dict[str, Tensor], x: Tensor, strides: tuple[int, ...], blocks: int):
    """The network from its state dict alone: (features, pooled, logits)."""
    x = F.conv2d(2 * x - 1, weights["init_conv.weight"], padding=1)
    for group, stride in enumerate(strides):
        for block in range(blocks):
            name = f"layer.{group}.{block}"
            step = stride if block == 0 else 1
            active = _batchnorm(x, weights, f"{name}.batchnorm_0").clamp(min=0)
            out = F.conv2d(active, weights[f"{name}.conv_0.weight"], stride=step, padding=1)
            out = _batchnorm(out, weights, f"{name}.batchnorm_1").clamp(min=0)
            out = F.conv2d(out, weights[f"{name}.conv_1.weight"], padding=1)
            shortcut = f"{name}.shortcut.weight"
            x = out + (
                F.conv2d(active, weights[shortcut], stride=step) if shortcut in weights else x
            )
    features = _batchnorm(x, weights, "batchnorm").clamp(min=0)
    pooled = features.flatten(2).sum(2) / (features.shape[2] * features.shape[3])
    return features, pooled, pooled @ weights["logits.weight"].T + weights["logits.bias"]


@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (1, 1)])
def test_every_layer_equals_a_forward_written_by_hand(strides: tuple[int, int]) -> None:
    net = _scramble(_net(strides=strides)).double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    features, pooled, logits = _by_hand(net.state_dict(), x, strides, 2)
    expected = {"pooled": pooled, "logits": logits, "unpooled": features.flatten(1)}
    assert set(expected) == set(LAYERS)
    for layer, value in expected.items():
        embedding, found = net.embed_with_logits(x, layer)
        torch.testing.assert_close(embedding, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12)
        assert torch.equal(net.embed(x, layer), embedding)
    torch.testing.assert_close(net(x), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net.features(x), features, rtol=1e-12, atol=1e-12)


def test_shapes_of_the_three_layers() -> None:
    net, x = _net().eval(), torch.rand(6, 1, 8, 8)
    shapes = {layer: tuple(net.embed(x, layer).shape) for layer in LAYERS}
    assert shapes == {"pooled": (6, 8), "logits": (6, 3), "unpooled": (6, 8 * 4 * 4)}
    assert net.features(x).shape == (6, 8, 4, 4)
    colour = PreActSmall(3, 7, (4,), (1,)).eval()
    assert colour(torch.rand(2, 3, 9, 11)).shape == (2, 7)
    assert net.embed(x).shape == (6, 8), "pooled is the default"


def test_logits_are_the_linear_layer_on_the_pooled_features() -> None:
    net = _scramble(_net())
    pooled, logits = net.embed_with_logits(torch.rand(4, 1, 8, 8))
    assert torch.equal(net.logits(pooled), logits)


def test_the_input_is_scaled_inside() -> None:
    net = _scramble(_net())
    seen: list[Tensor] = []
    net.init_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8))
    assert seen[0][:, 0, 0, 0].tolist() == [-1.0, 0.0, 1.0]


def test_gradients_reach_every_parameter_and_the_input() -> None:
    net, x = _net().train(), torch.rand(6, 1, 8, 8, requires_grad=True)
    F.cross_entropy(net(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert x.grad is not None and (x.grad != 0).any((1, 2, 3)).all()


def test_rows_are_independent_in_eval_mode() -> None:
    net, x = _scramble(_net()), torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(net(x)[4:], net(x[4:]), rtol=1e-5, atol=1e-6)


def test_the_shortcut_is_there_exactly_where_the_shape_changes() -> None:
    assert PreActBlock(4, 4, 1).shortcut is None
    for args in ((4, 8, 1), (4, 4, 2)):
        shortcut = PreActBlock(*args).shortcut
        assert shortcut is not None and shortcut.kernel_size == (1, 1)


def test_state_dict_names() -> None:
    keys = set(_net(blocks=1).state_dict())
    expected = {"init_conv.weight", "layer.0.0.conv_0.weight", "layer.1.0.shortcut.weight"}
    expected |= {"batchnorm.running_var", "logits.bias", "layer.0.0.batchnorm_1.weight"}
    assert expected <= keys and not any(key.startswith("layer.0.0.shortcut") for key in keys)


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'poled'.*pooled, logits, unpooled"):
        _net().eval().embed(torch.rand(1, 1, 8, 8), "poled")


@pytest.mark.parametrize("training", [True, False])
def test_flops_equal_a_count_by_hand_and_leave_the_model_alone(training: bool) -> None:
    net = _net(blocks=1).train(training)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    convolutions = [  # output pixels, channels in and out, kernel area
        (64, 1, 4, 9),
        (64, 4, 4, 9),
        (64, 4, 4, 9),
        (16, 4, 8, 9),
        (16, 8, 8, 9),
        (16, 4, 8, 1),
    ]
    expected = sum(2 * p * i * o * k for p, i, o, k in convolutions) + 2 * 8 * 3
    assert num_flops(net, (1, 8, 8)) == expected
    assert net.training is training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
