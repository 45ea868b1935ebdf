"""Every kind of layer that init_ reaches, what it refuses, and what the report says of it."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from initlab import init_, scheme
from initlab.layers import slots_of
from initlab.layers.slots import parts_of


class Functional(nn.Module):
    """Activations as functions, a parameter of its own, and a scalar."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)
        self.prototypes = nn.Parameter(torch.randn(3, 4))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return F.gelu(self.second(F.relu(self.first(x)))) @ self.prototypes.T / self.temperature


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0])


def cnn_with_norm():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 10),
    )  # fmt: skip


def dqn():
    return nn.Sequential(
        nn.Conv2d(4, 8, 8, stride=4), nn.ReLU(), nn.Conv2d(8, 16, 4, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def separable():
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12)
    )


MODELS = {
    "functional activations": Functional,
    "CNN with BatchNorm": cnn_with_norm,
    "DQN": dqn,
    "3-D convolution": lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU()),
    "RNN": lambda: nn.RNN(5, 6, 2),
    "LSTM": lambda: nn.LSTM(5, 6, 2, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(5, 6),
    "cells": lambda: nn.ModuleList([nn.RNNCell(5, 6), nn.LSTMCell(5, 6), nn.GRUCell(5, 6)]),
    "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "attention of other widths": lambda: nn.MultiheadAttention(8, 2, kdim=5, vdim=6),
    "attention with extra keys": lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True),
    "depthwise separable": separable,
    "tied language model": TiedLanguageModel,
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


@every_model
@pytest.mark.parametrize("name", ["kaiming_normal", "orthogonal", "pytorch_default", "zeros"])
def test_the_report_names_every_parameter_and_nothing_else_changes(make, name):
    model = make()
    before = copy.deepcopy(model.state_dict())
    objects = dict(model.named_parameters())
    report = init_(model, name, activation="relu", seed=0)
    assert [row.name for row in report] == list(objects)
    touched = {row.name for row in report if row.scheme}
    tied = {"head.weight"} & set(before)
    for key, value in model.state_dict().items():
        if key not in touched | tied:
            assert torch.equal(value, before[key]), key
    for key, parameter in model.named_parameters():
        assert parameter is objects[key]
        row = report[key]
        assert row.shape == tuple(parameter.shape)
        assert row.actual_std == pytest.approx(
            float(parameter.detach().double().std(correction=0)), rel=1e-6, abs=1e-12
        )
        assert row.scheme or row.note
    assert not report.suspicious


@every_model
def test_matrices_are_drawn_with_their_own_fans(make):
    """xavier: std² = 2/(fan_in + fan_out) of each map in the parameter."""
    model = make()
    report = init_(model, "xavier_normal", seed=0)
    for slot in slots_of(model):
        row = report[slot.names[0]]
        if slot.part.role in ("weight", "recurrent"):
            assert row.intended_std == pytest.approx(math.sqrt(2 / (row.fan_in + row.fan_out)))


# ---------------------------------------------------------------- recurrent layers


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_weights_are_orthogonal_gate_by_gate(kind, gates):
    layer = kind(5, 6)
    report = init_(layer, "xavier_normal", recurrent="orthogonal", seed=0)
    assert report["weight_ih_l0"].scheme == "xavier_normal"
    assert report["weight_ih_l0"].intended_std == pytest.approx(math.sqrt(2 / 11))
    assert report["weight_hh_l0"].scheme == "orthogonal"
    for gate in layer.weight_hh_l0.detach().chunk(gates):
        assert torch.allclose(gate @ gate.T, torch.eye(6), atol=1e-5)


def test_identity_recurrent_weights_make_an_irnn():
    layer = nn.RNN(5, 6, nonlinearity="relu")
    init_(layer, "normal", std=0.001, recurrent="identity", seed=0)
    assert torch.equal(layer.weight_hh_l0.detach(), torch.eye(6))


def test_a_recurrent_weight_has_the_gain_of_its_own_nonlinearity():
    report = init_(nn.RNN(5, 6, nonlinearity="relu"), "kaiming_normal", gain=None, seed=0)
    assert report["weight_hh_l0"].intended_std == pytest.approx(math.sqrt(2 / 6))


def test_the_forget_gate_alone_gets_its_bias():
    model = nn.ModuleList([nn.LSTM(5, 6, 2), nn.GRU(5, 6), nn.LSTMCell(3, 6)])
    report = init_(model, "xavier_normal", forget_bias=1.0, seed=0)
    for bias in (model[0].bias_ih_l0, model[0].bias_ih_l1, model[2].bias_ih):
        i, f, g, o = bias.detach().chunk(4)
        assert (f == 1).all()
        assert not torch.cat([i, g, o]).any()
    assert not model[0].bias_hh_l0.any()
    assert not model[1].bias_ih_l0.any()
    assert "forget gate 1" in report["0.bias_ih_l0"].note


def test_the_other_gates_keep_what_was_drawn():
    layer = nn.LSTM(5, 50)
    row = init_(layer, "zeros", bias="normal", bias_std=0.1, forget_bias=2, seed=0)["bias_ih_l0"]
    i, f, g, o = layer.bias_ih_l0.detach().chunk(4)
    assert (f == 2).all()
    assert torch.cat([i, g, o]).all()
    assert (row.scheme, row.intended_std) == ("normal", None)


def test_a_forget_bias_without_an_lstm_is_refused():
    with pytest.raises(ValueError, match=r"forget_bias=1\.0: the model has no LSTM"):
        init_(nn.GRU(3, 3), "zeros", forget_bias=1.0)


def test_of_two_biases_that_are_added_one_is_drawn():
    layer = nn.GRU(5, 400)
    report = init_(layer, "zeros", bias="normal", bias_std=0.3, seed=0)
    assert report["bias_ih_l0"].intended_std == 0.3
    assert not layer.bias_hh_l0.any()
    assert "added to the first" in report["bias_hh_l0"].note
    init_(layer, "zeros", bias=0.5)
    assert (layer.bias_ih_l0 + layer.bias_hh_l0 == 0.5).all()


def test_a_deeper_recurrent_layer_reads_the_nonlinearity_of_the_one_below():
    layer = nn.RNN(5, 6, 2, nonlinearity="relu")
    report = init_(layer, "kaiming_normal", seed=0)
    assert report["weight_ih_l1"].intended_std == pytest.approx(math.sqrt(2 / 6))
    assert report["weight_ih_l0"].intended_std == pytest.approx(math.sqrt(1 / 5))


@pytest.mark.parametrize(
    ("make", "key", "gates"),
    [
        (lambda: nn.LSTM(3, 4, 2, bidirectional=True), "weight_hh_l1_reverse", 4),
        (lambda: nn.GRU(3, 4), "weight_ih_l0", 3),
        (lambda: nn.GRUCell(3, 4), "weight_hh", 3),
    ],
)
def test_a_parametrized_recurrent_weight_is_reached_gate_by_gate(make, key, gates):
    layer = parametrizations.weight_norm(make(), key)
    report = init_(layer, "orthogonal", seed=0)
    assert report[f"parametrizations.{key}.original1"].scheme == "orthogonal"
    for gate in getattr(layer, key).detach().chunk(gates):
        gram = gate.T @ gate
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)


def test_the_parts_of_a_recurrent_layer_have_the_sizes_of_its_parameters():
    layer = nn.LSTM(5, 6, 3, bidirectional=True, proj_size=4)
    for slot in slots_of(layer):
        if slot.part.role in ("weight", "recurrent"):
            shape = slot.tensor.shape
            assert (slot.part.fan_in, slot.part.fan_out * slot.part.gates) == (shape[1], shape[0])


# ---------------------------------------------------------------- attention


def test_a_parametrized_projection_has_torchs_default_too():
    layer = parametrizations.weight_norm(
        nn.MultiheadAttention(8, 2, kdim=40, vdim=4), "k_proj_weight"
    )
    init_(layer, "pytorch_default", seed=0)
    bound = math.sqrt(6 / 48)
    assert 0.9 * bound < layer.k_proj_weight.abs().max() <= bound * (1 + 1e-6)


def test_attentions_projections_are_three_matrices():
    layer = nn.MultiheadAttention(8, 2)
    report = init_(layer, "orthogonal", seed=0)
    for matrix in layer.in_proj_weight.detach().chunk(3):
        assert torch.allclose(matrix @ matrix.T, torch.eye(8), atol=1e-5)
    row = init_(layer, "xavier_normal", seed=0)["in_proj_weight"]
    assert (row.fan_in, row.fan_out) == (8, 8)
    assert "torch's fans are 8 and 24" in row.note
    assert report["out_proj.weight"].scheme == "orthogonal"


def test_extra_keys_and_values_of_attention_are_kept():
    report = init_(nn.MultiheadAttention(8, 2, add_bias_kv=True), "zeros")
    assert "keeps its own" in report["bias_k"].note


# ---------------------------------------------------------------- embeddings, norms, ties


def test_a_tied_weight_is_the_embeddings_and_says_so():
    model = TiedLanguageModel()
    before = model.embed.weight.detach().clone()
    row = init_(model, "xavier_normal", seed=0)["embed.weight"]
    assert torch.equal(model.embed.weight, before)
    assert row.note == "Embedding keeps its own initialization; tied to head.weight"


@pytest.mark.parametrize("key", ["head", "embed", "embed.weight", "head.weight", nn.Embedding])
def test_a_tied_weight_is_reached_under_every_name(key):
    model = TiedLanguageModel()
    report = init_(model, "zeros", overrides={key: scheme("normal", std=0.02)}, seed=0)
    assert report["embed.weight"].intended_std == 0.02
    assert model.head.weight is model.embed.weight
    assert not model.embed.weight[0].any()  # padding stays 0
    assert model.embed.weight[1:].all()


class BiasedHead(nn.Module):
    def __init__(self, *, through_data):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 8), nn.Linear(8, 7)
        if through_data:
            self.head.weight.data = self.embed.weight.data
        else:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("through_data", [False, True])
def test_weights_that_share_their_memory_are_tied_however_that_came_about(through_data):
    model = BiasedHead(through_data=through_data)
    before = model.embed.weight.detach().clone()
    report = init_(model, "xavier_normal", seed=0)
    assert torch.equal(model.embed.weight, before)
    assert [row.name for row in report] == [name for name, _ in model.named_parameters()]
    assert report["embed.weight"].note.endswith("tied to head.weight")
    if through_data:
        assert report["head.weight"].note == "the same memory as embed.weight"
        assert report["head.weight"].actual_std == report["embed.weight"].actual_std


@pytest.mark.parametrize("through_data", [False, True])
def test_a_tied_head_is_reached_by_its_name_with_its_bias(through_data):
    model = BiasedHead(through_data=through_data)
    report = init_(model, "zeros", overrides={"head": scheme("normal", std=0.02)}, seed=0)
    assert report["embed.weight"].intended_std == 0.02
    assert not model.head.bias.any()
    before = model.embed.weight.detach().clone()
    init_(model, "zeros", overrides={"*": "ones"}, bias=0.5)  # sweeps over embeddings
    assert torch.equal(model.embed.weight, before)


def test_norms_are_reached_when_they_are_aimed_at_and_not_by_a_sweeping_pattern():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    report = init_(model, "zeros", overrides={"*": "ones"})
    assert report["1.weight"].scheme is None
    assert report["2.weight"].scheme == "ones"
    report = init_(model, "zeros", overrides={nn.LayerNorm: scheme("constant", val=0.1)})
    assert (model[1].weight == 0.1).all()
    assert not model[1].bias.any()
    assert report["1.weight"].scheme == "constant"


def test_parameters_of_the_users_own_are_reported_and_reached_by_name():
    model = Functional()
    report = init_(model, "kaiming_normal", activation="relu", seed=0)
    assert report["prototypes"].note == (
        "not initialized: Functional holds it itself; name it in overrides"
    )
    report = init_(
        model, "zeros", overrides={"prototypes": "orthogonal", "temp*": nn.init.ones_}, seed=0
    )
    assert torch.allclose(model.prototypes @ model.prototypes.T, torch.eye(3), atol=1e-5)
    assert model.temperature == 1
    assert report["temperature"].scheme == "ones_"


def test_a_bias_named_itself_is_filled_by_the_scheme():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    report = init_(model, "ones", overrides={"*.bias": scheme("constant", val=0.3)})
    assert (model[0].bias == 0.3).all()
    assert report["0.weight"].scheme == "ones"
    assert report["0.bias"].scheme == "constant"


def test_a_container_stands_for_the_layers_in_it_by_name_and_by_type():
    model = nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
                           "head": nn.Linear(3, 2)})  # fmt: skip
    report = init_(model, "zeros", only="encoder")
    assert report["encoder.0.weight"].scheme == "zeros"
    assert report["head.weight"].note == "not selected by only"
    report = init_(model, "ones", overrides={nn.Sequential: "zeros"})
    assert [report[name].scheme for name in ("encoder.0.weight", "head.weight")] == [
        "zeros", "ones",
    ]  # fmt: skip


def test_subclasses_count_as_the_layers_they_are():
    class MyLinear(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.scale = nn.Parameter(torch.ones(3))

    report = init_(MyLinear(3, 3), "zeros")
    assert report["weight"].layer == "MyLinear"
    assert report["weight"].scheme == "zeros"
    assert "MyLinear holds it itself" in report["scale"].note


# ---------------------------------------------------------------- parametrized and hooked weights


def test_weight_norm_is_initialized_through_its_parametrization():
    layer = parametrizations.weight_norm(nn.Linear(30, 20))
    parameters = dict(layer.named_parameters())
    memory = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    report = init_(layer, "orthogonal", seed=0)
    weight = layer.weight.detach()
    assert torch.allclose(weight @ weight.T, torch.eye(20), atol=1e-5)
    for name, parameter in layer.named_parameters():
        assert parameter is parameters[name]
        assert parameter.data_ptr() == memory[name]
    row = report["parametrizations.weight.original1"]
    assert row.layer == "Linear"
    assert "weight is computed from it; its std is 0.18" in row.note


def test_a_callable_sees_the_present_values_of_a_parametrized_weight_too():
    layer = parametrizations.weight_norm(nn.Linear(5, 4))
    before = layer.weight.detach().clone()
    init_(layer, lambda weight: weight.mul_(2))
    assert torch.allclose(layer.weight, 2 * before)


@pytest.mark.parametrize("name", ["zeros", "identity", "sparse"])
def test_weight_norm_holds_rows_of_zeros(name):
    """g·v/‖v‖ with ‖v‖ = 0 would be nan."""
    plain, layer = nn.Linear(4, 6), parametrizations.weight_norm(nn.Linear(4, 6))
    init_(plain, name, seed=0)
    report = init_(layer, name, seed=0)
    assert torch.allclose(layer.weight, plain.weight)
    layer(torch.ones(1, 4)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert "nan" not in repr(report)


def test_spectral_norm_is_told_that_it_cannot_hold_zeros_and_keeps_what_it_has():
    layer = parametrizations.spectral_norm(nn.Linear(4, 6))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"'weight' is computed by a parametrization that cannot"):
        init_(layer, "zeros")
    for name, value in layer.state_dict().items():
        if name != "bias":
            assert torch.equal(value, before[name])


def test_a_parametrized_embedding_keeps_its_padding_at_zero():
    layer = parametrizations.weight_norm(nn.Embedding(5, 4, padding_idx=1))
    init_(layer, "zeros", overrides={nn.Embedding: "normal"}, seed=0)
    assert not layer.weight[1].any()
    assert layer.weight[0].all()


def test_a_parametrized_forget_gate_gets_its_bias():
    class Doubled(nn.Module):
        def forward(self, x):
            return 2 * x

        def right_inverse(self, x):
            return x / 2

    layer = nn.LSTMCell(3, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias_ih", Doubled())
    init_(layer, "xavier_normal", forget_bias=1.0, seed=0)
    assert layer.bias_ih.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_spectral_norm_rescales_what_was_drawn_and_the_report_shows_it():
    layer = parametrizations.spectral_norm(nn.Linear(30, 20))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    row = init_(layer, "normal", std=0.5, seed=0)["parametrizations.weight.original"]
    assert row.actual_std == pytest.approx(0.5, rel=0.15)
    assert "weight is computed from it" in row.note
    assert "run a few batches in training mode" in row.note
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name])
    assert layer.training


@pytest.mark.parametrize(
    "how",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight_norm is deprecated
def test_weights_that_a_hook_computes_are_refused_with_the_reason(how):
    layer = nn.Linear(4, 4)
    how(layer)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"a hook computes the layer's own from it"):
        init_(layer, "zeros", bias=1.0)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("key", ["weight_hh_l0", "weight_ih_l0"])
def test_a_recurrent_weight_that_a_hook_computes_is_refused_too(key):
    layer = torch.nn.utils.weight_norm(nn.LSTM(3, 4), key)
    with pytest.raises(ValueError, match=rf"'{key}_g': a hook computes the layer's own"):
        init_(layer, "orthogonal")


def test_an_orthogonal_parametrization_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"kept orthogonal by its parametrization; initialize"):
        init_(parametrizations.orthogonal(nn.Linear(4, 4)), "xavier_normal")


def test_a_parametrization_without_an_inverse_is_refused():
    class Symmetric(nn.Module):
        def forward(self, x):
            return x.triu() + x.triu(1).T

    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    with pytest.raises(ValueError, match=r"'weight' is computed by Symmetric, which cannot be inv"):
        init_(layer, "xavier_normal")


# ---------------------------------------------------------------- what cannot be written to


def test_meta_tensors_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"'weight' is on the meta device.*to_empty"):
        init_(nn.Linear(3, 3, device="meta"), "zeros")


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["xavier_normal", "orthogonal"])
def test_numbers_that_torch_cannot_draw_are_refused_before_anything_is_touched(dtype, name):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).to(dtype))
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=rf"parameter '1.weight' is of {dtype}, which no scheme"):
        init_(model, name)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(ValueError, match=f"needs a non-empty float tensor, got {dtype}"):
        scheme(name)(torch.ones(3, 3).to(dtype))


def test_a_callable_may_draw_complex_numbers():
    layer = nn.Linear(3, 400, dtype=torch.complex64)
    init_(layer, nn.init.normal_)
    assert layer.weight.imag.all()


def test_an_expanded_parameter_is_refused_before_anything_is_touched():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = nn.Parameter(torch.randn(1, 3).expand(3, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'1\.weight' is expanded.*contiguous\(\)"):
        init_(model, "xavier_normal")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_jit_has_compiled_is_left_alone_and_the_report_says_so():
    model = nn.Sequential(torch.jit.script(nn.Linear(3, 3)), nn.Linear(3, 2))
    report = init_(model, "ones")
    assert "torch.jit has compiled its layer; initialize before that" in report["0.weight"].note
    assert report["1.weight"].scheme == "ones"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_layers_are_refused_with_the_remedy():
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), {nn.Linear}
    )
    with pytest.raises(ValueError, match=r"layer '0' is quantized.*before quantizing"):
        init_(model, "zeros")


def test_a_lazy_layer_takes_its_shape_from_the_batch_if_there_is_one():
    model = nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"lazy and has no shape yet.*or pass batch="):
        init_(model, "zeros")
    report = init_(model, "kaiming_normal", batch=torch.ones(2, 5), seed=0)
    assert report["2.weight"].intended_std == pytest.approx(math.sqrt(2 / 3))


def test_a_scheme_that_cannot_fill_a_layer_is_refused_before_anything_is_touched():
    model = cnn_with_norm()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"'5.weight': scheme 'dirac' needs .* only=…, .*overrides"
    ):
        init_(model, "dirac", bias=1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    report = init_(model, "dirac", overrides={"5": "xavier_normal"}, seed=0)
    assert report["0.weight"].scheme == "dirac"


def test_dirac_passes_on_the_input_through_grouped_and_depthwise_convolutions():
    for layer in (nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv1d(8, 8, 5, padding=2, groups=2)):
        init_(layer, "dirac")
        x = torch.randn(2, layer.in_channels, *(7,) * (layer.weight.dim() - 2))
        assert torch.allclose(layer(x), x)


def test_an_empty_layer_is_left_alone():
    with pytest.warns(UserWarning, match="zero-element"):
        layer = nn.Linear(0, 3)
    report = init_(layer, "xavier_normal", bias=1.0)
    assert report["weight"].note == "empty"
    assert (layer.bias == 1).all()


def test_parts_know_the_kind_of_the_nearest_ancestor():
    class Mine(nn.ConvTranspose1d):
        pass

    part = parts_of(Mine(4, 6, 4, stride=2))["weight"]
    assert (part.fan_in, part.fan_out) == (8, 24)
    assert parts_of(nn.ReLU()) == {}
