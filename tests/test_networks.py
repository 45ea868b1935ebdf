"""The networks to explore and the names of their layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from initlab import ACTIVATIONS, ARCHITECTURES, cnn, init_, mlp
from initlab.networks import NORMS, PADDINGS, Blank

AFFINE = (nn.Linear, nn.Conv2d)

widths = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def names(model):
    return [name for name, _ in model.named_children()]


@settings(max_examples=30, deadline=None)
@given(features=st.integers(1, 9), widths=widths, head=st.none() | st.integers(1, 5))
def test_an_mlp_has_the_widths_asked_for_and_an_activation_after_each(features, widths, head):
    model = mlp(features, widths, "tanh", head=head)
    expected = [f"{kind}{l}" for l in range(1, len(widths) + 1) for kind in ("linear", "act")]
    assert names(model) == expected + ["head"] * (head is not None)
    assert [model[2 * l].out_features for l in range(len(widths))] == widths
    assert model(torch.ones(3, features)).shape == (3, head or widths[-1])


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 4), widths=widths, head=st.none() | st.integers(1, 5))
def test_a_cnn_keeps_the_image_size_and_pools_before_its_head(channels, widths, head):
    model = cnn(channels, widths, "relu", head=head)
    out = model(torch.ones(2, channels, 8, 8))
    assert out.shape == ((2, widths[-1], 8, 8) if head is None else (2, head))
    tail = ["pool", "flatten", "head"] * (head is not None)
    assert names(model)[2 * len(widths) :] == tail


def test_dropout_stands_before_each_affine_layer_but_the_first():
    assert names(mlp(3, [4, 5], "relu", dropout=0.5)) == [
        "linear1", "act1", "drop1", "linear2", "act2",
    ]  # fmt: skip
    assert names(cnn(1, [4], "relu", dropout=0.5, head=2))[2:] == [
        "drop1",
        "pool",
        "flatten",
        "head",
    ]
    assert mlp(3, [4, 5], "relu", dropout=0.5)[2].p == 0.5
    with pytest.raises(ValueError, match="dropout=1 must be a probability"):
        mlp(3, [4, 5], "relu", dropout=1)


def test_the_output_of_a_network_without_head_is_activated():
    assert isinstance(mlp(3, [4, 5], "relu")[-1], nn.ReLU)
    assert (mlp(3, [4, 5], "relu")(torch.randn(50, 3)) >= 0).all()


def test_circular_padding_keeps_a_constant_image_constant():
    out = cnn(2, [4, 4], "tanh", padding_mode="circular")(torch.ones(1, 2, 8, 8))
    assert torch.allclose(out, out[..., :1, :1].expand_as(out), atol=1e-6)
    assert PADDINGS == ("zeros", "circular")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("norm", "mlp_kind", "cnn_kind"),
    [("batch", nn.BatchNorm1d, nn.BatchNorm2d), ("layer", nn.LayerNorm, nn.GroupNorm)],
)
def test_a_norm_stands_between_each_affine_layer_and_its_activation(
    architecture, norm, mlp_kind, cnn_kind
):
    model = ARCHITECTURES[architecture](3, [4, 5], "relu", norm=norm)
    affine = "linear" if architecture == "mlp" else "conv"
    assert names(model) == [f"{kind}{l}" for l in (1, 2) for kind in (affine, "norm", "act")]
    assert isinstance(model.norm1, mlp_kind if architecture == "mlp" else cnn_kind)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_activation_and_norm_fits_every_architecture(architecture, name, norm):
    shape = (4, 3, 8, 8) if architecture == "cnn" else (4, 3)
    model = ARCHITECTURES[architecture](3, [5, 6], name, norm=norm, head=2)
    assert model(torch.randn(shape)).isfinite().all()


def test_each_layer_has_an_activation_module_of_its_own():
    model = mlp(3, [4, 4], "prelu")
    assert model.act1 is not model.act2
    assert mlp(3, [4], torch.sin)(torch.zeros(1, 3)).shape == (1, 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_blank_network_initialized_equals_a_drawn_one_initialized(architecture, norm):
    make = ARCHITECTURES[architecture]
    drawn = make(3, [5, 6], "prelu", norm=norm, head=2)
    before = torch.get_rng_state()
    with Blank():
        blank = make(3, [5, 6], "prelu", norm=norm, head=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not module.weight.any() for module in blank if isinstance(module, AFFINE))
    for model in (drawn, blank):
        init_(model, "pytorch_default", seed=7)
    torch.testing.assert_close(blank.state_dict(), drawn.state_dict(), rtol=0, atol=0)
    assert [type(module) for module in blank] == [type(module) for module in drawn]


@pytest.mark.parametrize("make", [mlp, cnn])
def test_wrong_sizes_are_refused_by_name_and_value(make):
    inputs = "in_features" if make is mlp else "in_channels"
    with pytest.raises(ValueError, match=f"{inputs}=0 must be at least 1"):
        make(0, [4])
    with pytest.raises(ValueError, match=r"widths\[1\]=-3 must be at least 1"):
        make(3, [4, -3])
    with pytest.raises(TypeError, match=r"widths\[0\]=2.5 must be a whole number"):
        make(3, [2.5])
    with pytest.raises(ValueError, match="widths is empty"):
        make(3, [])
    with pytest.raises(TypeError, match="widths=4 must be a sequence"):
        make(3, 4)
    with pytest.raises(ValueError, match="head=0 must be at least 1"):
        make(3, [4], head=0)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown activation 'rellu'; did you mean 'relu'"):
        mlp(3, [4], "rellu")
    with pytest.raises(ValueError, match="unknown norm 'bach'; did you mean 'batch'"):
        mlp(3, [4], norm="bach")
    with pytest.raises(ValueError, match="unknown padding_mode 'zeroes'; did you mean 'zeros'"):
        cnn(3, [4], padding_mode="zeroes")
