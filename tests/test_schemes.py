"""The catalogue: the numbers, the fills, the code, and the entries themselves."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from initlab import SCHEMES, Scheme, gain, register_scheme, scheme
from initlab.schemes import applicable

every_scheme = pytest.mark.parametrize("name", SCHEMES)
every_tensor_scheme = pytest.mark.parametrize(
    "name", [name for name, entry in SCHEMES.items() if not entry.whole_model]
)
SHAPES = [(300, 200), (64, 400), (40, 30, 5), (32, 16, 3, 3), (12, 10, 3, 3, 3)]
VARIANTS = [
    *((name, {}) for name, entry in SCHEMES.items() if not entry.whole_model),
    ("constant", {"val": -0.3}),
    ("uniform", {"low": -0.1, "high": 0.4}),
    ("normal", {"mean": 0.2, "std": 0.01}),
    ("trunc_normal", {"mean": 0.1, "std": 0.5, "a": -0.2, "b": 1.0}),
    ("kaiming_normal", {"mode": "fan_out"}),
    ("kaiming_uniform", {"mode": "fan_out", "a": 0.3}),
    ("kaiming_normal", {"a": 0.2}),
    ("variance_scaling", {"scale": 0.7, "mode": "fan_out"}),
    ("variance_scaling", {"mode": "fan_avg", "distribution": "uniform"}),
    ("variance_scaling", {"scale": 2.0, "distribution": "normal"}),
    ("dropout_corrected", {"keep": 0.9}),
    ("critical", {"sigma_b": 0.1}),
    ("siren", {"omega": 1.0}),
    ("siren", {"position": "first"}),
    ("sparse", {"sparsity": 0.35, "std": 0.5}),
    ("looks_linear", {"mirror": "outputs"}),
    ("looks_linear", {"mirror": "inputs"}),
]


def filled(chosen, shape, *, seed=0, **arguments):
    generator = torch.Generator().manual_seed(seed)
    return chosen(torch.empty(shape), generator=generator, **arguments)


def pairs(variants, shapes):
    """Every variant with every shape that it can fill."""
    return [
        (*variant, shape)
        for variant in variants
        for shape in shapes
        if not scheme(variant[0], **variant[1]).why_not(shape)
    ]


def fans(shape):
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def test_every_scheme_that_is_due_is_there():
    expected = (
        "zeros ones constant uniform normal trunc_normal fan_in_uniform xavier_uniform "
        "xavier_normal kaiming_uniform kaiming_normal lecun_uniform lecun_normal "
        "pytorch_default orthogonal variance_scaling delta_orthogonal identity dirac sparse "
        "looks_linear critical siren dropout_corrected lsuv fixup skipinit rezero gpt2 mup"
    )
    assert set(SCHEMES) >= set(expected.split())


@every_scheme
def test_every_entry_says_everything_a_catalogue_needs(name):
    entry = SCHEMES[name]
    assert entry.name == name
    assert all([entry.title, entry.family, entry.formula, entry.source, entry.suits])
    assert "W" in entry.formula
    for parameter in entry.parameters.values():
        assert parameter.meaning
    assert set(entry.values) == set(entry.parameters)


@pytest.mark.parametrize(("name", "params", "shape"), pairs(VARIANTS, SHAPES), ids=str)
def test_drawn_weights_have_the_mean_and_std_that_the_scheme_states(name, params, shape):
    """N weights: s.e. of the mean std/√N; of the std at most std/√(2N) (normal) or less (uniform).

    5 of each. Orthogonal matrices have the stated mean square exactly, to rounding.
    """
    chosen = scheme(name, **params)
    gain = 1.3 if chosen.set_gain is None else None
    weights = filled(chosen, shape, gain=gain).double()
    std = chosen.weight_std(*fans(shape), gain, rows=shape[0])
    mean = chosen.weight_mean(*fans(shape), gain, rows=shape[0])
    count = weights.numel()
    if name in ("orthogonal", "delta_orthogonal", "looks_linear"):
        assert weights.square().mean().sqrt() == pytest.approx(std, rel=1e-5)
        assert abs(weights.mean()) <= 5 * std / math.sqrt(count)
        return
    assert abs(weights.mean() - mean) <= 5 * std / math.sqrt(count) + 1e-7 * abs(mean)
    assert abs(weights.std(correction=0) - std) <= 5 * std / math.sqrt(2 * count) + 1e-7


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-1, 1),
    std=st.floats(1e-4, 2),
    a=st.floats(-2, 1.5),
    width=st.floats(0.05, 5),
    seed=st.integers(0, 2**31),
)
def test_a_truncated_normal_is_drawn_in_time_or_refused(mean, std, a, width, seed):
    """5 s.e. of 4,000 draws; the std of a cut normal scatters less than that of a normal."""
    params = {"mean": mean, "std": std, "a": a, "b": a + width}
    try:
        chosen = scheme("trunc_normal", **params)
    except ValueError as error:
        assert "std outside of" in str(error)  # noqa: PT017
        return
    weights = filled(chosen, (50, 80), seed=seed).double()
    assert a - 1e-6 <= weights.min()
    assert weights.max() <= a + width + 1e-6
    stated = chosen.weight_std(80, 50)
    assert abs(weights.mean() - chosen.weight_mean(80, 50)) <= 5 * stated / 4000**0.5 + 1e-6
    # Near exponential where the cut leaves a tail: kurtosis up to 9, s.e. of the std ·√8/(2√N)
    assert abs(weights.std() - stated) <= 5 * stated * 8**0.5 / 2 / 4000**0.5 + 1e-6


# ---------------------------------------------------------------- the same as torch.nn.init

TORCH_CALLS = [
    ("zeros", {}, 1.0, nn.init.zeros_),
    ("ones", {}, 1.0, nn.init.ones_),
    ("constant", {"val": 0.3}, 1.0, lambda w: nn.init.constant_(w, 0.3)),
    ("uniform", {}, 1.0, nn.init.uniform_),
    ("normal", {}, 1.0, nn.init.normal_),
    ("normal", {"std": 0.02}, 1.0, lambda w: nn.init.normal_(w, std=0.02)),
    ("trunc_normal", {}, 1.0, nn.init.trunc_normal_),
    ("xavier_uniform", {}, 1.0, nn.init.xavier_uniform_),
    ("xavier_normal", {}, 1.7, lambda w: nn.init.xavier_normal_(w, gain=1.7)),
    ("kaiming_uniform", {"a": 0.2}, None, lambda w: nn.init.kaiming_uniform_(w, a=0.2)),
    ("kaiming_normal", {}, None, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
    (
        "kaiming_normal",
        {"mode": "fan_out", "a": 0.1},
        None,
        lambda w: nn.init.kaiming_normal_(w, a=0.1, mode="fan_out"),
    ),
    ("pytorch_default", {}, None, lambda w: nn.init.kaiming_uniform_(w, a=5**0.5)),
    ("orthogonal", {}, 1.4, lambda w: nn.init.orthogonal_(w, gain=1.4)),
    ("identity", {}, None, nn.init.eye_),
    ("dirac", {}, None, nn.init.dirac_),
    ("sparse", {"sparsity": 0.3}, None, lambda w: nn.init.sparse_(w, sparsity=0.3)),
]


@pytest.mark.parametrize(
    ("name", "params", "used_gain", "call", "shape"), pairs(TORCH_CALLS, SHAPES)
)
def test_a_scheme_draws_seed_for_seed_what_torch_draws(name, params, used_gain, call, shape):
    torch.manual_seed(7)
    expected = call(torch.empty(shape))
    torch.manual_seed(7)
    drawn = scheme(name, **params)(torch.empty(shape), gain=used_gain)
    assert torch.allclose(drawn, expected, rtol=1e-6, atol=0)
    private = filled(scheme(name, **params), shape, seed=7, gain=used_gain)
    assert torch.equal(private, drawn)


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_pytorch_default_is_what_a_fresh_layer_has(kind):
    make = (lambda: nn.Linear(30, 20)) if kind is nn.Linear else (lambda: nn.Conv2d(6, 8, 3))
    torch.manual_seed(3)
    layer = make()
    torch.manual_seed(3)
    drawn = scheme("pytorch_default")(torch.empty_like(layer.weight))
    assert torch.allclose(drawn, layer.weight.detach(), rtol=1e-6)


LAYERS = {
    "Linear": lambda: nn.Linear(30, 20),
    "Conv1d": lambda: nn.Conv1d(6, 8, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3),
    "Conv3d": lambda: nn.Conv3d(2, 4, (3, 2, 1)),
}


@pytest.mark.parametrize("used_gain", [math.sqrt(2), 0.7, 1.0])
@pytest.mark.parametrize(
    ("name", "params", "layer"),
    [
        (name, params, kind)
        for name, params in VARIANTS
        for kind, make in LAYERS.items()
        if not scheme(name, **params).why_not(make().weight.shape)
    ],
    ids=str,
)
def test_the_code_of_a_scheme_draws_the_same_numbers_in_a_clean_namespace(
    name, params, used_gain, layer
):
    chosen, net = scheme(name, **params), [LAYERS[layer]()]
    used_gain = used_gain if chosen.set_gain is None else None
    weight, bias = net[0].weight, net[0].bias
    torch.manual_seed(11)
    exec(chosen.code("net[0]", gain=used_gain), {"torch": torch, "nn": nn, "net": net})
    torch.manual_seed(11)
    drawn = chosen(torch.empty_like(weight), gain=used_gain)
    assert torch.allclose(weight.detach(), drawn, rtol=1e-6, atol=0)
    assert (not bias.any()) == (chosen.bias == "zeros" or chosen.bias_std == 0)
    if chosen.bias == "pytorch_default":
        assert bias.abs().max() <= 1 / math.sqrt(weight[0].numel())


# ---------------------------------------------------------------- fans, gain, parameters


def test_a_gain_beside_parameters_that_set_another_is_refused_by_the_scheme_too():
    leaky = scheme("kaiming_normal", a=0.2)
    with pytest.raises(ValueError, match="gain=3 and the scheme's own a or scale, which sets the"):
        leaky(torch.empty(4, 4), gain=3)
    with pytest.raises(ValueError, match="give one of them"):
        scheme("variance_scaling")(torch.empty(4, 4), gain=3, scale=2.0)
    leaky(torch.empty(4, 4), gain=math.sqrt(2 / 1.04))


def test_published_formulas_give_published_numbers():
    assert scheme("xavier_normal").weight_std(300, 100) == pytest.approx(math.sqrt(2 / 400))
    assert scheme("kaiming_normal").weight_std(50, 10) == pytest.approx(math.sqrt(2 / 50))
    fan_out = scheme("kaiming_normal", mode="fan_out")
    assert fan_out.weight_std(50, 10) == pytest.approx(math.sqrt(2 / 10))
    leaky = scheme("kaiming_normal", a=0.5)
    assert leaky.weight_std(50, 10) == pytest.approx(math.sqrt(2 / 1.25 / 50))
    assert scheme("lecun_uniform").weight_std(25, 9) == pytest.approx(0.2)
    assert scheme("pytorch_default").weight_std(12, 9) == pytest.approx(1 / 6)
    assert scheme("orthogonal").weight_std(64, 16) == pytest.approx(1 / 8)


def test_kaiming_takes_its_gain_from_the_activation_and_the_direction():
    assert scheme("kaiming_normal").gain_with("relu") == pytest.approx(math.sqrt(2))
    assert scheme("kaiming_normal").gain_with("tanh") == gain("tanh")
    fan_out = scheme("kaiming_normal", mode="fan_out")
    assert fan_out.gain_with("tanh") == gain("tanh", preserve="backward")


def test_critical_takes_sigma_w_from_the_activation_and_its_biases():
    assert scheme("critical").gain_with("tanh") == pytest.approx(1)
    assert scheme("critical").gain_with("relu") == pytest.approx(math.sqrt(2))
    noisy = scheme("critical", sigma_b=0.05)
    assert noisy.gain_with("tanh") == pytest.approx(1.1225390048, rel=1e-9)  # table t2a
    assert noisy.gain_with("identity") == 1
    assert (noisy.bias, noisy.bias_std) == ("normal", 0.05)
    assert noisy.weight_std(25, 9, 1.5) == pytest.approx(0.3)
    assert "normal_(layer.bias, std=0.05)" in noisy.code()
    with pytest.raises(ValueError, match="no edge of chaos"):
        noisy.gain_with("relu")


@pytest.mark.parametrize("name", ["xavier_normal", "lecun_normal", "orthogonal"])
def test_published_schemes_keep_their_gain_of_one(name):
    assert scheme(name).gain_with("tanh") == 1


@pytest.mark.parametrize("name", ["zeros", "normal", "uniform", "pytorch_default"])
def test_a_scheme_without_gain_ignores_it(name):
    assert not SCHEMES[name].uses_gain
    assert torch.equal(filled(scheme(name), (5, 6), gain=3.0), filled(scheme(name), (5, 6)))


def test_given_fans_overrule_the_shape():
    drawn = filled(scheme("lecun_normal"), (100, 100), fan_in=1.0, gain=1.0)
    assert float(drawn.std()) == pytest.approx(1, rel=0.05)  # 5 s.e.: 5/√(2·10⁴) = 0.035


def test_orthogonal_rows_or_columns_have_norm_gain():
    wide = filled(scheme("orthogonal"), (20, 50), gain=2.0)
    tall = filled(scheme("orthogonal"), (50, 20), gain=2.0)
    assert torch.allclose(wide @ wide.T, 4 * torch.eye(20), atol=1e-5)
    assert torch.allclose(tall.T @ tall, 4 * torch.eye(20), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(40, 30), (8, 6, 3, 3)], ids=str)
def test_every_dtype_is_filled(dtype, shape):
    """5 s.e. of the N entries that are not 0, 5/√(2N), and bfloat16's rounding, 2⁻⁹."""
    for name in applicable(shape):
        generator = torch.Generator().manual_seed(0)
        weights = scheme(name)(torch.empty(shape, dtype=dtype), gain=1.0, generator=generator)
        stated = scheme(name).weight_std(*fans(shape), 1.0, rows=shape[0])
        drawn = int((weights != 0).sum())
        assert weights.dtype == dtype
        tolerance = 2**-9 + (5 / math.sqrt(2 * drawn) if drawn else 0)
        assert float(weights.double().std()) == pytest.approx(stated, rel=tolerance, abs=1e-6), name


def test_filling_a_weight_that_needs_a_gradient_leaves_no_graph():
    weight = nn.Parameter(torch.empty(3, 3))
    assert scheme("orthogonal")(weight) is weight
    assert weight.grad_fn is None
    assert weight.is_leaf


def test_a_generator_leaves_torchs_global_state_alone():
    state = torch.random.get_rng_state()
    for shape in ((6, 4), (6, 4, 3, 3)):
        for name in applicable(shape):
            first, again = filled(SCHEMES[name], shape), filled(SCHEMES[name], shape)
            assert torch.equal(first, again), name
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_scheme_with_other_values_leaves_the_registry_alone():
    changed = scheme("normal", std=0.5)
    assert changed.values["std"] == 0.5
    assert SCHEMES["normal"].values["std"] == 1.0
    assert scheme(changed, mean=0.1).values == {"mean": 0.1, "std": 0.5}


# ---------------------------------------------------------------- refusals


def test_a_misspelt_scheme_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'kaimin_normal'; did you mean 'kaiming_normal'"):
        scheme("kaimin_normal")


def test_a_parameter_that_the_scheme_lacks_is_refused_with_those_it_has():
    with pytest.raises(TypeError, match="'normal' has no parameter 'sd'; it has: mean, std"):
        scheme("normal", sd=1.0)
    with pytest.raises(TypeError, match="has no parameter 'std'; it has: none"):
        scheme("zeros", std=1.0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("normal", {"std": -1.0}, "std=-1.0 must be at least 0"),
        ("normal", {"std": math.nan}, "normal std=nan must be a finite number"),
        ("uniform", {"low": 1.0, "high": 0.0}, "low=1.0 must be below high=0.0"),
        ("uniform", {"low": math.inf}, "uniform low=inf must be a finite number"),
        ("trunc_normal", {"a": 2.0}, "a=2.0 must be below b=2.0"),
        ("trunc_normal", {"mean": 5.0}, "mean=5.0 lies 3 std outside of a=-2.0 to b=2.0"),
        ("kaiming_normal", {"mode": "fanin"}, "mode 'fanin'; did you mean 'fan_in'"),
        ("sparse", {"sparsity": 1.2}, "sparse sparsity=1.2 must be at most 1: share of each"),
        ("sparse", {"sparsity": -0.1}, "sparsity=-0.1 must be at least 0"),
        ("dropout_corrected", {"keep": 0.0}, "keep=0.0 must be at least 1e-06: probability"),
        ("dropout_corrected", {"keep": 2}, "keep=2 must be at most 1"),
        ("variance_scaling", {"scale": -1.0}, "scale=-1.0 must be at least"),
        ("variance_scaling", {"distribution": "untruncated_normal"}, "did you mean 'truncated_n"),
        ("siren", {"omega": 0.0}, "omega=0.0 must be at least"),
        ("looks_linear", {"mirror": "input"}, "mirror 'input'; did you mean 'inputs'"),
    ],
)
def test_a_value_out_of_range_is_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        scheme(name, **params)


@pytest.mark.parametrize("value", ["0.1", None, True, [1]])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"normal std=.* must be a number"):
        scheme("normal", std=value)


@every_tensor_scheme
def test_what_is_not_a_weight_is_refused_with_the_remedy(name):
    with pytest.raises(TypeError, match=r"fills a tensor, not a Linear; for a whole model .*init_"):
        SCHEMES[name](nn.Linear(2, 2))
    shape = next(shape for shape in SHAPES if not SCHEMES[name].why_not(shape))
    with pytest.raises(ValueError, match=r"non-empty float tensor, got torch.int64"):
        SCHEMES[name](torch.zeros(shape, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"non-empty float tensor, got .* of shape"):
        SCHEMES[name](
            torch.zeros(4, 0, *shape[2:]) if "delta" in name else torch.zeros(0, *shape[1:])
        )


def test_a_vector_is_refused_by_schemes_with_fans_and_filled_by_the_others():
    for name in applicable((4, 4)):
        if SCHEMES[name].family in ("constant", "fixed scale"):
            assert SCHEMES[name](torch.full((3,), math.nan)).isfinite().all()
            continue
        with pytest.raises(ValueError, match=r"got shape \(3,\): a bias has no fan_in; init_"):
            SCHEMES[name](torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("dirac", (4, 4), r"'dirac' needs a convolution's kernel \(3 to 5 .*got shape \(4, 4\)"),
        ("delta_orthogonal", (4, 4), "needs a convolution's kernel"),
        ("delta_orthogonal", (4, 8, 3, 3), "at least as many output channels .* got 8 to 4"),
        ("identity", (4, 4, 3), r"'identity' needs a matrix, as of a Linear layer"),
        ("sparse", (4, 4, 3, 3), "'sparse' needs a matrix"),
        ("looks_linear", (4, 5), r"takes even sizes, got shape \(4, 5\); mirror='outputs'"),
    ],
)
def test_a_shape_that_a_scheme_cannot_fill_is_refused_with_the_reason(name, shape, message):
    with pytest.raises(ValueError, match=message):
        SCHEMES[name](torch.empty(shape))
    assert name not in applicable(shape)


def test_a_whole_model_scheme_says_that_it_works_through_init__only():
    for name, entry in SCHEMES.items():
        if entry.whole_model:
            with pytest.raises(
                ValueError, match=rf"{name}' looks at the whole model.*init_\(model"
            ):
                entry(torch.empty(4, 4))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"nonlinearity": "gelu"}, "no parameter 'nonlinearity'; it has: mode, a; say activation="),
        ({"gain": 1.4}, "no parameter 'gain'.*gain is an argument of its own"),
        ({"negative_slope": 0.2}, "kaiming calls the negative slope a"),
    ],
)
def test_what_is_said_otherwise_here_is_answered_with_how(params, message):
    with pytest.raises(TypeError, match=message):
        scheme("kaiming_normal", **params)


def test_a_call_takes_the_schemes_parameters_and_refuses_torchs_own_as_well():
    drawn = filled(scheme("normal"), (50, 60), std=0.01)
    assert torch.equal(drawn, filled(scheme("normal", std=0.01), (50, 60)))
    with pytest.raises(TypeError, match=r"no parameter 'nonlinearity'.*say activation="):
        scheme("kaiming_normal")(torch.empty(3, 3), nonlinearity="gelu")


@pytest.mark.parametrize(
    ("usual", "here"),
    [("he_normal", "kaiming_normal"), ("glorot_uniform", "xavier_uniform"), ("He", "kaiming_"),
     ("GlorotNormal", "xavier_normal"), ("eye_", "identity"), ("TruncatedNormal", "trunc_normal"),
     ("xavier_uniform_", "xavier_uniform")],
)  # fmt: skip
def test_the_names_of_keras_jax_and_torch_are_answered_with_those_here(usual, here):
    with pytest.raises(ValueError, match=f"unknown scheme '{usual}'; did you mean '{here}"):
        scheme(usual)


@pytest.mark.parametrize("layer", [nn.Linear(2, 2), None, 3])
def test_code_needs_the_expression_of_a_layer(layer):
    for name in ("xavier_normal", "lsuv"):
        with pytest.raises(TypeError, match=r"must be an expression such as 'net\.fc1'"):
            scheme(name).code(layer)


def test_a_gain_given_as_kaimings_a_is_refused_but_torchs_own_root_of_five_is_not():
    for value in (math.sqrt(2), 5 / 3, 2.0):
        with pytest.raises(ValueError, match=rf"a={value} must be a negative slope .*say gain="):
            scheme("kaiming_uniform", a=value)
    drawn = scheme("kaiming_uniform", a=math.sqrt(5)).weight_std(48, 7)
    assert drawn == pytest.approx(1 / 12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_an_impossible_gain_is_refused(bad):
    with pytest.raises(ValueError, match="gain="):
        scheme("xavier_normal")(torch.empty(3, 3), gain=bad)
    with pytest.raises(ValueError, match="fan_in="):
        scheme("xavier_normal").weight_std(bad, 3)


def test_a_registered_scheme_is_known_everywhere():
    """In a process of its own: the registry has no way back."""
    code = (
        "import torch; from initlab import *\n"
        "def fill(tensor, fans, generator): tensor.normal_(0, 0.5, generator=generator)\n"
        "register_scheme('half', title='Half', family='fixed scale', formula='W', source='me',\n"
        "    suits='nothing', fill=fill, std=lambda fans: 0.5,\n"
        "    call=lambda weight, gain: f'nn.init.normal_({weight}, std=0.5)')\n"
        "assert scheme('half').weight_std(3, 3) == 0.5\n"
        "experiment = Experiment(scheme='half', depth=2, width=4, data='noise')\n"
        "assert abs(experiment.predict()['linear1'].forward.second_moment - 1) < 1e-12\n"
        "assert 'std=0.5' in experiment.code()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_taken_or_empty_scheme_name_cannot_be_registered():
    for name in ("zeros", ""):
        with pytest.raises(ValueError, match="empty or already registered"):
            register_scheme(name)


def test_a_scheme_prints_without_its_functions():
    assert "<function" not in repr(scheme("normal"))
    assert isinstance(scheme("normal"), Scheme)
