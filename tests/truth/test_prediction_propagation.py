"""Predicted and measured signals against tables t3a (256 wide, 50 deep) and t3b (784 → … → 10).

How far a measured mean over seeds may lie from the table. The table gives the relative standard
deviation over seeds, sd_l, of the mean over 64 inputs and all units of h². With S seeds the
standard error of the mean ratio is sd_l/√S; we allow 4 of them, plus the bias of finite width,
0.5·Σ 1/n over the layers before (0.5·l/n at constant width), and never less than 1 %. Where
sd_l ≥ 0.5 the ratio is log-normal (README, section 4: Var ln = sd_l², exactly so for relu), and
the mean logarithm, −sd_l²/2, is compared instead, within 4·sd_l/√S.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from initlab import Experiment, init_, mlp, predict, trace
from initlab.activations import activation
from initlab.expectations import gaussian_expectation

from .reference import entry_id, table

ENTRIES = [*table("t3a"), *table("t3b")]
SEEDS = 8
BATCH = 64
BATCH_CORRECTION = BATCH / (BATCH - 1)  # the table's variance is unbiased, a trace's is not

# The table's scheme → ours, its parameters and its gain. Its kaiming is √2 for every activation.
SCHEMES: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "torch_default_linear": ("pytorch_default", {}, None),
    "normal_std0.01": ("normal", {"std": 0.01}, None),
    "normal_var0.01": ("normal", {"std": 0.1}, None),
    "normal_std1": ("normal", {"std": 1.0}, None),
    "orthogonal_gain1": ("orthogonal", {}, 1.0),
    "orthogonal_gain_sqrt2": ("orthogonal", {}, math.sqrt(2)),
    "lecun_normal": ("lecun_normal", {}, None),
    "xavier_uniform": ("xavier_uniform", {}, None),
    "xavier_normal": ("xavier_normal", {}, None),
    "kaiming_uniform_fan_in": ("kaiming_uniform", {"mode": "fan_in", "a": 0.0}, None),
    "kaiming_uniform_fan_out": ("kaiming_uniform", {"mode": "fan_out", "a": 0.0}, None),
    "kaiming_normal_fan_in": ("kaiming_normal", {"mode": "fan_in", "a": 0.0}, None),
    "kaiming_normal_fan_out": ("kaiming_normal", {"mode": "fan_out", "a": 0.0}, None),
}


@dataclass(frozen=True)
class Network:
    """What a prediction needs to know; an Experiment on noise is as wide as its first layer."""

    sizes: tuple[int, ...]
    activation: str
    scheme: str
    scheme_params: dict[str, Any]
    gain: float | None
    architecture: str = "mlp"
    bias: None = None
    bias_std: None = None
    norm: str = "none"
    dropout: float = 0.0
    padding: str = "zeros"
    data: str = "noise"
    batch_size: int = BATCH
    data_seed: int = 0
    has_head: bool = field(default=False)


def network(entry: dict[str, Any]) -> Network:
    return Network(tuple(entry["sizes"]), entry["activation"], *SCHEMES[entry["scheme"]])


def column(entry: dict[str, Any], name: str) -> np.ndarray:
    return np.array(entry["layers"][name], dtype=float)


# ---------------------------------------------------------------- predicted


@pytest.mark.parametrize("entry", ENTRIES, ids=entry_id)
def test_the_prediction_agrees_with_the_table(entry):
    predicted = predict(network(entry))
    depth = len(entry["sizes"]) - 1
    layers = [predicted[f"linear{l}"] for l in range(1, depth + 1)]
    activations = [predicted[f"act{l}"] for l in range(1, depth + 1)]
    gradients = np.array([site.backward.second_moment for site in layers])
    for measured, name in (
        ([site.forward.second_moment for site in layers], "h_second_moment"),
        ([site.forward.second_moment for site in activations], "a_second_moment"),
        (gradients / gradients[-1], "delta_ratio_to_last"),
    ):
        np.testing.assert_allclose(measured, column(entry, name), rtol=1e-6, atol=0, err_msg=name)


@pytest.mark.parametrize("entry", table("t3a"), ids=entry_id)
def test_an_experiment_predicts_the_same_as_its_bare_fields(entry):
    name, params, gain = SCHEMES[entry["scheme"]]
    experiment = Experiment(
        depth=50, width=256, data="noise", activation=entry["activation"],
        scheme=name, scheme_params=params, gain=gain, batch_size=BATCH,
    )  # fmt: skip
    assert experiment.predict() == predict(network(entry))


# ---------------------------------------------------------------- measured


@cache
def build(sizes: tuple[int, ...], name: str, dtype: torch.dtype) -> torch.nn.Module:
    """Storage for the weights; every seed fills it anew through init_."""
    with torch.device("meta"):
        model = mlp(sizes[0], sizes[1:], name)
    return model.to_empty(device="cpu").to(dtype)


def precision(entry: dict[str, Any]) -> torch.dtype:
    """float32, which everybody uses, unless some tensor of this network leaves its range."""
    names = ("h_second_moment", "h_var_over_batch", "delta_ratio_to_last")
    values = np.concatenate([column(entry, name) for name in names])
    scale = np.sqrt(values[values > 0])
    return torch.float32 if scale.min() > 1e-30 and scale.max() < 1e30 else torch.float64


@cache
def measure(entry_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E h², variance over the batch, and E δ², each of shape (seeds, layers)."""
    entry = next(entry for entry in ENTRIES if entry["id"] == entry_id)
    net, dtype = network(entry), precision(entry)
    model = build(net.sizes, net.activation, dtype)
    rows = []
    for seed in range(SEEDS):
        init_(
            model, net.scheme, activation=net.activation, gain=net.gain, seed=seed,
            **net.scheme_params,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(1000 + seed)
        inputs = torch.randn(BATCH, net.sizes[0], generator=generator).to(dtype)
        traced = trace(model, inputs, seed=2000 + seed)
        sites = [traced[f"linear{l}"] for l in range(1, len(net.sizes))]
        rows.append(
            [
                [site.forward.second_moment for site in sites],
                [site.forward.across_samples_var * BATCH_CORRECTION for site in sites],
                [site.backward.second_moment for site in sites],
            ]
        )
    forward, across, backward = np.array(rows).swapaxes(0, 1)
    return forward, across, backward


def reliable(entry: dict[str, Any]) -> np.ndarray:
    """The layers for which infinite width says something of a network of this width.

    With gains near √2 GELU's length map repels (chi_par > 1), so that the noise of finite width
    grows exponentially with depth: to layer 10 only (README, "Where infinite width fails", 3).
    """
    depth = len(entry["sizes"]) - 1
    scheme = entry["scheme"]
    repels = entry["activation"] == "gelu" and ("kaiming" in scheme or scheme.endswith("sqrt2"))
    return np.arange(1, depth + 1) <= (10 if repels else depth)


def tolerance(sd: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """4 standard errors of a mean over the seeds, and the bias of finite width; at least 1 %."""
    return np.maximum(0.01, 4 * sd / math.sqrt(SEEDS) + bias)


def width_bias(entry: dict[str, Any]) -> np.ndarray:
    return 0.5 * np.cumsum(1 / np.array(entry["sizes"][:-1]))


@pytest.mark.parametrize("entry", ENTRIES, ids=entry_id)
def test_measured_second_moments_agree_with_the_table(entry):
    forward, _, _ = measure(entry["id"])
    ratio = forward / column(entry, "h_second_moment")
    sd = column(entry, "h_rel_sd_over_seeds_B64")
    mean_ratio = np.abs(ratio.mean(axis=0) - 1)
    mean_log = np.abs(np.log(ratio).mean(axis=0) + sd**2 / 2)
    deviation = np.where(sd < 0.5, mean_ratio, mean_log)[reliable(entry)]
    assert (deviation <= tolerance(sd, width_bias(entry))[reliable(entry)]).all(), deviation


@pytest.mark.parametrize("entry", ENTRIES, ids=entry_id)
def test_measured_variances_across_samples_agree_with_the_table(entry):
    """Early layers of relu-like nets, deeper ones of the others, and above the rounding floor.

    Where second moments scatter by 30 % and more between seeds, they differ between the inputs of
    one batch too, and that difference, not q(1 − c), fills the variance (README, 6). Below
    1e-12·q the variance is that of rounding errors (README, 7).
    """
    _, across, _ = measure(entry["id"])
    expected = column(entry, "h_var_over_batch")
    sd = column(entry, "h_rel_sd_over_seeds_B64")
    compared = reliable(entry) & (sd < 0.3)
    compared &= expected > 1e-12 * column(entry, "h_second_moment")
    assert compared.sum() >= 4
    ratio = across[:, compared] / expected[compared]
    deviation = np.abs(ratio.mean(axis=0) - 1)
    assert (deviation <= tolerance(sd, width_bias(entry))[compared]).all(), deviation


@pytest.mark.parametrize("entry", ENTRIES, ids=entry_id)
def test_measured_gradient_ratios_agree_with_the_table(entry):
    """E δ_l²/E δ_L² of the pre-activations; the cotangent enters at φ(h_L), so δ_L = φ'·cotangent.

    Compared in all layers where one standard deviation is less than a factor e²; for the GELUs
    of which only 10 layers are reliable, in the networks that are 10 layers deep.
    """
    if not reliable(entry).all():
        pytest.skip("the gradient has come through layers whose length the theory does not know")
    _, _, backward = measure(entry["id"])
    ratio = backward / backward[:, -1:] / column(entry, "delta_ratio_to_last")
    sd = gradient_sd(entry)
    bias = 0.5 * np.cumsum(1 / np.array(entry["sizes"][:0:-1]))[::-1]
    allowed = tolerance(sd, bias)
    mean_log = np.log(ratio).mean(axis=0)
    # E ln lies below ln E, by sd²/2 if all of sd is there (README, 8): sd is an upper bound.
    within_log = (mean_log <= allowed) & (mean_log >= -(sd**2) / 2 - allowed)
    within = np.where(sd < 0.5, np.abs(ratio.mean(axis=0) - 1) <= allowed, within_log)
    compared = sd < 2
    assert compared.sum() >= 10
    assert within[compared].all(), mean_log


def gradient_sd(entry: dict[str, Any]) -> np.ndarray:
    """An upper bound, to first order in 1/n, on the relative sd over seeds of E δ_l²/E δ_L².

    One layer multiplies |δ|² of a single sample by a mean over n units of φ'²z², of relative
    variance (3·E φ'⁴/(E φ'²)² − 1)/n, which is 5/n for relu (README, 4); a batch only lowers it.
    On top, E φ'² follows the fluctuation of q, taken as one and the same in all layers.
    """
    widths = entry["sizes"][1:]
    q = column(entry, "h_second_moment")
    scatter = column(entry, "h_rel_sd_over_seeds_B64")
    variance, drift = np.zeros(len(widths)), np.zeros(len(widths))
    for l in range(len(widths) - 2, -1, -1):
        kurtosis, sensitivity = slope_figures(entry["activation"], float(f"{q[l]:.3g}"))
        variance[l] = variance[l + 1] + (3 * kurtosis - 1) / widths[l]
        drift[l] = drift[l + 1] + sensitivity * scatter[l]
    return np.sqrt(variance + drift**2)


@cache
def slope_figures(name: str, q: float) -> tuple[float, float]:
    """E φ'⁴/(E φ'²)² and |d ln E φ'² / d ln q| for a pre-activation N(0, q)."""
    phi = activation(name)

    def integrands(x: np.ndarray) -> np.ndarray:
        slope = phi.derivative(torch.from_numpy(x)).numpy()
        return np.stack([slope**2, slope**4])

    q = min(max(q, 1e-12), 1e12)  # outside, these are at their limits
    second, fourth = gaussian_expectation(integrands, q, phi.kinks)
    further, _ = gaussian_expectation(integrands, 1.01 * q, phi.kinks)
    return fourth / second**2, abs(math.log(further / second) / math.log(1.01))


# ---------------------------------------------------------------- the limits of float32


def float32_trace(std: float):
    experiment = Experiment(
        depth=50, width=256, data="noise", batch_size=BATCH,
        scheme="normal", scheme_params={"std": std},
    )  # fmt: skip
    return experiment.run()


def relu_entry(scheme: str) -> dict[str, Any]:
    """ReLU, 256 wide, 50 deep."""
    return next(entry for entry in table("t3a") if entry["id"] == f"relu|{scheme}|const256")


def test_standard_normal_weights_report_the_layer_at_which_float32_overflows():
    """One net: the logarithm of its second moment scatters with the table's sd; 4 of them allowed.

    The curve grows by 128 in each layer, so a scatter of up to a factor 30 moves the overflow by
    at most one layer; the first elements overflow some 4 standard deviations before the bulk.
    """
    entry = relu_entry("normal_std1")
    sites = [site for site in float32_trace(1.0) if site.kind == "affine"]
    first = next(site.depth for site in sites if site.forward.nonfinite)
    expected = entry["float32_limits"]["activations_overflow_from_layer"]
    assert expected - 2 <= first <= expected + 1
    assert all(site.forward.nonfinite > 0 for site in sites[first - 1 :])
    q = column(entry, "h_second_moment")
    sd = column(entry, "h_rel_sd_over_seeds_B64")
    for l, site in enumerate(sites[: first - 1]):
        assert math.isfinite(site.forward.second_moment)  # squares overflow from layer 19 on
        log = math.log(site.forward.second_moment / q[l])
        assert abs(log + sd[l] ** 2 / 2) <= 4 * sd[l] + 0.5 * l / 256


def test_tiny_normal_weights_are_not_reported_as_zero_before_the_tensor_underflows():
    """Squares leave float32 at layer 24, the values themselves (subnormal 1e-45) at layer 48."""
    entry = relu_entry("normal_std0.01")
    sites = [site for site in float32_trace(0.01) if site.kind == "affine"]
    gone = entry["float32_limits"]["activations_underflow_from_layer"]
    assert entry["float32_limits"]["second_moment_underflows_to_0_from_layer"] == 24
    q = column(entry, "h_second_moment")
    sd = column(entry, "h_rel_sd_over_seeds_B64")
    for l, site in enumerate(sites[: gone - 6]):  # the last ones before are coarse subnormals
        log = math.log(site.forward.second_moment / q[l])
        assert abs(log + sd[l] ** 2 / 2) <= 4 * sd[l] + 0.5 * l / 256
    assert all(site.forward.second_moment == 0 for site in sites[gone:])


def test_the_prediction_says_where_the_signal_leaves_the_range_of_floats():
    predicted = Experiment(
        depth=400, width=256, data="noise", scheme="normal", scheme_params={"std": 1.0}
    ).predict()
    silent = [site for site in predicted if site.forward is None]
    assert silent[0].reason == "The signal overflows here."
    assert predicted["linear50"].forward.second_moment == pytest.approx(
        relu_entry("normal_std1")["layers"]["h_second_moment"][-1], rel=1e-6
    )


def test_widths_and_fans_of_the_table_are_those_of_the_networks_built():
    for entry in table("t3b"):
        model = build(tuple(entry["sizes"]), entry["activation"], torch.float32)
        shapes = [layer.weight.shape for layer in model if isinstance(layer, torch.nn.Linear)]
        assert [(columns, rows) for rows, columns in shapes] == list(pairwise(entry["sizes"]))
