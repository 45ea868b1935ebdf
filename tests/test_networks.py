import pytest
import torch

from initlab import cnn, mlp


def test_an_mlp_has_the_asked_layers():
    net = mlp(5, [7, 6], "tanh", norm="batch", head=3)
    names = [name for name, _ in net.named_children()]
    assert names == ["linear1", "norm1", "act1", "linear2", "norm2", "act2", "head"]
    assert net(torch.randn(4, 5)).shape == (4, 3)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_a_cnn_keeps_the_image_size(padding, norm):
    net = cnn(1, [4, 5], "relu", norm=norm, padding_mode=padding)
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 5, 8, 8)
    assert cnn(1, [4], head=10)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_bad_sizes_and_names_are_refused():
    with pytest.raises(ValueError, match="widths is empty"):
        mlp(3, [])
    with pytest.raises(ValueError, match=r"widths\[0\]=0"):
        mlp(3, [0])
    with pytest.raises(ValueError, match="did you mean 'batch'"):
        mlp(3, [3], norm="bach")
    with pytest.raises(ValueError, match="unknown padding_mode"):
        cnn(3, [3], padding_mode="wrap")
