"""predict() against the independent tables, and against networks that are drawn and measured."""

import math
from functools import cache

import numpy as np
import pytest

from initlab import Experiment, theory
from initlab.plots import theory_curve
from initlab.prediction import Prediction

from .reference import entry_id, table

SCHEMES = {
    "kaiming_uniform_fan_in": {"scheme": "kaiming_uniform"},
    "kaiming_normal_fan_in": {"scheme": "kaiming_normal"},
    "kaiming_uniform_fan_out": {
        "scheme": "kaiming_uniform", "scheme_params": {"mode": "fan_out"},
    },
    "kaiming_normal_fan_out": {"scheme": "kaiming_normal", "scheme_params": {"mode": "fan_out"}},
    "xavier_uniform": {"scheme": "xavier_uniform"},
    "xavier_normal": {"scheme": "xavier_normal"},
    "lecun_normal": {"scheme": "lecun_normal"},
    "normal_std0.01": {"scheme": "normal", "scheme_params": {"std": 0.01}},
    "normal_std1": {"scheme": "normal", "scheme_params": {"std": 1.0}},
    "normal_var0.01": {"scheme": "normal", "scheme_params": {"std": 0.1}},
    "orthogonal_gain1": {"scheme": "orthogonal"},
    "orthogonal_gain_sqrt2": {"scheme": "orthogonal", "gain": 2**0.5},
    "torch_default_linear": {"scheme": "pytorch_default"},
    "uniform_0_1": {"scheme": "uniform"},
}  # fmt: skip


def of_entry(entry) -> tuple[Prediction, int]:
    """The prediction for a table's network, and its depth; kaiming with relu's gain, as there."""
    options = dict(SCHEMES[entry["scheme"]])
    if "kaiming" in options["scheme"]:
        options["gain"] = 2**0.5
    sizes = entry["sizes"]
    experiment = Experiment(
        widths=tuple(sizes[1:]), activation=entry["activation"], data="noise", batch_size=64,
        **options,
    )  # fmt: skip
    return experiment.predict(), len(sizes) - 1


def column(predicted: Prediction, depth: int, place: str, field: str) -> np.ndarray:
    sites = [predicted[f"linear{layer}"] for layer in range(1, depth + 1)]
    return np.array([getattr(getattr(site, place), field) for site in sites])


@pytest.mark.parametrize("entry", table("t3a"), ids=entry_id)
def test_the_gaps_between_samples_are_those_of_the_table(entry):
    """Lengths and gradients are compared in ``test_prediction_propagation``."""
    predicted, depth = of_entry(entry)
    gaps = column(predicted, depth, "forward", "across_samples_var")
    assert gaps == pytest.approx(entry["layers"]["h_var_over_batch"], rel=1e-4)


@pytest.mark.parametrize("entry", table("t3c"), ids=entry_id)
def test_weights_of_mean_one_half_explode_by_the_square_of_the_width(entry):
    """log10 within 0.1 of the table at every layer, and of 40 measured networks; 0.001 here."""
    predicted, depth = of_entry(
        entry | {"sizes": [256] * 51, "activation": entry["id"].split("|")[0]}
    )
    lengths = np.log10(column(predicted, depth, "forward", "second_moment"))
    expected = entry.get("layers", entry)["h_second_moment"]
    assert lengths == pytest.approx(np.log10(expected), abs=1e-3)
    simulated = entry.get("monte_carlo_n256_B64_40seeds", {}).get("log10_delta2_to_last_mean")
    if isinstance(simulated, list):
        gradients = column(predicted, depth, "backward", "second_moment")
        assert np.log10(gradients / gradients[-1]) == pytest.approx(simulated, abs=0.1)


@pytest.mark.parametrize("size", [8])
def test_zero_padding_loses_what_the_exact_recursion_loses_and_circular_padding_nothing(size):
    for padding in ("zeros", "circular"):
        predicted = Experiment(
            architecture="cnn", depth=10, width=16, data="noise", padding=padding
        ).predict()
        for depth in range(1, 11):
            kept = np.mean(theory.padding_profile(size, 3, depth)) ** 2 if padding == "zeros" else 1
            found = predicted[f"conv{depth}"].forward.second_moment
            assert found == pytest.approx(2 * kept, rel=1e-12)


@pytest.mark.parametrize("entry", table("t7b"), ids=entry_id)
def test_simulated_convolutions_keep_the_share_that_the_recursion_says(entry):
    """12 nets of 64 channels on 16×16 images, E h²/2: 5 standard errors (the later ones of a
    heavy-tailed mean) and 0.02."""
    for depth, (mean, se) in enumerate(zip(entry["mean"], entry["se"], strict=True), start=1):
        lost = entry["padding_mode"] == "zeros"
        kept = np.mean(theory.padding_profile(16, 3, depth)) ** 2 if lost else 1.0
        assert abs(mean - kept) < 5 * se + 0.02


# ---------------------------------------------------------------- the band

SEEDS = 20
SAMPLE = [
    {"activation": "relu", "data": "noise"},
    {"activation": "relu", "data": "digits"},
    {"activation": "relu", "data": "digits", "scheme": "orthogonal", "gain": 2**0.5},
    {"activation": "relu", "data": "digits", "scheme": "pytorch_default"},
    {"activation": "relu", "data": "digits", "loss": "cross_entropy"},
    {"activation": "relu", "data": "noise", "dropout": 0.3},
    {"activation": "tanh", "data": "noise", "scheme": "xavier_normal"},
    {"activation": "tanh", "data": "digits", "bias": "normal", "bias_std": 0.3},
    {"activation": "tanh", "data": "digits", "scheme": "orthogonal", "dropout": 0.2},
    {"activation": "hardtanh", "data": "noise", "scheme": "orthogonal", "gain": 1.3,
     "bias": "pytorch_default"},
    {"activation": "selu", "data": "digits", "scheme": "lecun_normal"},
    {"activation": "sigmoid", "data": "noise"},
    {"activation": "gelu", "data": "noise", "scheme": "xavier_normal"},
    {"activation": "gelu", "data": "digits"},
    {"activation": "silu", "data": "noise", "scheme": "critical",
     "scheme_params": {"sigma_b": 0.2}},
    {"activation": "sin", "data": "noise", "scheme": "kaiming_uniform",
     "scheme_params": {"mode": "fan_out"}},
    {"activation": "elu", "data": "digits", "widths": (96,) * 4 + (48,) * 4 + (24,) * 4},
    {"activation": "relu", "data": "digits", "architecture": "cnn"},
    {"activation": "relu", "data": "digits", "architecture": "cnn", "padding": "circular",
     "loss": "cross_entropy"},
    {"activation": "tanh", "data": "noise", "architecture": "cnn", "scheme": "xavier_uniform",
     "bias": "normal", "bias_std": 0.2},
    {"activation": "celu", "data": "digits", "architecture": "cnn", "scheme": "orthogonal"},
    {"activation": "selu", "data": "noise", "scheme": "siren", "bias": "normal", "bias_std": 0.3,
     "depth": 2},
    {"activation": "tanh", "data": "noise", "scheme": "orthogonal"},
    {"activation": "hardtanh", "data": "noise", "scheme": "orthogonal"},
]  # fmt: skip
POOLED = 18


@cache
def draws(index: int, width: int):
    """The prediction of a case at this width, its sites with a weight, and SEEDS measured nets."""
    options = dict(SAMPLE[index])
    depth, width = (6, width // 4) if "architecture" in options else (12, width)
    if "widths" in options:
        options["widths"] = tuple(units * width // 32 for units in options["widths"])
    experiment = Experiment(**({"depth": depth, "width": width, "batch_size": 64} | options))
    sites = [site for site in experiment.predict() if site.kind == "affine" and site.forward]
    return sites, [experiment.replace(seed=seed).run() for seed in range(SEEDS)]


BANDS = {
    "forward": ("forward", "second_moment", "low", "high"),
    "backward": ("backward", "second_moment", "low", "high"),
    "across samples": ("forward", "across_samples_var", "across_low", "across_high"),
}


def deviations(sites, runs, band: str) -> tuple[np.ndarray, np.ndarray]:
    """ln of the measured over the band's middle, in half widths of it, rows are seeds; and those
    half widths. Of all sites that scatter."""
    place, field, *ends = BANDS[band]
    bounds = [[getattr(getattr(site, place), end) for end in ends] for site in sites]
    kept = [i for i, (low, high) in enumerate(bounds) if low is not None and low < high < math.inf]
    names = [sites[i].name for i in kept]
    measured = np.array([[getattr(getattr(run[n], place), field) for n in names] for run in runs])
    if band == "backward" and runs[0].loss is not None:
        measured /= np.array([[run["output"].backward.second_moment] for run in runs])
    low, high = np.log(np.array([bounds[i] for i in kept]).reshape(-1, 2)).T
    half = (high - low) / 2
    return (np.log(measured) - (low + high) / 2) / half, half


@cache
def logs(index: int, width: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The deviations of a case at this width, for every band that it has."""
    sites, runs = draws(index, width)
    table = {band: deviations(sites, runs, band) for band in BANDS}
    return {band: each for band, each in table.items() if each[0].size}


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("index", range(len(SAMPLE)))
def test_the_mean_of_twenty_networks_is_the_predicted_one(index, width):
    """Mean of the logarithms, against that of the predicted law: 4 standard errors of it, which
    the law gives (half a band is 1.96 of its sd), and 1.5 % for the second order in 1/n, which
    shows where orthogonal weights leave next to no scatter.

    Under a loss behind an average over positions the gradient leans on the signal (δ = softmax − y
    grows with the logits), which relu lets through whole: up to 4/n a layer at n channels.
    """
    for band, (deviation, half) in logs(index, width).items():
        allowed = 4 / 1.96 / math.sqrt(SEEDS) * half + 0.015
        strays = deviation.mean(axis=0) * half
        leaning = np.zeros_like(strays)
        if (index, band) == (POOLED, "backward"):
            leaning = np.log1p(4 * np.arange(len(strays), 0, -1) / (width // 4))
        assert (strays > -allowed).all(), band
        assert (strays < leaning + allowed).all(), band


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("index", range(len(SAMPLE)))
def test_twenty_networks_tell_samples_apart_as_predicted(index, width):
    """Mean of the variance across samples: 5 of its own standard errors over the seeds and l/n for
    what finite width adds, in the layers l ≤ n/12: beyond, the samples' lengths differ by draw.
    """
    sites, runs = draws(index, width)
    for layer, site in enumerate(sites, start=1):
        expected = site.forward.across_samples_var
        units = width // 4 if "architecture" in SAMPLE[index] else width
        if expected is None or layer > units / 12:
            continue
        ratio = np.array([run[site.name].forward.across_samples_var for run in runs])
        ratio *= 64 / 63 / expected  # a trace's variance divides by the batch
        error = ratio.std(ddof=1) / math.sqrt(SEEDS)
        assert abs(ratio.mean() - 1) < 5 * error + layer / units, site.name


MOVED = [
    {"activation": "relu", "data": "digits", "scheme": "uniform"},
    {"activation": "relu", "data": "noise", "scheme": "uniform",
     "scheme_params": {"low": -0.1, "high": 0.13}},
    {"activation": "tanh", "data": "noise", "architecture": "cnn", "bias": 0.3},
    {"activation": "relu", "data": "digits", "architecture": "cnn", "bias": 0.4,
     "loss": "cross_entropy"},
    {"activation": "gelu", "data": "digits", "architecture": "cnn", "bias": -0.3, "dropout": 0.2,
     "padding": "circular"},
    {"activation": "relu", "data": "noise", "architecture": "cnn", "scheme": "uniform"},
    {"activation": "relu", "data": "digits", "architecture": "cnn", "scheme": "uniform"},
    {"activation": "tanh", "data": "digits", "architecture": "cnn", "scheme": "uniform",
     "scheme_params": {"low": -0.2, "high": 0.25}},
    {"activation": "relu", "data": "noise", "architecture": "cnn", "scheme": "uniform",
     "scheme_params": {"low": -0.1, "high": 0.13}, "padding": "circular"},
    {"activation": "relu", "data": "digits", "architecture": "cnn"},
    {"activation": "tanh", "data": "digits", "architecture": "cnn", "scheme": "xavier_normal"},
]  # fmt: skip


@pytest.mark.parametrize("width", [24, 96])
@pytest.mark.parametrize("index", range(len(MOVED)))
def test_twenty_networks_whose_units_move_together_are_as_predicted(index, width):
    """With weights or biases of nonzero mean, and on images: E h², the variance across samples, the
    cosine and E δ², each draw beside what is predicted of its own batch.

    The mean of twenty: 5 of its standard errors, 1.5 % for each layer passed and 1/n of them for
    finite width, and 0.1 for the few images that stand for all (0.02 of a cosine).
    """
    experiment = Experiment(**({"depth": 4, "width": width, "batch_size": 32} | MOVED[index]))
    seeds = [experiment.replace(seed=seed) for seed in range(SEEDS)]
    runs, predictions = [e.run(geometry=True) for e in seeds], [e.predict() for e in seeds]
    output = np.array([run["output"].backward.second_moment for run in runs])
    sites = [site for site in predictions[0] if site.kind == "affine" and site.forward]
    for layer, site in enumerate(sites, start=1):
        measured = [run[site.name] for run in runs]
        expected = [prediction[site.name] for prediction in predictions]
        for place, field, passed, unit in (
            ("forward", "second_moment", layer, 1.0),
            ("forward", "across_samples_var", layer, 32 / 31),
            ("backward", "second_moment", len(sites) - layer + 1, 1 / output),
        ):
            seen = np.array([getattr(getattr(each, place), field) for each in measured]) * unit
            ratio = seen / [getattr(getattr(each, place), field) for each in expected]
            error = 5 * ratio.std(ddof=1) / math.sqrt(SEEDS)
            allowed = error + passed * (0.015 + 1 / width) + 0.1
            assert abs(ratio.mean() - 1) < allowed, (site.name, place, field)
        apart = np.array([m.cosine - e.cosine for m, e in zip(measured, expected, strict=True)])
        error = 5 * apart.std(ddof=1) / math.sqrt(SEEDS)
        assert abs(apart.mean()) < error + layer / width + 0.02, site.name


@pytest.mark.parametrize("data", ["noise", "digits"])
@pytest.mark.parametrize(
    ("name", "scheme", "params"),
    [
        ("tanh", "uniform", {"low": 0.0, "high": 1.0}),
        ("hardtanh", "uniform", {"low": 0.0, "high": 1.0}),
        ("sigmoid", "normal", {"mean": -0.05, "std": 0.1}),
        ("tanh", "normal", {"mean": 0.05, "std": 0.1}),
        ("tanh", "ones", {}),
    ],
)
def test_images_that_saturate_are_followed_and_the_line_ends_where_few_pass(
    name, scheme, params, data
):
    """Means over twenty batches and networks: of E h² within 4 of their standard errors (these 2 %
    of a few hundred waves) and 10 % for 32 images, of the cosine within 0.05. The median gradient
    of twenty within 1.5, times e to 4 of its standard errors, wherever a line is drawn."""
    experiment = Experiment(
        architecture="cnn", depth=6, width=24, batch_size=64, data=data,
        activation=name, scheme=scheme, scheme_params=params,
    )  # fmt: skip
    seeds = [experiment.replace(seed=seed) for seed in range(SEEDS)]
    runs, predictions = [e.run(geometry=True) for e in seeds], [e.predict() for e in seeds]
    for layer in range(1, 7):
        measured = [run[f"conv{layer}"] for run in runs]
        expected = [prediction[f"conv{layer}"] for prediction in predictions]
        both = list(zip(measured, expected, strict=True))
        ratio = np.array([m.forward.second_moment / e.forward.second_moment for m, e in both])
        assert abs(ratio.mean() - 1) < 0.1 + 4 * ratio.std(ddof=1) / math.sqrt(SEEDS), layer
        assert abs(np.mean([m.cosine - e.cosine for m, e in both])) < 0.05, layer
        assert all(e.backward or "a few inputs" in e.reason for e in expected)
        stray = np.array(
            [
                math.log(m.backward.second_moment / e.backward.second_moment / output)
                for (m, e), output in zip(both, (r["output"].backward.second_moment for r in runs),
                                          strict=True)
                if e.backward and e.backward.second_moment * m.backward.second_moment > 0
            ]
        )  # fmt: skip
        if len(stray) > SEEDS / 2:
            error = 1.25 * stray.std(ddof=1) / math.sqrt(len(stray))  # of a median
            assert abs(np.median(stray)) < math.log(1.5) + 4 * error, layer


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("index", range(len(SAMPLE)))
def test_the_band_covers_most_draws_of_each_case(index, width):
    """Within a case the layers move together, so 20 seeds are 20 draws: at 95 % each, fewer than 15
    of them inside has a probability of 3·10⁻⁴."""
    for band, (deviation, _) in logs(index, width).items():
        assert (np.abs(deviation) <= 1).mean() >= 0.75, band


@pytest.mark.parametrize("band", BANDS)
def test_the_band_covers_95_percent_over_all_cases(band):
    """The seeds of each case and width are 960 draws: the share of them inside has a standard error
    of 0.8 % for independent ones, and theory is of first order in 1/n."""
    inside = [
        (np.abs(logs(index, width)[band][0]) <= 1).mean()
        for index in range(len(SAMPLE))
        for width in (32, 96)
        if band in logs(index, width)
    ]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_deeper_than_wide_the_band_says_how_samples_stay_apart(name):
    """Their lengths part, which no theory of infinite width knows: the line alone is up to ten
    times too low here."""
    experiment = Experiment(depth=40, width=32, activation=name, data="noise", batch_size=64)
    runs = [experiment.replace(seed=seed).run(backward=False) for seed in range(SEEDS)]
    sites = [site for site in experiment.predict() if site.kind == "affine"]
    deviation, half = deviations(sites, runs, "across samples")
    assert (np.abs(deviation) <= 1).mean() >= 0.75
    assert half[-1] > 2 * half[5]
    assert sites[-1].forward.across_samples_var < sites[-1].forward.across_high / 20


def test_beside_a_repelling_fixed_point_the_band_reaches_up_to_the_longest_sample():
    """Most digits fall to the small lengths that biases leave; in most networks some of the 64 do
    not, and are nearly all of the mean over the batch (up to 400 times the line) and of E δ²; of
    those the band knows the longest, so that of E δ² it covers some 80 %."""
    experiment = Experiment(
        depth=25, width=300, activation="hardswish", scheme="variance_scaling", gain=1.5,
        bias="pytorch_default", batch_size=64, loss="cross_entropy",
    )  # fmt: skip
    sites = [site for site in experiment.predict() if site.kind == "affine"]
    runs = [experiment.replace(seed=seed).run() for seed in range(SEEDS)]
    for band, covered in (("forward", 0.75), ("backward", 0.65)):
        deviation, half = deviations(sites, runs, band)
        assert (np.abs(deviation) <= 1).mean() >= covered, band
        assert half.max() > math.log(10), band
        assert half.min() < math.log(1.3), band


def test_where_single_draws_go_any_way_theory_draws_no_line():
    """relu_squared doubles every deviation of ln q in each layer, and adds 23/n to its square."""
    predicted = Experiment(depth=12, width=48, activation="relu_squared", data="noise").predict()
    drawn = [site.forward.high != math.inf for site in predicted]
    assert 4 < sum(drawn) < len(drawn)
    assert drawn == sorted(drawn, reverse=True)
    assert all(site.backward.high == math.inf for site in predicted)
    assert np.isfinite(theory_curve(predicted).values).tolist() == drawn[1:-1:2]
    assert theory_curve(predicted, "backward") is None


def test_of_eight_relus_the_band_knows_how_many_are_active():
    """Of first order in 1/n it would cover 70 % here. One net in 256 a layer has none active."""
    experiment = Experiment(depth=20, width=8, data="noise", batch_size=64)
    runs = [experiment.replace(seed=seed).run() for seed in range(2 * SEEDS)]
    alive = [run for run in runs if run["output"].forward.second_moment > 0]
    assert len(alive) > SEEDS
    sites = [site for site in experiment.predict() if site.kind == "affine"]
    for band in ("forward", "backward"):
        deviation, _ = deviations(sites, alive, band)
        assert (np.abs(deviation) <= 1).mean() >= 0.85, band


def test_a_wider_network_has_a_narrower_band():
    half = {}
    for width in (32, 128, 512):
        site = Experiment(depth=20, width=width).predict()["linear20"].forward
        half[width] = np.log([site.high / site.low, site.across_high / site.across_low])
    assert (half[32] > 1.6 * half[128]).all()
    assert (half[128] > 1.6 * half[512]).all()


def test_at_a_repelling_fixed_point_the_band_opens_with_depth():
    """gelu with its own gain: χ∥ = 1.14, so that deep down nothing is left of a prediction."""
    predicted = Experiment(depth=50, width=64, activation="gelu").predict()
    opening = [predicted[f"linear{l}"].forward for l in (2, 10, 30)]
    ratios = [site.high / site.low for site in opening]
    assert ratios[0] < 3 < ratios[1] < ratios[2]
    assert ratios[2] > 100
