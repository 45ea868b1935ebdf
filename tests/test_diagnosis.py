"""diagnose(): the bench of planted faults, causes and consequences, and how it is printed."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from bench_models import (
    ARCHITECTURES,
    CASES,
    FirstToken,
    FunctionalCNN,
    NormedUNet,
    ResidualMLP,
    ReZero,
    Siren,
    Transformer,
    Translator,
    ViT,
    cnn_batch_norm,
    dqn,
    mlp,
    run,
)
from torch import nn

from initlab import diagnose, trace
from initlab.diagnosis import FAULTS, Diagnosis
from initlab.tracing import Trace

SEED = 5  # of the cases here; the benchmark uses others


def he_mlp(depth: int = 6, width: int = 64) -> nn.Sequential:
    return mlp(nn.ReLU, depth, width, math.sqrt(2))


def features(samples: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, 32, generator=torch.Generator().manual_seed(seed))


def classes(samples: int = 32) -> torch.Tensor:
    return torch.arange(samples) % 10


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- the bench


@pytest.mark.filterwarnings("ignore:no activation found")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_planted_fault_is_named_first_placed_and_cured_by_its_own_remedy(case):
    outcome = run(case, SEED)
    assert outcome.is_right, outcome.first
    if case.fault is not None:
        assert outcome.is_placed, outcome.first
        assert outcome.is_cured, f"{outcome.first}\n--- after the remedy ---\n{outcome.second}"


def test_the_bench_is_as_wide_as_it_claims():
    planted = [case for case in CASES if case.fault]
    assert len(ARCHITECTURES) >= 10
    assert len(CASES) >= 40
    assert {case.fault for case in planted} == set(FAULTS)
    assert len({case.architecture for case in planted}) >= 10


# ---- healthy, however it looks


@pytest.mark.parametrize("samples", [2, 8, 64])
@pytest.mark.parametrize(("depth", "width"), [(5, 16), (20, 16), (50, 16), (50, 64), (20, 256)])
def test_a_he_network_is_healthy_whatever_chance_does_to_it(depth, width, samples):
    seen = trace(he_mlp(depth, width), features(samples), geometry=True)
    assert diagnose(seen).healthy


def test_forty_per_cent_of_inactive_units_are_no_fault():
    seen = trace(he_mlp(50), features(64))
    dead = [site.dead_fraction or 0 for site in seen.select(kind="activation")]
    assert max(dead) > 0.35
    assert diagnose(seen).healthy


def test_a_vanishing_signal_that_batch_norm_restores_is_noted_and_not_a_fault():
    model = cnn_batch_norm()
    model[3].weight.data.mul_(1e-3).sub_(model[3].weight.data.mean())
    model[3].bias.data.zero_()
    diagnosis = diagnose(trace(model, torch.randn(16, 3, 16, 16)))
    assert diagnosis.healthy
    assert any("hides that 3 has a mean square of" in note for note in diagnosis.notes)


def test_branches_and_a_classifier_that_start_at_0_are_noted_and_not_a_fault():
    model = ResidualMLP(4)
    for layer in (*model.second, model.head):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert diagnosis.healthy
    assert diagnosis.notes == (
        "head: weights that are 0 or this small hold the gradient back until the first steps have "
        "made them larger.",
        "second.0, second.1, second.2, second.3: zeros that close a residual branch open with the "
        "first steps.",
    )


def test_rezero_scalars_close_branches_without_an_alarm():
    assert diagnose(trace(ReZero(), features(), target=classes())).healthy


def test_the_scale_of_what_reads_a_softmax_is_said_not_to_be_checked():
    x = torch.randn(64, 32)
    model = nn.Sequential(nn.Linear(32, 8), nn.Softmax(-1), nn.Dropout(), nn.Linear(8, 8))
    assert "the scale of 3: no gain" in str(diagnose(trace(model, x)))
    assert "no gain is right" not in str(diagnose(trace(ByHand(), alike())))


def test_a_softmax_over_many_classes_is_no_vanishing_signal():
    model = nn.Sequential(nn.Linear(32, 5000), nn.Softmax(dim=-1))
    seen = trace(model, features())
    assert seen[-1].forward.second_moment < 1e-6
    assert diagnose(seen).healthy


def test_positions_that_are_equal_for_all_samples_are_no_rank_collapse():
    tokens = torch.randint(0, 27, (16, 12))
    assert diagnose(trace(Transformer(), tokens, target=tokens, geometry=True)).healthy


class Siamese(nn.Module):
    """Two calls of one network and a loss with a hinge, as for contrastive learning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = he_mlp(4)

    def forward(self, a, b, same):
        apart = F.pairwise_distance(self.net(a), self.net(b))
        return (same * apart**2 + (1 - same) * F.relu(1 - apart) ** 2).mean()


def test_a_hinge_in_a_loss_has_no_dead_units_and_its_sum_is_no_residual_stream():
    model, inputs = Siamese(), (features(), features(seed=1), torch.ones(32))
    inputs[2][:16] = 0
    assert trace(model, *inputs).select(kind="activation")[-1].dead_fraction > 0.5
    assert diagnose(trace(model, *inputs)).healthy
    with torch.no_grad():
        model.net[4].weight.mul_(1e-5)
    assert "vanishing_activations" in diagnose(trace(model, *inputs)).faults


@pytest.mark.parametrize("end", [nn.Sigmoid, nn.Tanh, nn.Softplus])
def test_an_output_that_is_mostly_bias_is_no_rank_collapse(end):
    model = nn.Sequential(he_mlp(3), end())
    with torch.no_grad():
        model[0][-1].weight.mul_(3e-3)
        model[0][-1].bias.fill_(0.5)
    assert diagnose(trace(model, features(), geometry=True)).healthy


class Recurrence(nn.Module):
    """h = tanh(W x + U h) from a state of zeros: U adds 0 to the first sum, and is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.head = (
            nn.Linear(8, 32),
            nn.Linear(32, 32, bias=False),
            nn.Linear(32, 4),
        )
        nn.init.orthogonal_(self.h.weight)

    def forward(self, x):
        h = torch.zeros(len(x), 32)
        for step in x.unbind(1):
            h = torch.tanh(self.x(step) + self.h(h))
        return self.head(h)


def test_a_recurrence_that_starts_from_zeros_has_no_closed_branch():
    diagnosis = diagnose(trace(Recurrence(), features().view(32, 4, 8)))
    assert diagnosis.healthy
    assert diagnosis.notes == ()


class ClassToken(nn.Module):
    """A class token that learns of the other places through branches with a layer scale."""

    def __init__(self, scale: float, width: int = 32) -> None:
        super().__init__()
        self.token, self.scale = nn.Parameter(torch.randn(1, 1, width)), scale
        self.attentions = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(width, width) for name in ("query", "key", "value", "out")}
            )
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        for layers in self.attentions:
            h = F.layer_norm(x, x.shape[-1:])
            q, k, v = (layers[name](h) for name in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(q, k, v)
            x = x + self.scale * layers["out"](mixed)
        return self.head(self.norm(x)[:, 0])


def test_a_class_token_learns_of_its_input_through_a_layer_scale():
    x = torch.randn(32, 6, 32)
    seen = trace(ClassToken(1e-5), x, target=classes(), geometry=True)
    assert seen["head"].forward.across_samples_var < 1e-8
    assert diagnose(seen).healthy
    model = ClassToken(1.0)
    with torch.no_grad():
        for layers in model.attentions:
            layers["value"].weight.mul_(1e-5)
    assert "vanishing_activations" in diagnose(trace(model, x, target=classes())).faults


def test_a_small_codebook_does_not_make_biases_dominate():
    """As of a VQ model: entries U(±1/K), read by a layer with torch's own biases."""
    model = nn.Sequential(nn.Embedding(27, 4), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 27))
    nn.init.uniform_(model[0].weight, -1 / 256, 1 / 256)
    tokens = torch.randint(0, 27, (64, 8))
    assert "bias_dominated" not in diagnose(trace(model, tokens, target=tokens)).faults
    nn.init.constant_(model[1].bias, 5.0)
    assert "bias_dominated" in diagnose(trace(model, tokens, target=tokens)).faults


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_scales_are_not_judged_where_batch_norms_are_idle_in_eval_mode(scale):
    layers = [(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Tanh()) for _ in range(6)]
    model, x = nn.Sequential(*(each for three in layers for each in three)), features()
    for linear, *_ in layers:
        nn.init.normal_(linear.weight, std=scale / 32**0.5)
    diagnosis = diagnose(trace(model.eval(), x))
    assert "model.train() first" in str(diagnosis)
    assert diagnosis.healthy
    assert "model.train()" not in str(diagnose(trace(model.train(), x)))


# ---- cause and consequence


def test_a_dead_head_explains_the_missing_gradients_below():
    model = nn.Sequential(he_mlp(3), nn.ReLU())
    nn.init.constant_(model[0][6].bias, -50.0)
    diagnosis = diagnose(trace(model, features()))
    assert [finding.fault for finding in diagnosis.causes] == ["dead_units"]
    assert diagnosis.causes[0].where == "0.6"
    gradients = next(f for f in diagnosis.findings if f.fault == "vanishing_gradients")
    assert gradients.because == "dead_units at 0.6"


def test_a_head_of_zeros_explains_the_missing_gradients_below():
    model = FunctionalCNN()
    nn.init.zeros_(model.head.weight)
    (cause,) = diagnose(trace(model, torch.randn(8, 3, 16, 16))).causes
    assert (cause.fault, cause.where) == ("vanishing_gradients", "head")
    assert "leave it if it is meant" in cause.remedy


def test_a_small_head_is_safe_to_leave_and_hides_no_fault_below():
    """As of BEiT, whose classifier is N(0, 0.02²) times 0.001."""
    model, x = he_mlp(6), features()
    with torch.no_grad():
        model[-1].weight.mul_(1e-4)
        model[-1].bias.zero_()
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert diagnosis.healthy
    assert "hold the gradient back until the first steps" in str(diagnosis)
    with torch.no_grad():
        for layer in (model[4], model[6]):
            layer.weight.mul_(1e-5)
    assert not diagnose(trace(model, x, target=classes())).healthy


class SqueezeInClosedBranch(nn.Module):
    """As of a normalizer-free network: the branch begins at 0, and a gate reads its end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 16, 3, padding=1), nn.Parameter(torch.zeros(()))
        self.end = nn.Conv2d(16, 16, 3, padding=1)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)
        self.fc1, self.fc2, self.head = nn.Linear(16, 8), nn.Linear(8, 16), nn.Linear(16, 10)
        nn.init.zeros_(self.fc1.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        h = self.end(F.gelu(x))
        gate = self.fc2(F.relu(self.fc1(h.mean((2, 3))))).sigmoid()
        return self.head((x + 2 * gate[:, :, None, None] * h).mean((2, 3)))


def test_units_that_wait_for_a_closed_branch_are_not_dead():
    x = torch.randn(32, 3, 8, 8)
    model = SqueezeInClosedBranch()
    assert diagnose(trace(model, x, target=classes())).healthy
    nn.init.normal_(model.end.weight, std=0.1)
    nn.init.constant_(model.fc1.bias, -50.0)
    assert "dead_units" in diagnose(trace(model, x, target=classes())).faults


def test_all_normalizations_with_a_scale_of_0_are_reset_at_once():
    layers = [(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()) for _ in range(3)]
    model, x = nn.Sequential(*(each for three in layers for each in three)), features()
    for norm, *_ in layers:
        nn.init.zeros_(norm.weight)
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert diagnosis.findings[0].where == "0"
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


def test_an_explosion_explains_the_overflow_and_the_loss_that_follow():
    model = he_mlp(60)
    for layer in model[::2]:
        nn.init.normal_(layer.weight)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert [finding.fault for finding in diagnosis.causes] == ["exploding_activations"]
    assert diagnosis.causes[0].where == "0"
    assert "non_finite" in diagnosis.faults


def test_a_signal_that_first_explodes_and_then_dies_is_no_reason_to_fail():
    """As after steps that were too large: 10³⁸ in front of units that are all dead."""
    model = he_mlp()
    with torch.no_grad():
        model[0].weight.mul_(1e18)
        model[2].weight.copy_(-model[2].weight.abs())
    assert not diagnose(trace(model, features(), target=classes())).healthy


def test_a_wrong_loss_is_the_heads_only_where_the_signal_before_it_is_right():
    model = he_mlp()
    model[-1].weight.data.mul_(40)
    (cause,) = diagnose(trace(model, features(), target=classes())).causes
    assert (cause.fault, cause.where) == ("wrong_initial_loss", "12")
    assert "where −log(1/10) = 2.3" in cause.evidence

    model = he_mlp()
    model[4].weight.data.mul_(40)
    (cause,) = diagnose(trace(model, features(), target=classes())).causes
    assert (cause.fault, cause.where) == ("exploding_activations", "4")


def test_of_two_independent_faults_both_are_causes():
    model = he_mlp()
    nn.init.constant_(model[4].bias, -50.0)
    nn.init.constant_(model[0].weight, 0.1)
    faults = [finding.fault for finding in diagnose(trace(model, features())).findings]
    assert faults[0] == "symmetry"
    assert "dead_units" in faults


def test_growing_residual_sums_are_to_be_divided_by_the_root_of_their_number():
    model = ResidualMLP(16, scaled=False)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    (cause,) = diagnosis.causes
    assert cause.fault == "exploding_activations"
    assert "divide the residual branch by √16, as by scaling its last layer by 0.25" in cause.remedy
    assert 'for name in [\n        "second.0"' in cause.code
    before = model.second[0].weight.clone()
    exec(diagnosis.code, {"model": model})
    torch.testing.assert_close(model.second[0].weight, before / 4)


def test_a_normalized_network_too_deep_for_its_gradients_gets_advice_but_no_code():
    layers = [
        layer
        for _ in range(50)
        for layer in (nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
    ]  # fmt: skip
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    (cause,) = diagnose(trace(model, torch.randn(64, 64))).causes
    assert cause.fault == "exploding_gradients"
    assert cause.code == ""
    assert "residual connections" in cause.remedy


@pytest.mark.parametrize("fill", [5.0, -10.0])
def test_biases_of_all_layers_are_cured_at_once(fill):
    model = he_mlp()
    for layer in model[:-1:2]:
        nn.init.constant_(layer.bias, fill)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert diagnosis.causes[0].where == "0"
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, features(), target=classes())).healthy


def test_a_loss_that_a_bias_makes_wrong_is_cured_at_the_bias():
    model = he_mlp()
    model[-1].bias.data[0] = 30
    weight = model[-1].weight.clone()
    (cause,) = diagnose(trace(model, features(), target=classes() % 9 + 1)).causes
    assert (cause.fault, cause.where) == ("wrong_initial_loss", "12")
    exec(cause.code, {"model": model})
    assert torch.equal(model[-1].weight, weight)
    assert diagnose(trace(model, features(), target=classes())).healthy


def test_inputs_that_no_one_scaled_are_wild_and_the_first_layer_undoes_their_scale():
    model, x = he_mlp(), torch.randint(0, 256, (32, 32)).float()
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert (diagnosis.causes[0].fault, diagnosis.causes[0].where) == ("exploding_activations", "0")
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


def test_inputs_that_the_model_divides_itself_are_as_large_as_it_makes_them():
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = he_mlp()

        def forward(self, x):
            return self.net(x / 255)

    model, x = Divides(), torch.randint(0, 256, (32, 32)).float()
    assert diagnose(trace(model, x, target=classes())).healthy
    with torch.no_grad():
        model.net[0].weight.mul_(100)
    diagnosis = diagnose(trace(model, x, target=classes()))
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_gates_that_their_hidden_weights_saturate_are_found(kind):
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = kind(8, 64, batch_first=True), nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model, x = Reader(), features().view(32, 4, 8)
    assert diagnose(trace(model, x, target=classes())).healthy
    for weight in model.rnn.parameters():
        weight.data.mul_(30)
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert (diagnosis.causes[0].fault, diagnosis.causes[0].where) == ("saturation", "rnn")
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


def test_a_recurrence_that_reads_raw_numbers_is_drawn_for_their_scale():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(8, 64, batch_first=True), nn.Linear(64, 10)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    model, x = Reader(), 255 * torch.rand(32, 4, 8)
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert diagnosis.faults[0] == "saturation"
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


def test_tables_of_zeros_that_tell_the_tokens_are_drawn_and_not_taken_for_a_closed_branch():
    model, tokens = Transformer(tied=0.02), torch.randint(0, 27, (16, 12))
    for layer in (model.tokens, *(each for block in model.blocks for each in block.modules())):
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.zeros_(layer.weight)
    diagnosis = diagnose(trace(model, tokens, target=tokens, geometry=True))
    assert (diagnosis.causes[0].fault, diagnosis.causes[0].where) == ("symmetry", "tokens")
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, tokens, target=tokens, geometry=True)).healthy


# ---- where numbers stop being numbers


def test_bad_data_are_the_datas_fault():
    inputs = features()
    inputs[3, 7] = math.inf
    (cause,) = diagnose(trace(he_mlp(), inputs)).causes
    assert (cause.fault, cause.where) == ("non_finite", "input")


def test_all_weights_that_are_not_finite_are_drawn_at_once():
    model = he_mlp()
    for layer in (model[2], model[6]):
        layer.weight.data[0, 0] = math.nan
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert (diagnosis.causes[0].fault, diagnosis.causes[0].where) == ("non_finite", "2")
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, features(), target=classes())).healthy


def test_a_bad_target_is_the_losss_fault():
    diagnosis = diagnose(trace(he_mlp(), features(), target=torch.full((32, 10), math.nan)))
    assert diagnosis.findings[0].fault == "non_finite"
    assert "Look at the target" in diagnosis.findings[0].remedy


def test_a_gradient_that_is_not_finite_is_found_where_it_arises():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(torch.sqrt(F.relu(self.a(x))))

    (cause, *_) = diagnose(trace(Root(), features())).causes
    assert (cause.fault, cause.where) == ("non_finite", "a.relu")
    assert "square root" in cause.remedy


# ---- what is not checked


def test_what_the_trace_does_not_say_is_listed_as_not_checked():
    everything = diagnose(trace(he_mlp(), features(), target=classes(), geometry=True))
    assert everything.not_checked == ()
    (reason,) = diagnose(trace(he_mlp(), features(), target=classes())).not_checked
    assert "geometry=True" in reason
    little = diagnose(trace(he_mlp(), features(), backward=False, statistics="moments"))
    listed = " ".join(little.not_checked)
    for word in ("gradients", "rank", "initial loss", "dead and saturated"):
        assert word in listed
    (_, _, reason) = diagnose(trace(he_mlp(), features(1))).not_checked
    assert "one sample" in reason


def test_a_softmax_before_cross_entropy_is_said_to_hide_the_loss():
    model = nn.Sequential(he_mlp(3), nn.Softmax(-1))
    assert "leave the softmax out" in str(diagnose(trace(model, features(), target=classes())))


def test_weights_that_are_all_frozen_are_said_not_to_be_checked():
    model = he_mlp(3).requires_grad_(False)
    assert "none of them gets a gradient" in str(diagnose(trace(model, features())))


def test_layers_that_the_gradient_does_not_reach_are_listed():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.b(F.relu(self.a(x)).detach())

    diagnosis = diagnose(trace(Detached(), features(), target=classes()))
    assert diagnosis.healthy
    assert any(reason.startswith("gradients of a: not reached") for reason in diagnosis.not_checked)


def test_the_inside_of_a_recurrence_is_not_checked():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 16, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    reasons = diagnose(trace(Last(), torch.randn(4, 6, 8))).not_checked
    assert any(reason.startswith("the steps inside rnn") for reason in reasons)


# ---- what is returned


def test_a_diagnosis_is_plain_and_repeatable_and_survives_json():
    model = dqn()
    nn.init.constant_(model[4].bias, -50.0)
    seen = trace(model, torch.randn(32, 8))
    first = diagnose(seen)
    assert first == diagnose(seen) == diagnose(Trace.from_json(seen.to_json()))
    assert str(first) == repr(first)
    assert hash(first) == hash(diagnose(seen))


def test_a_diagnosis_prints_in_a_terminal():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.constant_(model[0].weight, 0.5)
    assert str(diagnose(trace(model, torch.ones(8, 16) * torch.rand(8, 1)))).startswith(
        "1 fault\n"
        "symmetry at 0\n"
        "  All 256 weights are 0.5: every unit computes the same.\n"
        "  Equal units get equal gradients and stay equal: draw the weights at random.\n"
        "    from initlab import init_\n"
    )


def test_a_healthy_diagnosis_says_so():
    lines = str(diagnose(trace(he_mlp(), features()))).splitlines()
    assert lines[0] == "Healthy: nothing that was checked is wrong."
    assert all(line.startswith("Not checked: ") for line in lines[1:])


def test_a_diagnosis_in_a_notebook_is_escaped_html_with_the_code():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"<b>": nn.Linear(32, 64)})
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(F.relu(self.parts["<b>"](x)))

    model = Odd()
    nn.init.constant_(model.parts["<b>"].weight, 0.5)
    page = diagnose(trace(model, features()))._repr_html_()
    assert "<strong>symmetry at parts.&lt;b&gt;</strong>" in page
    assert "<pre>from initlab import init_" in page
    assert "<b>" not in page


def test_only_a_trace_can_be_diagnosed():
    with pytest.raises(TypeError, match=r"trace=Sequential must be a Trace; trace\(model, batch\)"):
        diagnose(he_mlp())  # type: ignore[arg-type]


def test_an_empty_trace_is_not_checked_at_all():
    assert diagnose(Trace(())) == Diagnosis(not_checked=("everything: the trace has no sites",))


@pytest.mark.parametrize("part", [slice(1, None), slice(0, 4), slice(3, 7)])
def test_a_part_of_a_trace_can_be_diagnosed(part):
    assert diagnose(trace(he_mlp(), features())[part]).healthy


# ---- remedies


def test_weights_of_any_size_are_judged():
    """A weight is reduced at once from 8,192 elements on, when its site is not yet complete."""
    for width in (16, 96, 300):
        seen = trace(nn.Sequential(nn.Linear(width, width), nn.ReLU()), torch.randn(4, width))
        assert seen["0"].weight is not None


def test_every_weight_of_a_fault_is_reached_whatever_module_holds_it():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.kernel = nn.Parameter(torch.empty(8, 8))
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            x = F.relu(self.up(F.relu(self.conv(x)))).flatten(2).transpose(1, 2)
            x = F.relu(self.normed(self.attention(x, x, x)[0]))
            return self.head(F.relu(x @ self.kernel).mean(1))

    model = Mixed()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.03)
    inputs = torch.randn(16, 3, 8, 8)
    diagnosis = diagnose(trace(model, inputs, target=classes(16)))
    assert diagnosis.findings[0].fault == "symmetry"
    exec(diagnosis.code, {"model": model})
    still = [
        site.name
        for site in trace(model, inputs)
        if site.weight is not None and site.weight.var == 0
    ]
    assert still == []


def test_a_layer_that_is_fed_raw_pixels_is_drawn_for_their_scale():
    model = mlp(nn.Tanh, 3, 64, 1.0)
    pixels = torch.randint(0, 256, (32, 32)).float()
    diagnosis = diagnose(trace(model, pixels))
    assert (diagnosis.findings[0].fault, diagnosis.findings[0].where) == ("saturation", "0")
    exec(diagnosis.code, {"model": model})
    after = trace(model, pixels)
    assert after["0"].forward.second_moment == pytest.approx(1.0, rel=0.5)
    assert diagnose(after).healthy


def test_a_bias_that_is_added_by_hand_is_found_by_what_reads_it():
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(32, 64) / 32**0.5)
            self.b = nn.Parameter(torch.full((64,), 30.0))
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(F.relu(x @ self.kernel + self.b))

    model = ByHand()
    kernel = model.kernel.clone()
    diagnosis = diagnose(trace(model, features()))
    assert (diagnosis.findings[0].fault, diagnosis.findings[0].where) == (
        "bias_dominated",
        "kernel",
    )
    exec(diagnosis.code, {"model": model})
    assert torch.equal(model.kernel, kernel)
    assert not model.b.any()


@pytest.mark.parametrize("slope", [0.5, 0.9])
def test_a_function_with_a_slope_of_its_own_is_redrawn_for_that_slope(slope):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))

        def forward(self, x):
            for layer in self.layers:
                x = F.leaky_relu(layer(x), slope)
            return x

    model, x = Net(), torch.randn(32, 64)
    for layer in model.layers:
        nn.init.normal_(layer.weight, std=0.02)
    first = diagnose(trace(model, x))
    assert first.findings[0].fault == "vanishing_activations"
    exec(first.code, {"model": model})
    gain = math.sqrt(2 / (1 + slope**2))
    assert float(model.layers[5].weight.detach().std()) == pytest.approx(gain / 8, rel=0.05)
    assert diagnose(trace(model, x)).healthy


@pytest.mark.parametrize("limits", [(1.0, 3.0), (20.0, 30.0), (0.0, 6.0)])
def test_an_activation_that_is_flat_at_0_is_no_reason_to_fail(limits):
    model = nn.Sequential(nn.Linear(32, 64), nn.Hardtanh(*limits), nn.Linear(64, 64), nn.Tanh())
    nn.init.normal_(model[2].weight, std=1e-5)
    diagnosis = diagnose(trace(model, torch.randn(32, 32)))
    exec(diagnosis.code, {"model": model})


def test_layers_that_are_right_are_left_alone():
    model = he_mlp()
    model[4].weight.data.mul_(1e4)
    untouched = {n: p.clone() for n, p in model.named_parameters() if not n.startswith("4.")}
    diagnosis = diagnose(trace(model, features()))
    exec(diagnosis.code, {"model": model})
    for name, before in untouched.items():
        assert torch.equal(model.get_parameter(name), before), name
    assert diagnose(trace(model, features())).healthy


# ---- what it costs


def test_thousands_of_layers_are_diagnosed_in_seconds():
    layers = itertools.chain.from_iterable((nn.Linear(8, 8), nn.Tanh()) for _ in range(3000))
    model = nn.Sequential(*layers)
    for layer in model[::2]:
        nn.init.orthogonal_(layer.weight, gain=0.9)
    diagnosis = diagnose(trace(model, torch.randn(4, 8)))
    assert diagnosis.findings[0].fault == "vanishing_activations"


class LayerScaled(nn.Module):
    """Residual branches that begin nearly closed, as in ConvNeXt and CaiT."""

    def __init__(self, scale: float, blocks: int = 6, width: int = 32) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.first = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))
        self.scales = nn.ParameterList(torch.full((width,), scale) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = zip(self.norms, self.first, self.second, self.scales, strict=True)
        for norm, first, second, scale in parts:
            x = x + scale * second(F.gelu(first(norm(x))))
        return self.head(x)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-6])
def test_a_layer_scale_is_no_vanishing_gradient(scale):
    model = LayerScaled(scale)
    assert diagnose(trace(model, features(), target=classes())).healthy
    with torch.no_grad():
        model.second[2].weight.mul_(1e-6)
        model.second[2].bias.zero_()
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert diagnosis.findings[0].fault == "vanishing_gradients"
    assert diagnosis.findings[0].where == "first.2"


# ---- where training can do without a gradient at first


class ByHand(nn.Module):
    """A residual attention written with ``@`` and ``softmax``."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for layer in (self.query, self.key, self.value, self.out, self.head):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        scores = self.query(h) @ self.key(h).transpose(-1, -2) / 8
        return self.head((x + self.out(scores.softmax(-1) @ self.value(h))).mean(1))


def alike(samples: int = 32, width: int = 64) -> torch.Tensor:
    """Sequences whose places hold nearly the same, as when positions are all that tells them."""
    return torch.randn(samples, 1, width) + 0.1 * torch.randn(samples, 12, width)


def test_queries_of_an_attention_over_places_that_are_alike_are_no_vanishing_gradient():
    model = ByHand()
    seen = trace(model, alike(), target=classes())
    query, head = seen["query"].backward, seen["head"].backward
    assert query is not None
    assert head is not None
    assert query.second_moment * query.numel < 1e-8 * head.second_moment * head.numel
    assert diagnose(seen).healthy


@pytest.mark.parametrize("part", ["key", "value", "out"])
def test_weights_that_close_an_attention_by_hand_are_named(part):
    model = ByHand()
    model.get_submodule(part).weight.data.mul_(1e-5)
    x = alike()
    diagnosis = diagnose(trace(model, x, target=classes()))
    assert diagnosis.findings[0].fault == "vanishing_gradients"
    assert f'"{part}"' in diagnosis.code
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x, target=classes())).healthy


def test_an_attention_with_one_key_needs_no_gradient_for_its_query():
    tokens = torch.randint(0, 27, (32, 16))
    assert diagnose(trace(FirstToken(place=0), tokens, target=classes())).healthy


def test_queries_and_a_classifier_of_zeros_are_no_symmetry():
    model, tokens = FirstToken(), torch.randint(0, 27, (32, 16))
    for layers in model.attentions:
        nn.init.zeros_(layers["query"].weight)
    assert diagnose(trace(model, tokens, target=classes())).healthy
    nn.init.zeros_(model.head.weight)
    faults = diagnose(trace(model, tokens, target=classes())).faults
    assert "symmetry" not in faults


def test_a_table_of_relative_positions_starts_at_0_and_is_no_symmetry():
    class Windowed(ByHand):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(12, 12))

        def forward(self, x):
            h = self.norm(x)
            q, k, v = self.query(h), self.key(h), self.value(h)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.table)
            return self.head((x + self.out(mixed)).mean(1))

    assert diagnose(trace(Windowed(), alike(), target=classes())).healthy


class NarrowBranches(nn.Module):
    """Branches of three layers of N(0, 0.02²) and eight units, and a layer scale that a trace
    does not see in front of an Identity, as of a stochastic depth that is off."""

    def __init__(self, scale: float = 1.0, width: int = 8) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width), nn.Linear(width, width), nn.GELU(),
                nn.Linear(width, width),
            )
            for _ in range(2)
        )  # fmt: skip
        self.scale, self.drop_path = nn.Parameter(torch.full((width,), scale)), nn.Identity()
        self.stem, self.head = nn.Linear(32, width), nn.Linear(width, 10)
        for layer in self.branches.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = x + self.drop_path(self.scale * branch(x))
        return self.head(x)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_branches_that_are_small_on_purpose_are_no_vanishing_gradient_and_a_lost_layer_is(scale):
    model = NarrowBranches(scale)
    assert diagnose(trace(model, features(), target=classes())).healthy
    model.branches[1][4].weight.data.mul_(1e-5)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert (diagnosis.findings[0].fault, diagnosis.findings[0].where) == (
        "vanishing_gradients",
        "branches.1.2",
    )
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, features(), target=classes())).healthy


def test_a_branch_that_is_mostly_bias_is_no_rank_collapse():
    model, images = ViT(norm_first=True), torch.randn(32, 3, 16, 16)
    for weight in model.parameters():
        if weight.ndim in (2, 4):
            weight.data.mul_(0.1)
    assert diagnose(trace(model, images, target=classes(), geometry=True)).healthy


# ---- remedies that reach all that shares the cause


def test_two_layers_of_zeros_in_a_row_do_not_open():
    model = ResidualMLP(4)
    for layer in (model.first[1], model.second[1]):
        nn.init.zeros_(layer.weight)
    diagnosis = diagnose(trace(model, features(), target=classes()))
    assert (diagnosis.findings[0].fault, diagnosis.findings[0].where) == ("symmetry", "first.1")
    exec(diagnosis.code, {"model": model})
    assert model.first[1].weight.any()
    assert model.second[1].weight.any()


def test_an_attention_of_zeros_is_no_closed_branch():
    model, images = ViT(norm_first=True), torch.randn(32, 3, 16, 16)
    attention = model.encoder.layers[1].self_attn
    nn.init.zeros_(attention.in_proj_weight)
    nn.init.zeros_(attention.out_proj.weight)
    diagnosis = diagnose(trace(model, images, target=classes()))
    assert diagnosis.findings[0].where == "encoder.layers.1.self_attn"
    exec(diagnosis.code, {"model": model})
    assert attention.in_proj_weight.any()
    assert attention.out_proj.weight.any()


def test_weights_that_a_normalization_hides_but_whose_steps_explode_are_redrawn():
    model, images = NormedUNet(), torch.randn(32, 3, 16, 16)
    for block in (model.first, model.second, model.third):
        block[0].weight.data.mul_(1e-3)
        block[1].eps = 1e-12  # or else it is the limit
    diagnosis = diagnose(trace(model, images))
    assert diagnosis.findings[0].fault == "exploding_gradients"
    assert "Normalization divides the gradient" in diagnosis.findings[0].remedy
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, images)).healthy


def test_a_loss_that_all_weights_share_in_is_cured_by_more_than_the_last_layer():
    model, images = ViT(norm_first=True), torch.randn(32, 3, 16, 16)
    for layer in (model.patches, model.head, *model.encoder.modules()):
        for weight in layer.parameters(recurse=False):
            if weight.ndim > 1:
                weight.data.mul_(100)
    diagnosis = diagnose(trace(model, images, target=classes()))
    assert diagnosis.findings[0].fault == "wrong_initial_loss"
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, images, target=classes())).healthy


def test_a_gradient_lost_behind_norms_that_hide_large_weights_is_cured_by_drawing_those_too():
    model, images = cnn_batch_norm(), torch.randn(32, 3, 16, 16)
    for index in (0, 3, 6, 9, 14):
        nn.init.uniform_(model[index].weight, 0, 1)
    diagnosis = diagnose(trace(model, images, target=classes()))
    assert diagnosis.findings[0].fault == "vanishing_gradients"
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, images, target=classes())).healthy


def test_a_recurrence_whose_weights_are_large_is_drawn_together_with_the_last_layer():
    model, tokens = Translator(), torch.randint(0, 27, (32, 16))
    for layer in (model.encoder, model.decoder, model.head):
        for weight in layer.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight)
    diagnosis = diagnose(trace(model, tokens, target=tokens))
    assert [(f.fault, f.where) for f in diagnosis.causes[:1]] == [("saturation", "encoder")]
    assert 'model.get_submodule("decoder").reset_parameters()' in diagnosis.code
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, tokens, target=tokens)).healthy


def test_a_siren_of_zeros_is_redrawn_at_once_with_the_omega_that_one_sine_shows():
    model, x = Siren(), torch.rand(64, 2) * 2 - 1
    for layer in model.layers:
        nn.init.zeros_(layer.weight)
    exec(diagnose(trace(model, x)).code, {"model": model})
    assert diagnose(trace(model, x)).healthy


@pytest.mark.parametrize(("factor", "fault"), [
    (1e-3, "vanishing_activations"), (100, "exploding_gradients"),
])  # fmt: skip
def test_a_siren_is_redrawn_with_its_own_omega(factor, fault):
    model, x = Siren(), torch.rand(64, 2) * 2 - 1
    for layer in (*model.layers, model.head):
        layer.weight.data.mul_(factor)
    diagnosis = diagnose(trace(model, x))
    assert diagnosis.findings[0].fault == fault
    assert 'init_(model, "siren", position="first", only=["layers.0"])' in diagnosis.code
    hidden = '["layers.1", "layers.2", "layers.3", "layers.4"]'
    assert f'init_(model, "siren", omega=30, only={hidden})' in diagnosis.code
    exec(diagnosis.code, {"model": model})
    assert diagnose(trace(model, x)).healthy


def test_an_omega_that_no_gradient_shows_is_listed_as_not_checked_and_found_the_next_time():
    model, x = Siren(), torch.rand(64, 2) * 2 - 1
    for layer in (*model.layers, model.head):
        nn.init.zeros_(layer.weight)
    first = diagnose(trace(model, x))
    assert any(
        reason.startswith("the ω of sin(ω·z) at layers.0.sin") for reason in first.not_checked
    )
    exec(first.code, {"model": model})
    second = diagnose(trace(model, x))
    assert not any("ω of sin" in reason for reason in second.not_checked)
    assert "omega=30" in second.code
    exec(second.code, {"model": model})
    assert diagnose(trace(model, x)).healthy
