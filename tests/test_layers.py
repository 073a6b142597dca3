"""OpSpec -> module: who builds what, the shapes that come out, where the weights come from."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwnas import layers
from hwnas.errors import SpaceError
from hwnas.op import OpSpec


def kernels(module: nn.Module) -> list[tuple[int, int, int, int]]:
    """(in, out, kernel, groups) of each convolution, in order."""
    found = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    return [(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.groups) for layer in found]


def test_unknown_kinds_suggest_the_nearest() -> None:
    with pytest.raises(SpaceError, match="no builder for operator kind 'mbcnv'; did you mean 'mbconv'"):
        layers.build(OpSpec("mbcnv", 1, 1, 1, 1))
    with pytest.raises(SpaceError, match="no builder for operator kind 'mbcnv'"):
        layers.output_shape(OpSpec("mbcnv", 1, 1, 1, 1))


def test_a_kind_has_one_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_KINDS", dict(layers._KINDS))

    def ours(op: OpSpec) -> nn.Module:
        return nn.Identity()

    assert layers.operator("ours")(ours) is ours
    assert "ours" in layers.kinds()
    layers.operator("ours")(ours)  # a module that is imported again
    with pytest.raises(SpaceError, match=r"operator kind 'mbconv' is built by hwnas\.layers already"):
        layers.operator("mbconv")(ours)


@given(st.sampled_from(["conv_bn_relu", "conv_bn", "avg_pool", "max_pool", "mbconv", "resnet_reduction", "sep_conv"]), st.integers(3, 17),
       st.integers(3, 17), st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))  # fmt: skip
def test_any_size_comes_out_as_declared(kind: str, height: int, width: int, kernel: int, stride: int) -> None:
    op = OpSpec(kind, 4, 4, height, width, kernel, stride, hidden=8 if kind == "mbconv" else 0)
    assert layers.build(op).eval()(torch.zeros(2, 4, height, width)).shape == (2, *layers.output_shape(op))


def test_classifiers_give_vectors() -> None:
    for kind in ("classifier", "bn_relu_classifier"):
        op = OpSpec(kind, 6, 3, 7, 5, stride=7)
        assert layers.output_shape(op) == (3,)
        assert layers.build(op).eval()(torch.zeros(2, 6, 7, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    "op", [OpSpec("identity", 4, 8, 8, 8), OpSpec("identity", 4, 4, 8, 8, stride=2), OpSpec("avg_pool", 4, 8, 8, 8, 3)]
)
def test_operators_that_cannot_change_the_shape_refuse_to(op: OpSpec) -> None:
    with pytest.raises(SpaceError, match="must keep its"):
        layers.build(op)


def test_inverted_bottleneck() -> None:
    assert kernels(layers.build(OpSpec("mbconv", 8, 12, 8, 8, 5, hidden=24))) == [(8, 24, 1, 1), (24, 24, 5, 24), (24, 12, 1, 1)]
    assert kernels(layers.build(OpSpec("mbconv", 8, 12, 8, 8, 5, hidden=8))) == [(8, 8, 5, 8), (8, 12, 1, 1)]
    residual = [OpSpec("mbconv", 8, 8, 8, 8, 3, hidden=24)]
    plain = [OpSpec("mbconv", 8, 8, 8, 8, 3, 2, hidden=24), OpSpec("mbconv", 8, 12, 8, 8, 3, hidden=24)]
    assert [isinstance(layers.build(op), layers.Residual) for op in [*residual, *plain]] == [True, False, False]


def test_residual_adds_what_came_in() -> None:
    module = layers.build(OpSpec("mbconv", 4, 4, 6, 6, 3, hidden=8)).eval()
    assert isinstance(module, layers.Residual)
    image = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module(image), module.body(image) + image)


def test_pooling_counts_only_what_is_inside() -> None:
    ones = torch.ones(1, 2, 5, 5)
    torch.testing.assert_close(layers.build(OpSpec("avg_pool", 2, 2, 5, 5, 3))(ones), ones)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 6), (7, 5)])
def test_a_pooling_of_two_is_over_what_is_inside(height: int, width: int, stride: int) -> None:
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    for kind, over in (("avg_pool", torch.mean), ("max_pool", torch.amax)):
        op = OpSpec(kind, 3, 3, height, width, 2, stride)
        out = layers.build(op)(image)
        assert out.shape == (2, *layers.output_shape(op))
        for i in range(op.out_height):
            for j in range(op.out_width):
                window = image[:, :, stride * i : stride * i + 2, stride * j : stride * j + 2]
                torch.testing.assert_close(out[:, :, i, j], over(window, (2, 3)))


@pytest.mark.parametrize("op", [OpSpec("max_pool", 4, 8, 8, 8, 3), OpSpec("avg_pool", 4, 4, 8, 8, 4), OpSpec("concat", 4, 6, 8, 8),
    OpSpec("factorized_reduce", 4, 4, 8, 8), OpSpec("learned_group_conv", 6, 8, 4, 4, groups=4)])  # fmt: skip
def test_operators_of_sizes_that_they_cannot_have(op: OpSpec) -> None:
    with pytest.raises(SpaceError, match=str(op)):
        layers.build(op)


def test_separable_convolution() -> None:
    module = layers.build(OpSpec("sep_conv", 8, 12, 8, 8, 5, 2))
    assert kernels(module) == [(8, 8, 5, 8), (8, 12, 1, 1), (12, 12, 5, 12), (12, 12, 1, 1)]
    assert [layer.stride for layer in module.modules() if isinstance(layer, nn.Conv2d)] == [(2, 2), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 7)])
def test_a_factorized_reduction_sees_every_second_pixel_twice(height: int, width: int) -> None:
    op = OpSpec("factorized_reduce", 2, 3, height, width, stride=2)
    module = layers.build(op).eval()
    image = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    out = module(image)
    assert out.shape == (1, *layers.output_shape(op))
    for channels, first in ((slice(0, 1), 0), (slice(1, 3), 1)):
        (reach,) = torch.autograd.grad(out[:, channels].sum(), image, retain_graph=True)
        seen = torch.zeros(height, width, dtype=torch.bool)
        seen[first::2, first::2] = True
        assert torch.equal((reach != 0).any(1)[0], seen)


def test_a_concatenation_stands_in_the_order_of_its_inputs() -> None:
    left, right = torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2)
    assert layers.build(OpSpec("concat", 3, 3, 2, 2))(left, right)[0, :, 0, 0].tolist() == [0, 1, 1]


def test_a_learned_group_convolution_reads_its_channels_by_index() -> None:
    learned = layers.build(OpSpec("learned_group_conv", 8, 4, 2, 2, groups=2))
    with torch.no_grad():
        weight = torch.zeros(4, 8, 1, 1)
        weight[:2, ::2], weight[2:, 1::2] = 1.0, 2.0  # the first group prefers even inputs, the second odd ones
        learned.load_state_dict({**learned.state_dict(), "weight": weight})
    index, convolution, shuffle = layers.finished(learned).children()
    assert isinstance(index, layers.ChannelIndex) and isinstance(convolution, nn.Conv2d) and isinstance(shuffle, layers.ChannelShuffle)
    assert index.index.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert convolution.groups == 2
    assert convolution.weight.flatten(1).tolist() == [[1.0] * 4, [1.0] * 4, [2.0] * 4, [2.0] * 4]
    image = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for channel, group in enumerate([0, 1, 0, 1]):  # dealt out in turn
        (reach,) = torch.autograd.grad(learned.eval()(image)[:, channel].sum(), image)
        assert (reach != 0).any((0, 2, 3)).nonzero().flatten().tolist() == list(range(group, 8, 2))


def test_reduction_of_an_odd_side_is_the_same_in_onnx_runtime() -> None:
    module = layers.build(OpSpec("resnet_reduction", 3, 6, 7, 7, stride=2)).eval()
    image = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (image,), file, dynamo=False, input_names=["input"])  # type: ignore[arg-type]
    (computed,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"input": image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(computed, module(image).numpy(), rtol=1e-4, atol=1e-5)


def test_weights_follow_from_the_generator() -> None:
    op = OpSpec("mbconv", 16, 32, 8, 8, 3, hidden=96)
    modules = [layers.build(op) for _ in range(3)]
    for module, seed in zip(modules, (1, 1, 2), strict=True):
        layers.initialise(module, torch.Generator().manual_seed(seed))
    first, same, other = (torch.cat([parameter.flatten() for parameter in module.parameters()]) for module in modules)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    for layer in modules[0].modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[:, 0].numel() // layer.groups
            assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
        if isinstance(layer, nn.BatchNorm2d):
            assert torch.equal(layer.weight.detach(), torch.ones_like(layer.weight))


def test_a_learned_group_convolution_condenses_in_the_first_half() -> None:
    module = layers.build(OpSpec("learned_group_conv", 16, 8, 4, 4, groups=4))
    assert isinstance(module, layers.LearnedGroupConv)
    layers.initialise(module, torch.Generator().manual_seed(0))
    magnitudes = module.weight.detach().abs().reshape(4, 2, 16).sum(1)
    left = []
    for share in (0.0, 0.16, 0.17, 0.34, 0.49, 0.5, 1.0):
        module.progress(share)
        left.append(module.mask.sum(1).tolist())
    assert left == [[number] * 4 for number in (16, 16, 12, 8, 8, 4, 4)]
    assert torch.equal(module.mask.bool(), magnitudes >= magnitudes.topk(4, 1).values[:, -1:])
    module.progress(0.1)
    assert module.mask.sum() == 16  # what is gone does not come back


def test_a_learned_group_convolution_computes_the_same_however_it_is_written() -> None:
    module = layers.build(OpSpec("learned_group_conv", 16, 8, 4, 4, groups=4))
    generator = torch.Generator().manual_seed(0)
    layers.initialise(module, generator)
    image = torch.randn(2, 16, 4, 4, generator=generator)
    dense = module.train()(image)
    assert isinstance(module, layers.LearnedGroupConv)
    deployed = layers.finished(module.eval())
    assert [tuple(p.shape) for p in deployed.parameters()] == [(8, 4, 1, 1)]
    with torch.inference_mode():
        torch.testing.assert_close(deployed(image), module(image))
        assert not torch.allclose(module(image), dense)
        module.progress(1.0)
        torch.testing.assert_close(module.train()(image), deployed(image))


def test_the_group_lasso_is_its_formula() -> None:
    module = layers.build(OpSpec("learned_group_conv", 8, 8, 4, 4, groups=2))
    assert isinstance(module, layers.LearnedGroupConv)
    layers.initialise(module, torch.Generator().manual_seed(0))
    by_hand = sum(float(module.weight.detach()[4 * g : 4 * g + 4, i].norm()) for g in range(2) for i in range(8))
    assert float(module.penalty().detach()) == pytest.approx(module.LASSO * by_hand, rel=1e-5)
    torch.autograd.backward(module.penalty())
    assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


def test_channels_that_groups_do_not_divide() -> None:
    with pytest.raises(SpaceError, match="has channels that 4 groups do not divide"):
        layers.build(OpSpec("learned_group_conv", 6, 8, 4, 4, groups=4))


def test_concatenation_is_along_the_channels() -> None:
    module = layers.build(OpSpec("concat", 5, 5, 4, 4))
    a, b = torch.ones(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)
    assert module(a, b)[0, :, 0, 0].tolist() == [1, 1, 0, 0, 0]
