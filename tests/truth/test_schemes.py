"""Schemes against published definitions: structure, Keras and JAX, torch's defaults, true fans."""

import math

import pytest
import torch
from torch import nn

from initlab import init_, scheme, trace

from .reference import entry_id, table


def filled(name, shape, *, seed=0, gain=None, **params):
    generator = torch.Generator().manual_seed(seed)
    drawn = scheme(name, **params)(torch.empty(shape), generator=generator, gain=gain)
    return drawn.double()


def within_standard_errors(values, std, *, kurtosis=3.0):
    """The sample's std is within 5 s.e., σ·√((κ − 1)/4N), of the stated one."""
    error = std * math.sqrt((kurtosis - 1) / (4 * values.numel()))
    return abs(float(values.double().std(correction=0)) - std) <= 5 * error


# ---------------------------------------------------------------- structure


@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (64, 64), (300, 20)], ids=str)
def test_orthogonal_matrices_have_equal_singular_values(shape):
    values = torch.linalg.svdvals(filled("orthogonal", shape, gain=1.7))
    assert values == pytest.approx(torch.full_like(values, 1.7), rel=1e-5)


@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (12, 5, 3, 3), (6, 6, 3, 5, 1), (4, 4, 2, 2)], ids=str
)
def test_a_delta_orthogonal_kernel_is_orthogonal_at_its_centre_and_zero_elsewhere(shape):
    weight = filled("delta_orthogonal", shape, gain=1.3)
    centre = weight[(slice(None), slice(None), *(size // 2 for size in shape[2:]))].clone()
    assert torch.allclose(centre.T @ centre, 1.69 * torch.eye(shape[1]).double(), atol=1e-5)
    assert int((weight != 0).sum()) == int((centre != 0).sum())


def test_a_delta_orthogonal_convolution_preserves_norms_exactly():
    """Xiao et al. 2018: an isometry, with circular padding at any depth."""
    net = nn.Sequential(
        *(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular") for _ in range(30))
    ).double()
    init_(net, "delta_orthogonal", seed=1)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    assert torch.allclose(net(x).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)], ids=str)
def test_identity_and_dirac_hold_the_gain_on_the_diagonal_and_nothing_else(shape):
    assert torch.equal(filled("identity", shape, gain=0.5), 0.5 * torch.eye(*shape).double())
    kernel = filled("dirac", (*shape, 3, 3), gain=0.5)
    assert torch.equal(kernel[:, :, 1, 1], 0.5 * torch.eye(*shape).double())
    assert int((kernel != 0).sum()) == min(shape)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.9, 1.0])
def test_every_column_of_a_sparse_matrix_holds_the_stated_number_of_zeros(share):
    weight = filled("sparse", (50, 400), sparsity=share, std=0.7)
    zeros = math.ceil(share * 50)
    assert (weight == 0).sum(dim=0).tolist() == [zeros] * 400
    others = weight[weight != 0]
    assert not others.numel() or within_standard_errors(others, 0.7)


def test_the_zeros_of_a_sparse_matrix_come_from_the_generator_unlike_torchs():
    torch.manual_seed(1)
    first = filled("sparse", (30, 20))
    torch.manual_seed(2)
    assert torch.equal(filled("sparse", (30, 20)), first)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    torchs = [
        nn.init.sparse_(torch.empty(30, 20), 0.9, generator=generator) for generator in generators
    ]
    assert not torch.equal(*torchs)  # the day that torch mends it, our docstring is out of date


def test_a_network_that_looks_linear_is_linear_and_orthogonal_at_the_start():
    """Balduzzi et al. 2017: with units in pairs ±u, relu passes on u itself."""
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 6))
    init_(
        net.double(),
        "looks_linear",
        overrides={
            "0": scheme("looks_linear", mirror="outputs"),
            "4": scheme("looks_linear", mirror="inputs"),
        },
        seed=3,
    )
    x, y = torch.randn(2, 9, 6, dtype=torch.float64)
    assert torch.allclose(net(2 * x - y), 2 * net(x) - net(y), atol=1e-9)
    assert torch.allclose(net(x).norm(dim=1), x.norm(dim=1), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "params", "shape", "bound"),
    [
        ("pytorch_default", {}, (40, 90), 1 / math.sqrt(90)),
        ("fan_in_uniform", {}, (40, 10, 3, 3), 1 / math.sqrt(90)),
        ("xavier_uniform", {}, (40, 20), math.sqrt(6 / 60)),
        ("kaiming_uniform", {}, (40, 24), math.sqrt(6 / 24)),
        ("lecun_uniform", {}, (40, 27), math.sqrt(3 / 27)),
        ("siren", {}, (40, 24), math.sqrt(6 / 24) / 30),
        ("siren", {"position": "first"}, (400, 4), 1 / 4),
    ],
)
def test_uniform_schemes_reach_their_published_bounds_and_stay_inside(name, params, shape, bound):
    """Of N draws the largest magnitude lies above bound·(1 − 10/N) but for e⁻¹⁰ of the seeds."""
    largest = float(filled(name, shape, **params).abs().max())
    assert bound * (1 - 10 / math.prod(shape)) <= largest <= bound * (1 + 1e-6)


# ---------------------------------------------------------------- Keras and JAX


@pytest.mark.parametrize(
    ("scale", "mode", "shape", "variance"),
    [
        (2.0, "fan_in", (128, 64, 3, 3), 2 / 576),  # he_normal
        (1.0, "fan_avg", (300, 100), 2 / 400),  # glorot_normal
        (1.0, "fan_in", (50, 200), 1 / 200),  # lecun_normal
        (0.5, "fan_out", (250, 80), 0.5 / 250),
    ],
)
@pytest.mark.parametrize("law", ["truncated_normal", "normal", "uniform"])
def test_variance_scaling_has_the_variance_that_keras_and_jax_define(
    scale, mode, shape, variance, law
):
    """Both: variance = scale/n, after the cut; truncated at 2·√variance/0.87962566103423978."""
    weight = filled("variance_scaling", shape, scale=scale, mode=mode, distribution=law)
    assert within_standard_errors(weight, math.sqrt(variance))
    cut = {
        "truncated_normal": 2 * math.sqrt(variance) / 0.87962566103423978,
        "normal": math.inf,
        "uniform": math.sqrt(3 * variance),
    }[law]
    assert float(weight.abs().max()) <= cut * (1 + 1e-6)
    if law == "truncated_normal":  # the cut is reached: 2.5 % of the normal's tails lie beyond 1.96
        assert float(weight.abs().max()) > 0.97 * cut


def test_the_correction_for_the_cut_is_that_of_a_normal_cut_at_two_standard_deviations():
    from scipy.stats import truncnorm

    from initlab.schemes import CUT_STD

    assert pytest.approx(truncnorm.std(-2, 2), rel=1e-12) == CUT_STD
    assert pytest.approx(0.87962566103423978, rel=1e-12) == CUT_STD


def test_without_a_scale_variance_scaling_is_kaiming():
    ours, he = scheme("variance_scaling", distribution="normal"), scheme("kaiming_normal")
    for phi in ("relu", "tanh", "gelu"):
        assert ours.gain_with(phi) == he.gain_with(phi)
    assert ours.weight_std(50, 20, 1.3) == pytest.approx(he.weight_std(50, 20, 1.3))


# ---------------------------------------------------------------- dropout, siren


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 1.0])
def test_the_dropout_correction_keeps_the_second_moment_through_dropout(keep):
    """Unit noise, dropout, linear: E h² = 1 within 5 s.e. of 512·64 weights and 200 inputs."""
    layer = nn.Linear(512, 64)
    init_(layer, "dropout_corrected", activation="identity", keep=keep, seed=0)
    x = torch.randn(200, 512, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with torch.no_grad():
        second = float(layer(nn.functional.dropout(x, 1 - keep)).square().mean())
    spread = math.sqrt(2 / (512 * 64) + (4 / keep + 2) / (512 * 200))
    assert abs(second - 1) < 5 * spread


@pytest.mark.parametrize("omega", [1.0, 30.0])
def test_a_siren_keeps_its_pre_activations_at_unit_variance(omega):
    """Sitzmann et al. 2020, sec. 3.2: ω₀·h ~ N(0, 1) in every hidden layer, biases aside.

    512 wide, 8 deep: E sin² is 1/2 up to e⁻²/2 ≈ 7 %, and each layer scatters by √(2/512) = 6 %.
    """
    layers = [nn.Linear(512, 512) for _ in range(8)]
    for seed, layer in enumerate(layers):
        init_(layer, "siren", omega=omega, bias="zeros", seed=seed)
    signal = torch.sin(torch.randn(256, 512, generator=torch.Generator().manual_seed(0)) * 3)
    for layer in layers:
        inside = omega * layer(signal).detach()
        assert 0.75 < float(inside.square().mean()) < 1.25
        signal = torch.sin(inside)


# ---------------------------------------------------------------- torch's fans and defaults

SPACE = (8, 8)
FANS = {
    "Conv2d(64,128,3)": lambda: nn.Conv2d(64, 128, 3),
    "Conv2d(64,128,3,groups=4)": lambda: nn.Conv2d(64, 128, 3, groups=4),
    "Conv2d(64,64,3,groups=64) depthwise": lambda: nn.Conv2d(64, 64, 3, groups=64),
    "ConvTranspose2d(64,128,4,stride=2)": lambda: nn.ConvTranspose2d(64, 128, 4, stride=2),
    "Conv2d(64,128,3,stride=2)": lambda: nn.Conv2d(64, 128, 3, stride=2),
    "Linear(784,256)": lambda: nn.Linear(784, 256),
}


@pytest.mark.parametrize("entry", table("t7c"), ids=entry_id)
def test_fans_are_the_true_ones_and_the_report_shows_torchs_where_they_differ(entry):
    layer = FANS[entry["id"]]()
    assert list(layer.weight.shape) == entry["weight_shape"]
    row = init_(layer, "kaiming_normal", activation="relu", mode="fan_out", seed=0)["weight"]
    assert (row.fan_in, row.fan_out) == (entry["true_fan_in"], entry["true_fan_out"])
    batch = torch.randn(
        2, layer.weight.shape[1] if layer.weight.ndim == 2 else 64, *SPACE[: layer.weight.ndim - 2]
    )
    seen = trace(layer, batch).select(kind="affine")[0]
    assert (seen.fan_in, seen.fan_out) == (row.fan_in, row.fan_out)
    assert row.intended_std == pytest.approx(math.sqrt(2 / entry["true_fan_out"]))
    torchs = (entry["torch_fan_in"], entry["torch_fan_out"])
    assert nn.init._calculate_fan_in_and_fan_out(layer.weight) == torchs
    assert (f"torch's fans are {torchs[0]} and {torchs[1]}" in row.note) == (
        torchs != (row.fan_in, row.fan_out)
    )


DEFAULTS = {
    "MHA in_proj_weight": (lambda: nn.MultiheadAttention(512, 8), "in_proj_weight"),
    "MHA out_proj": (lambda: nn.MultiheadAttention(512, 8), "out_proj.weight"),
    "RNN weight_ih": (lambda: nn.RNN(512, 512), "weight_ih_l0"),
    "Linear weight": (lambda: nn.Linear(768, 768), "weight"),
    "Linear bias": (lambda: nn.Linear(768, 768), "bias"),
    "Conv2d weight": (lambda: nn.Conv2d(64, 128, 3), "weight"),
    "ConvTranspose2d weight": (lambda: nn.ConvTranspose2d(128, 256, 3), "weight"),
    "TransformerEncoderLayer.linear1 (default Linear)": (
        lambda: nn.TransformerEncoderLayer(512, 8), "linear1.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", [e for e in table("t7d") if e["id"] in DEFAULTS], ids=entry_id)
def test_pytorch_default_is_what_torch_gives_a_fresh_layer(entry):
    """The table's tolerance: relative 5·√(0.8/N) of a uniform's variance."""
    make, name = DEFAULTS[entry["id"]]
    torch.manual_seed(0)
    layer = make()
    fresh = layer.get_parameter(name).detach().clone()
    row = init_(layer, "pytorch_default", seed=0)[name]
    assert row.intended_std**2 == pytest.approx(entry["theory_value"], rel=1e-9)
    assert row.scheme == "pytorch_default"
    tolerance = 5 * math.sqrt(0.8 / fresh.numel())
    for drawn in (fresh, layer.get_parameter(name).detach()):
        assert float(drawn.double().var()) == pytest.approx(entry["theory_value"], rel=tolerance)
        assert float(drawn.abs().max()) <= math.sqrt(3) * row.intended_std * (1 + 1e-6)


def test_the_two_biases_of_a_recurrent_layer_add_up_to_two_thirds_over_hidden():
    entry = next(e for e in table("t7d") if e["id"] == "RNN bias_ih+bias_hh")
    rows = init_(nn.RNN(512, 512), "pytorch_default", seed=0)
    total = sum(rows[name].intended_std ** 2 for name in ("bias_ih_l0", "bias_hh_l0"))
    assert total == pytest.approx(entry["theory_value"], rel=1e-9)


def test_embeddings_are_unit_normals_unless_asked_otherwise():
    entry = next(e for e in table("t7d") if e["id"] == "Embedding weight")
    model = nn.Embedding(2000, 64)
    row = init_(model, "xavier_normal", overrides={nn.Embedding: "pytorch_default"}, seed=0)[0]
    assert row.intended_std**2 == entry["theory_value"]
    assert within_standard_errors(model.weight.detach(), 1.0)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("nn.Transformer encoder linear1 (xavier_uniform)", "encoder.layers.0.linear1.weight"),
        ("nn.Transformer out_proj (xavier_uniform)", "encoder.layers.0.self_attn.out_proj.weight"),
    ],
)
def test_nn_transformer_draws_by_xavier_uniform(label, name):
    entry = next(e for e in table("t7d") if e["id"] == label)
    torch.manual_seed(0)
    model = nn.Transformer(512, 8, 1, 1, 2048, batch_first=True)
    fresh = model.get_parameter(name).detach()
    assert within_standard_errors(fresh, math.sqrt(entry["theory_value"]), kurtosis=1.8)
    row = init_(model, "xavier_uniform", seed=0)[name]
    assert row.intended_std**2 == pytest.approx(entry["theory_value"], rel=1e-9)


# ---------------------------------------------------------------- the variance comes out right

LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), (64, 300)),
    "conv": (lambda: nn.Conv2d(16, 32, 3), (4, 16, 24, 24)),
    "dilated": (lambda: nn.Conv2d(16, 32, 3, dilation=2), (4, 16, 24, 24)),
    "grouped": (lambda: nn.Conv2d(32, 64, 3, groups=4), (4, 32, 24, 24)),
    "depthwise": (lambda: nn.Conv1d(512, 512, 5, groups=512), (4, 512, 64)),
    "conv3d": (lambda: nn.Conv3d(8, 16, (3, 2, 1)), (2, 8, 12, 12, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(32, 64, 4, stride=2), (4, 32, 24, 24)),
    "transposed odd": (lambda: nn.ConvTranspose1d(64, 128, 3, stride=2), (4, 64, 200)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(32, 64, 3, stride=3, groups=4), (4, 32, 20, 20),
    ),
}  # fmt: skip


def interior(tensor):
    """Away from borders, by multiples of every stride above, so that phases stay balanced."""
    for dim in range(2, tensor.ndim):
        margin = 6 if tensor.shape[dim] > 30 else 3 if tensor.shape[dim] > 14 else 0
        tensor = tensor.narrow(dim, margin, (tensor.shape[dim] - 2 * margin) // 6 * 6 or 1)
    return tensor


@pytest.mark.parametrize("name", ["lecun_normal", "orthogonal"])
@pytest.mark.parametrize("kind", LAYERS)
def test_with_true_fans_a_layer_keeps_the_second_moment_of_unit_noise(kind, name):
    """5 s.e.: √(2/N) from N weights, √(2/M) from M independent inputs, times 2 for overlap."""
    make, shape = LAYERS[kind]
    layer = make()
    init_(layer, name, seed=0)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        second = float(interior(layer(noise)).square().mean())
    expected = 1.0
    if name == "orthogonal":  # rows are orthonormal only where there are no more of them
        parts = [p.flatten(1) for p in _maps(layer)]
        expected = float(sum(p.square().sum() for p in parts) / sum(p.shape[0] for p in parts))
        assert all(torch.linalg.svdvals(p).sub(1).abs().max() < 1e-5 for p in parts)
    spread = math.sqrt(2 / layer.weight.numel()) + 2 * math.sqrt(2 / noise.numel())
    assert abs(second / expected - 1) < 5 * spread


def _maps(layer):
    from initlab.layers.slots import parts_of

    return parts_of(layer)["weight"].split(layer.weight.detach())


@pytest.mark.parametrize("kind", [k for k in LAYERS if k != "conv3d"])
def test_with_true_fans_kaiming_fan_out_keeps_the_second_moment_of_gradients(kind):
    """Per input element in the interior; tolerance as forward."""
    make, shape = LAYERS[kind]
    layer = make()
    init_(layer, "kaiming_normal", activation="identity", mode="fan_out", seed=0)
    x = torch.randn(shape, requires_grad=True)
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    second = float(interior(x.grad).square().mean())
    spread = math.sqrt(2 / layer.weight.numel()) + 2 * math.sqrt(2 / output.numel())
    assert abs(second - 1) < 5 * spread


def test_a_strided_convolution_keeps_gradients_on_average_over_its_inputs():
    layer = nn.Conv2d(64, 128, 4, stride=2)
    init_(layer, "kaiming_normal", activation="identity", mode="fan_out", seed=0)
    x = torch.randn(4, 64, 26, 26, requires_grad=True)
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)))
    assert float(x.grad[:, :, 4:-4, 4:-4].square().mean()) == pytest.approx(1, rel=0.05)


def test_a_bilinear_layer_keeps_the_second_moment_of_two_unit_noises():
    layer = nn.Bilinear(40, 50, 60)
    init_(layer, "lecun_normal", seed=0)
    first, second = torch.randn(400, 40), torch.randn(400, 50)
    with torch.no_grad():
        assert float(layer(first, second).square().mean()) == pytest.approx(1, rel=0.08)
