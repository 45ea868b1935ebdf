"""The scatter at finite width against exact laws and independent simulations."""

import math

import pytest

from initlab.activations import activation
from initlab.theory import Layer, Scatter, finite_width

from .reference import entry_id, table


@pytest.mark.parametrize("entry", table("t4a"), ids=entry_id)
def test_one_input_of_a_relu_network_follows_the_exact_law(entry):
    width, depth = entry["n"], entry["L"]
    law = finite_width.relu_length_law(width, depth)
    assert law.log_mean == pytest.approx(entry["mean_ln_h_sq"], rel=1e-9, abs=1e-12)
    assert law.log_var == pytest.approx(entry["var_ln_h_sq"], rel=1e-9)
    band = [math.log10(factor) for factor in law.interval(1.959963984540054)]
    assert band == pytest.approx(entry["gaussian_95band_log10_h"], abs=1e-6)


def drawn_inputs(features: int) -> Scatter:
    """What the simulations' own draw of independent inputs scatters: their lengths and angles."""
    return Scatter(single=math.log1p(2 / features), angle=1 / features)


def relu_scatter(width: int, depth: int, cosines: list[float], scatter: Scatter) -> list[Scatter]:
    """The scatter of E h² at each layer of a He ReLU network."""
    relu, measured = activation("relu"), []
    for layer in range(depth):
        apart = 1 - cosines[layer]
        measured.append(scatter.over_units(width, apart, 0.0))
        at = Layer(relu, width, 2.0, apart)
        scatter = finite_width.advanced(scatter, finite_width.activated(scatter, at), at, 2.0, 0.0)
    return measured


@pytest.mark.parametrize("entry", table("t4b"), ids=entry_id)
def test_a_batch_averages_little_of_the_scatter_away(entry):
    """The table's own first-order law of the batch mean is good to about 10 %."""
    lengths_only = Scatter(single=drawn_inputs(entry["n"]).single)
    scatters = relu_scatter(entry["n"], 50, entry["preact_cos"], lengths_only)
    for layer, scatter in enumerate(scatters):
        law = scatter.batch_law(entry["B"])
        assert math.sqrt(law.log_var) == pytest.approx(entry["ln_sd_h"][layer], rel=0.12, abs=0.006)


@pytest.mark.parametrize("entry", table("t4d"), ids=entry_id)
def test_two_hundred_simulated_networks_scatter_as_predicted(entry):
    """sd of log10 within 4 of its standard errors (20 %); means within 5 of theirs and 0.02."""
    cosines = table("t4b")[0]["preact_cos"]
    seen = entry["batch_h_sq"]
    scatters = relu_scatter(entry["n"], entry["L"], cosines, drawn_inputs(entry["n"]))
    for layer, scatter in enumerate(scatters):
        law = scatter.batch_law(entry["B"])
        sd = math.sqrt(law.log_var) / math.log(10)
        assert seen["log10_sd"][layer] == pytest.approx(sd, rel=0.2)
        assert (
            abs(seen["log10_mean"][layer] - law.log_mean / math.log(10)) < 5 * sd / 200**0.5 + 0.02
        )


@pytest.mark.parametrize("entry", table("t3a"), ids=entry_id)
def test_every_activation_scatters_as_forty_simulated_networks_do(entry):
    """sd of ln E h² over 40 seeds (its standard error is 11 %) within a factor of 1.6."""
    simulated = entry.get("monte_carlo_n256_B64_40seeds", {}).get("log10_ratio_h2_sd")
    if simulated is None:
        pytest.skip("no simulation in this entry")
    phi, orthogonal = activation(entry["activation"]), float("orthogonal" in entry["scheme"])
    lengths = entry["layers"]["h_second_moment"]
    gaps = entry["layers"]["h_var_over_batch"]
    scatter = drawn_inputs(256)
    for layer in range(49):
        apart = min(max(gaps[layer] / lengths[layer], 0.0), 2.0)
        if lengths[layer] > 1e70:
            break
        rigid = finite_width.rigidity(
            lengths[layer], orthogonal, entry["sigma_b_sq"], uniform_bias=True
        )
        measured = scatter.over_units(256, apart, rigid)
        sd = math.sqrt(measured.batch_law(64).log_var) / math.log(10)
        reliable = layer < (10 if entry["activation"] == "gelu" else 49)
        if reliable and sd > 0.005:
            assert 1 / 1.6 < simulated[layer] / sd < 1.6, layer
        at = Layer(phi, 256, lengths[layer], apart, rigid)
        after = finite_width.activated(scatter, at)
        scatter = finite_width.advanced(
            scatter, after, at, entry["sigma_w_sq"], entry["sigma_b_sq"]
        )


@pytest.mark.parametrize("entry", table("t5b"), ids=entry_id)
def test_two_fifths_of_the_units_are_inactive_at_layer_50(entry):
    for c, expected in zip(
        entry["preact_cos"], entry["p_unit_inactive_on_whole_batch"], strict=True
    ):
        found = finite_width.inactive_fraction(1 - c, entry["B"])
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("entry", table("t5e"), ids=entry_id)
def test_simulated_networks_of_width_1024_have_these_cosines_and_inactive_units(entry):
    """6 seeds: within 5 standard errors, and 0.01 for what width 1024 adds."""
    from initlab.theory import correlation_map

    c = 0.0
    for layer in range(entry["L"]):
        cos_error = 5 * entry["cos_se"][layer] + 0.01
        assert abs(c - entry["preact_cos_sim"][layer]) < cos_error
        inactive = finite_width.inactive_fraction(1 - c, entry["B"])
        assert abs(inactive - entry["dead64_sim"][layer]) < 5 * entry["dead64_se"][layer] + 0.01
        c = correlation_map("relu", c, 2.0, 2**0.5, 0.0)
