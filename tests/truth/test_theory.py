"""Mean-field theory against the independent tables: lengths, critical lines, angles, spectra."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from initlab import gain, theory
from initlab.activations import ACTIVATIONS, activation

from .reference import entry_id, table


def named(name: str):
    """The table's name of an activation as initlab takes it."""
    if name.startswith("leaky_relu"):
        return activation(nn.LeakyReLU(float(name.rsplit("_", 1)[1])))
    return activation("identity" if name == "linear" else name)


def approximately(value: float, rel: float, abs_: float = 1e-12):
    return pytest.approx(value, rel=rel, abs=abs_)


@pytest.mark.parametrize("entry", table("t1c"), ids=entry_id)
def test_a_gain_says_whether_it_is_a_stable_fixed_point(entry):
    phi = named(entry["id"])
    sigma_w = gain(phi)
    assert sigma_w == approximately(entry["gain"], 1e-8)
    assert theory.length_map_slope(phi, 1.0, sigma_w) == approximately(entry["chi_parallel"], 1e-8)
    assert theory.chi_1(phi, 1.0, sigma_w) == approximately(entry["chi_perp"], 1e-8)


@pytest.mark.parametrize("entry", table("t2a"), ids=entry_id)
def test_the_edge_of_chaos_is_found_for_every_bias(entry):
    phi, sigma_b = named(entry["activation"]), entry["sigma_b"]
    limit = entry.get("q_to_0_limit")
    if not entry["points"] and not limit:
        if sigma_b > 0:
            with pytest.raises(ValueError, match="no edge of chaos"):
                theory.critical_sigma_w(phi, sigma_b)
        return
    point = limit or entry["points"][0]
    assert theory.critical_sigma_w(phi, sigma_b) == approximately(point["sigma_w"], 1e-6)
    if limit or isinstance(point["q_star"], str):  # "any": relu without bias
        return
    q = theory.critical_length(phi, sigma_b)
    assert q == approximately(point["q_star"], 1e-5)
    assert theory.edge_of_chaos(phi, q) == approximately((point["sigma_w"], sigma_b), 1e-6, 1e-9)
    found = theory.fixed_points(phi, point["sigma_w"], sigma_b)
    nearest = min(found, key=lambda at: abs(at.q - point["q_star"]))
    assert nearest.q == approximately(point["q_star"], 1e-5)
    assert nearest.slope == approximately(point["chi_parallel"], 1e-5)
    assert nearest.stable is point["q_fixed_point_stable"]


@pytest.mark.parametrize("entry", table("t2b"), ids=entry_id)
def test_the_doubly_critical_point_of_gelu_is_found_though_the_map_only_touches(entry):
    sigma_w, sigma_b = theory.edge_of_chaos("gelu", entry["q_star"])
    assert sigma_w**2 == approximately(entry["C_W"], 1e-9)
    assert sigma_b**2 == approximately(entry["C_b"], 1e-9)
    point = theory.fixed_points("gelu", sigma_w, sigma_b)[-1]
    assert point.q == approximately(entry["q_star"], 1e-5)
    assert point.slope == approximately(1.0, 1e-7)
    assert not point.stable


@pytest.mark.parametrize("entry", table("t2c"), ids=entry_id)
def test_a_phase_is_told_by_its_fixed_points_and_depth_scales(entry):
    where = entry["activation"], entry["sigma_w"], entry["sigma_b"]
    q = theory.settled_length(*where)
    assert q == approximately(entry["q_star"], 1e-6)
    assert theory.chi_1(entry["activation"], q, entry["sigma_w"]) == approximately(
        entry["chi_1"], 1e-6
    )
    scales = theory.depth_scales(*where)
    assert scales.xi_q == approximately(float(entry["xi_q"]), 1e-6)
    if entry["c_star"] is None:
        assert theory.correlation_fixed_point(*where) is None
        assert scales.xi_c is None
    else:
        assert theory.correlation_fixed_point(*where) == approximately(entry["c_star"], 1e-5, 1e-7)
        assert scales.xi_c == approximately(entry["xi_c"], 1e-5)


@pytest.mark.parametrize("entry", table("t2d"), ids=entry_id)
def test_the_schemes_in_use_settle_where_the_table_says(entry):
    where = entry["activation"], entry["sigma_w_sq"] ** 0.5, entry["sigma_b_sq"] ** 0.5
    q = theory.settled_length(*where)
    assert q == approximately(entry["q_star"], 1e-6)
    if "chi_1" in entry:
        assert theory.chi_1(entry["activation"], q, where[1]) == approximately(entry["chi_1"], 1e-6)
    slope = entry.get("chi_q", entry.get("q_ratio_asymptotic"))
    if slope is not None:
        assert theory.length_map_slope(entry["activation"], q, where[1]) == approximately(
            slope, 1e-6
        )


@pytest.mark.parametrize("entry", table("t5a"), ids=entry_id)
def test_cosines_go_through_depth_as_the_arc_cosine_kernel_says(entry):
    phi, c = named(entry["id"].split("|")[0]), entry["c0"]
    first_above = {}
    for depth in range(1, 1001):
        c = theory.correlation_map(phi, c, 1.0, 1.0, 0.0)
        if depth < len(entry["cos_after_l_layers"]):
            assert c == pytest.approx(entry["cos_after_l_layers"][depth], abs=1e-10)
        for level in entry["layers_to_reach"]:
            if c >= float(level):
                first_above.setdefault(level, depth)
        if str(depth) in entry["one_minus_c_at"]:
            assert 1 - c == approximately(entry["one_minus_c_at"][str(depth)], 1e-8)
    reached = {k: v for k, v in entry["layers_to_reach"].items() if v and v <= 1000}
    assert {level: first_above[level] for level in reached} == reached


@pytest.mark.parametrize("entry", table("t4c"), ids=entry_id)
def test_the_covariance_of_two_samples_relu_lengths_is_kappa(entry):
    squares = ACTIVATIONS["relu_squared"].pair_moments(1.0, 1 - entry["c"])
    assert 4 * (squares.product - 1 / 4) == approximately(entry["kappa"], 1e-10, 1e-10)
    both_active = ACTIVATIONS["relu"].slope_product(1.0, 1 - entry["c"])
    assert both_active == approximately(entry["p_both_active"], 1e-10, 1e-10)


@pytest.mark.parametrize("entry", table("t6a"), ids=entry_id)
def test_a_product_of_gaussian_matrices_has_the_known_edge(entry):
    spectrum = theory.jacobian_spectrum("identity", int(entry["id"].split("=")[1]), "gaussian")
    assert spectrum.mean == approximately(entry["mean_sq_sv"], 1e-9)
    assert spectrum.variance == approximately(entry["var_sq_sv"], 1e-9)
    assert spectrum.max == approximately(entry["s_max_sq_edge"], 1e-9)


@pytest.mark.parametrize("entry", table("t6c"), ids=entry_id)
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_relu_has_no_isometry_with_either_ensemble(entry, weights):
    spectrum = theory.jacobian_spectrum("relu", entry["L"], weights)
    assert spectrum.variance == approximately(entry[f"{weights}_var_sq_sv"], 1e-9)
    assert spectrum.max == approximately(entry[f"{weights}_s_max_sq"], 1e-9)


@pytest.mark.parametrize("entry", table("t6d"), ids=entry_id)
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_the_spectrum_at_criticality_is_that_of_free_probability(entry, weights):
    spectrum = theory.jacobian_spectrum(entry["activation"], entry["L"], weights, entry["q_star"])
    assert spectrum.mean == approximately(1.0, 1e-9)
    assert spectrum.variance == approximately(entry[f"var_sq_sv_{weights}"], 1e-7)
    assert spectrum.max == approximately(entry[f"s_max_sq_{weights}"], 1e-7)


@pytest.mark.parametrize("entry", table("t6e"), ids=entry_id)
def test_simulated_jacobians_agree_with_the_spectrum(entry):
    """8 nets of width 256: within 5 standard errors and the 3 to 40 % that n = 256 takes off."""
    weights = {"gauss": "gaussian", "orth": "orthogonal"}[entry["weights"]]
    phi, depth = named(entry["activation"]), entry["L"]
    spectrum = theory.jacobian_spectrum(phi, depth, weights, entry["q_star"])
    mean, variance, largest = entry["mean"][:3]
    mean_se, variance_se, largest_se = entry["se"][:3]
    assert abs(mean - spectrum.mean) < 5 * mean_se + 0.01
    assert abs(variance - spectrum.variance) < 5 * variance_se + spectrum.variance * depth / 256
    assert largest < spectrum.max + 5 * largest_se
    if depth <= 20:
        assert largest > spectrum.max * (1 - 0.1 - depth / 64) - 5 * largest_se


@pytest.mark.parametrize("entry", table("t7a"), ids=entry_id)
def test_zero_padding_loses_the_tabled_share_of_the_signal(entry):
    size, kernel = entry["N"], entry["k"]
    for depth in (1, 2, 3, 10, 20, len(entry["mean_2d"])):
        profile = np.array(theory.padding_profile(size, kernel, depth))
        assert profile.mean() == approximately(entry["mean_1d"][depth - 1], 1e-12)
        assert profile.mean() ** 2 == approximately(entry["mean_2d"][depth - 1], 1e-12)
        assert profile[0] ** 2 == approximately(entry["corner_2d"][depth - 1], 1e-12)
        assert profile[0] * profile[size // 2] == approximately(
            entry["edge_mid_2d"][depth - 1], 1e-12
        )
        assert profile[size // 2] ** 2 == approximately(entry["center_2d"][depth - 1], 1e-12)


RESIDUAL = {  # the block: (gain of its branch, scale of its branch, scale of its skip) at depth L
    "h+W relu(h), He (branch gain 1)": lambda depth: (1, 1, 1),
    "h+(1/sqrt L) W relu(h), He": lambda depth: (1, depth**-0.5, 1),
    "h+W2 relu(W1 h), both He (branch gain 2)": lambda depth: (2, 1, 1),
    "h+W2 relu(W1 relu(h)), both He (branch gain 1)": lambda depth: (1, 1, 1),
    "h+(1/L) W relu(h), He": lambda depth: (1, 1 / depth, 1),
    "(h + W relu(h))/sqrt2": lambda depth: (1, 0.5**0.5, 0.5**0.5),
}


@pytest.mark.parametrize("entry", table("t7g"), ids=entry_id)
def test_residual_stacks_grow_by_the_tabled_law(entry):
    depth = entry["L"]
    branch_gain, branch_scale, skip_scale = RESIDUAL[entry["arch"]](depth)
    lengths = theory.residual_lengths(1.0, depth, branch_gain, branch_scale, skip_scale)
    assert lengths == approximately(entry["second_moment_ratio"], 1e-10)
    assert lengths[-1] == approximately(entry["grad_ratio_first_to_last"], 1e-10)
    if entry["cos_from_orthogonal"]:
        cosines = theory.residual_correlations("relu", 0.0, depth, branch_scale, skip_scale)
        assert cosines == approximately(entry["cos_from_orthogonal"], 1e-10)


@pytest.mark.parametrize("entry", table("t7h"), ids=entry_id)
def test_simulated_residual_stacks_follow_it(entry):
    """20 nets of width 512: within 5 standard errors, and the 2/n of a block that is O(1/n)."""
    branch_gain = 1 if entry["id"].startswith("W relu") else 2
    lengths = theory.residual_lengths(1.0, len(entry["mean"]) - 1, branch_gain)
    for block, (mean, sd, q) in enumerate(zip(entry["mean"], entry["sd"], lengths, strict=True)):
        assert abs(mean / q - 1) <= 5 * sd / q / math.sqrt(20) + 2 * block / 512


def test_blocks_that_start_as_the_identity_keep_the_length():
    """Fixup, ReZero and SkipInit (t7j): a branch that is 0 at first leaves q where it is."""
    assert theory.residual_lengths(0.7, 50, branch_gain=2.0, branch_scale=0.0) == [0.7] * 51


def _monte_carlo(function, q: float) -> tuple[float, float, float, float]:
    """E φ² and E φ'² at q by 2 million antithetic draws, each with its standard error."""
    generator = torch.Generator().manual_seed(5)
    half = torch.randn(1_000_000, generator=generator, dtype=torch.float64) * q**0.5
    z = torch.cat([half, -half]).requires_grad_()
    value = function(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    out = []
    for sample in (value.detach() ** 2, slope**2):
        pairs = (sample[: len(half)] + sample[len(half) :]) / 2
        out += [float(pairs.mean()), float(pairs.std()) / math.sqrt(len(half))]
    return tuple(out)


CALLABLES = {
    "smooth": lambda z: torch.tanh(1.3 * z) + 0.2 * torch.sin(3 * z),
    "bump": lambda z: z * torch.exp(-(z**2) / 4) + 0.1 * z,
    "kinked": lambda z: (z - 0.7).abs() - 0.3 * (z + 1.1).clamp(min=0),
    "clipped": lambda z: z.clamp(-0.4, 2.2),
    "jump": lambda z: torch.where(z > 0.35, 1.5 * z, 0.2 * z - 0.1),
}


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", CALLABLES)
def test_any_callable_agrees_with_monte_carlo(name, q):
    function = CALLABLES[name]
    second, second_se, slope, slope_se = _monte_carlo(function, q)
    assert abs(theory.length_map(function, q, 1.0, 0.0) - second) < 5 * second_se
    assert abs(theory.chi_1(function, q, 1.0) - slope) < 5 * slope_se
    if q == 1.0:
        assert abs(gain(function) ** -2 - second) < 5 * second_se


@pytest.mark.parametrize("c", [-0.8, 0.0, 0.4, 0.97])
@pytest.mark.parametrize("name", [*CALLABLES, "selu", "gelu", "softsign", "relu6"])
def test_the_correlation_map_agrees_with_monte_carlo(name, c):
    """A million pairs; five standard errors of E φ(u)φ(v)."""
    phi = activation(CALLABLES.get(name, name))
    generator = torch.Generator().manual_seed(11)
    u, own = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    products = phi(u * 1.2) * phi((c * u + math.sqrt(1 - c * c) * own) * 1.2)
    pair = phi.pair_moments(1.44, 1 - c)
    assert abs(pair.product - float(products.mean())) < 5 * float(products.std()) / 1000
    mapped = theory.correlation_map(phi, c, 1.44, 1.1, 0.2)
    by_definition = (1.21 * pair.product + 0.04) / theory.length_map(phi, 1.44, 1.1, 0.2)
    assert mapped == approximately(by_definition, 1e-7, 1e-8)


# ---------------------------------------------------------------- callables of every kind


def test_the_angles_of_a_jump_settle_as_the_arcsine_law_says():
    """sign: c' = (σ_w²·(2/π) arcsin c + σ_b²)/q with q = σ_w² + σ_b², however φ' = 0."""
    sigma_w, sigma_b = 1.2, 0.1
    length = sigma_w**2 + sigma_b**2
    c = theory.correlation_fixed_point(torch.sign, sigma_w, sigma_b)
    assert c == pytest.approx((sigma_w**2 * 2 / math.pi * math.asin(c) + sigma_b**2) / length)
    slope = sigma_w**2 * 2 / math.pi / math.sqrt(1 - c * c) / length
    xi_c = theory.depth_scales(torch.sign, sigma_w, sigma_b).xi_c
    assert xi_c == pytest.approx(-1 / math.log(slope), rel=1e-4)


def test_growth_beyond_all_floats_is_no_fixed_point():
    """σ_w²·e^(2q) > q for every q where σ_w² > 1/2e; for sinh² too where σ_w ≥ 1."""
    assert theory.fixed_points(torch.exp, 1.2, 0.1) == []
    assert theory.fixed_points(torch.sinh, 1.2, 0.1) == []
    low, high = theory.fixed_points(torch.exp, 0.4, 0.0)
    assert (low.stable, high.stable) == (True, False)
    for point in (low, high):
        assert 0.16 * math.exp(2 * point.q) == pytest.approx(point.q, rel=1e-12)
        assert point.slope == pytest.approx(2 * point.q, rel=1e-9)


def test_a_fixed_point_is_found_where_the_map_ends_at_infinity():
    """exp(z²/8): σ_w²/√(1 − q/2) = q has two solutions below q = 2 where σ_w² = 0.7."""
    found = theory.fixed_points(lambda z: torch.exp(z**2 / 8), math.sqrt(0.7), 0.0)
    assert [point.stable for point in found] == [True, False]
    for point in found:
        assert 0.7 / math.sqrt(1 - point.q / 2) == pytest.approx(point.q, rel=1e-8)


@pytest.mark.parametrize("phi", ["tanh", lambda z: z * 0, lambda z: (z - 60).clamp(min=0)])
@pytest.mark.parametrize("sigma_w", [0.0, 1e-9])
def test_where_nothing_but_the_bias_is_left_its_variance_is_the_fixed_point(phi, sigma_w):
    (point,) = theory.fixed_points(phi, sigma_w, 0.3)
    assert point.q == pytest.approx(0.09)
    assert point.stable
    assert theory.settled_length(phi, sigma_w, 0.3) == point.q


def test_an_activation_without_a_finite_gradient_has_no_edge():
    with pytest.raises(ValueError, match=r"passes infinite gradients at q=1\.0"):
        theory.edge_of_chaos(lambda z: z.abs().sqrt(), 1.0)
