"""The limits of diagnose() against simulation, and against what training does on either side."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from torch import Tensor, nn

from initlab import ACTIVATIONS, diagnose, digits, trace
from initlab.diagnosis.draws import draw_after
from initlab.diagnosis.faults_of_scale import loss_of
from initlab.diagnosis.faults_of_units import _saturated_square, _saturation_limit
from initlab.diagnosis.flow import GROWTH, SMALL, Flow, chance, weight_gain


def plain_mlp(depth: int, width: int, fill) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 64, width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fill(layer)
    return model


def he(layer: nn.Linear) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


def xavier(layer: nn.Linear) -> None:
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)


# ---- chance


@pytest.mark.parametrize(("width", "depth"), [(16, 10), (64, 30)])
def test_chance_covers_he_networks_and_is_no_wider_than_it_says(width, depth):
    """600 draws: of 3 standard deviations none or few are outside, of 1 about a third."""
    torch.manual_seed(0)
    draws = 600
    h = torch.randn(draws, width, 1) * math.sqrt(2)
    for _ in range(depth - 1):
        weights = torch.randn(draws, width, width) * math.sqrt(2 / width)
        h = weights @ F.relu(h)
    squares = (h.square().mean((1, 2)) / 2).log()
    low, high = chance(depth, depth / width)
    outside = (squares < math.log(low)) | (squares > math.log(high))
    assert outside.double().mean() < 0.015
    middle, spread = math.log(low * high) / 2, math.log(high / low) / 2
    within_one = ((squares - middle).abs() < spread / 3).double().mean()
    assert 0.6 < within_one < 0.76  # 0.683 ± 4 standard errors of 0.019


# ---- batch normalization


def normalized_mlp(depth: int, width: int) -> nn.Sequential:
    inputs = [64] + [width] * (depth - 1)
    layers = [nn.Sequential(nn.Linear(n, width), nn.BatchNorm1d(width), nn.ReLU()) for n in inputs]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def test_batch_normalization_makes_gradients_grow_as_theory_says():
    """Over 16 layers of 512 units; one draw strays by some 10 % of the whole, 1 % a layer."""
    torch.manual_seed(0)
    seen = trace(normalized_mlp(20, 512), torch.randn(512, 64), statistics="moments")
    first, last = (seen[f"{layer}.0"].backward.second_moment for layer in (2, 18))
    assert (first / last) ** (1 / 16) == pytest.approx(GROWTH, rel=0.03)


def test_a_gradient_that_batch_normalization_lets_grow_is_no_fault_where_it_trains():
    torch.manual_seed(0)
    batch = digits(256)
    model = normalized_mlp(30, 64)
    seen = trace(model, batch.inputs, target=batch.labels)
    assert seen["0.0"].backward.second_moment > 1e4 * seen["30"].backward.second_moment
    assert diagnose(seen).healthy
    assert train(model, batch.inputs, batch.labels, 1e-2) < 1.0


# ---- the initial loss


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("variance", [0.0, 0.5, 2.0, 10.0, 100.0, 1e4])
def test_the_loss_of_gaussian_logits_is_at_most_what_the_limit_says(classes, variance):
    torch.manual_seed(0)
    logits = torch.randn(4000, classes, dtype=torch.float64) * math.sqrt(variance)
    target = torch.randint(0, classes, (4000,))
    losses = F.cross_entropy(logits, target, reduction="none")
    error = float(losses.std()) / math.sqrt(4000)
    bound = loss_of(classes, variance)
    assert float(losses.mean()) < bound + 3 * error + 1e-9
    assert float(losses.mean()) > 0.45 * bound  # C = 2 is far from the limit of many classes


# ---- saturation


@pytest.mark.parametrize("name", [n for n, phi in ACTIVATIONS.items() if phi.tails])
def test_half_of_what_a_unit_gaussian_leaves_unsaturated_may_be_lost(name):
    tails = ACTIVATIONS[name].tails
    assert tails is not None
    normal = norm.cdf(tails[0]) + norm.sf(tails[1])
    assert _saturation_limit(ACTIVATIONS[name]) == pytest.approx((1 + normal) / 2, abs=1e-12)


def test_states_of_a_recurrence_are_judged_by_gaussian_pre_activations():
    torch.manual_seed(0)
    tails = ACTIVATIONS["tanh"].tails
    assert tails is not None
    limit = _saturation_limit(ACTIVATIONS["tanh"])
    z = torch.randn(10**6, dtype=torch.float64) * tails[1] / norm.isf(limit / 2)
    assert float((z.abs() > tails[1]).double().mean()) == pytest.approx(limit, abs=0.002)
    assert float(z.tanh().square().mean()) == pytest.approx(_saturated_square(), abs=0.002)


# ---- the right weights


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "sigmoid", "softplus", "selu",
                                  "elu", "gelu", "hardtanh", "erf"])  # fmt: skip
def test_drawn_weights_keep_signal_and_gradient_over_twelve_layers(name):
    """Within two decades, where the wrong weights lose or gain six: 1/3 of relu's 2 is 6⁻¹²."""
    torch.manual_seed(0)
    phi, width = ACTIVATIONS[name], 256
    draw = draw_after(phi)
    h = start = torch.randn(128, width, dtype=torch.float64, requires_grad=True)
    for _ in range(12):
        weight = torch.randn(width, width, dtype=torch.float64) * draw.gain / math.sqrt(width)
        if draw.centred:
            weight -= weight.mean(1, keepdim=True)
        h = phi(h) @ weight.T
    (gradient,) = torch.autograd.grad(h, start, torch.randn_like(h))
    assert 1e-2 < float(h.detach().var(0).mean()) < 1e2
    assert 1e-2 < float(gradient.square().mean()) < 1e2


def test_the_gain_of_a_layers_weights_is_what_multiplies_its_signal():
    torch.manual_seed(0)
    model = plain_mlp(1, 512, he)
    seen = trace(model, torch.randn(256, 64))
    first = seen["0"]
    ratio = first.forward.second_moment / seen["input"].forward.second_moment
    assert weight_gain(first) == pytest.approx(ratio, rel=0.02)
    flow = Flow(seen)
    assert flow.overweight == flow.underweight == []


# ---- gradients that may be small


@pytest.mark.parametrize(("keys", "spread", "size"), [(4, 1.0, 0.1), (64, 0.03, 0.3)])
def test_a_uniform_attention_passes_its_queries_the_share_that_openings_derives(keys, spread, size):
    """|∂L/∂q|² / |∂L/∂out|² is Var(v)·E k²/n where the logits are near 0."""
    torch.manual_seed(0)
    shape = (4096, keys, 32)
    q = (1e-3 * torch.randn(4096, 1, 32, dtype=torch.float64)).requires_grad_()
    k = size * torch.randn(shape, dtype=torch.float64)
    v = torch.randn(4096, 1, 32, dtype=torch.float64) + spread * torch.randn(shape).double()
    g = torch.randn(4096, 1, 32, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), q, g)
    share = float(gradient.square().sum() / g.square().sum())
    biased = 1 - 1 / keys  # of a variance about the mean of these keys
    assert share == pytest.approx(biased * spread**2 * size**2 / keys, rel=0.1)


@pytest.mark.parametrize("omega", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("scale", [0.01, 1.0, 3.0])
def test_the_omega_of_a_sine_is_seen_in_its_gradient_whatever_the_scale(omega, scale):
    class Sine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(64, 128), nn.Linear(128, 64)
            nn.init.normal_(self.layer.weight, std=scale / omega / 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.sin(omega * self.layer(x)))

    torch.manual_seed(0)
    seen = trace(Sine(), torch.randn(128, 64))
    assert Flow(seen).omega(seen["layer"]) == pytest.approx(omega, rel=0.05)


@pytest.mark.parametrize(("square", "opens"), [(SMALL, True), (SMALL / 100, False)])
def test_a_branch_of_three_layers_opens_in_a_thousand_steps_unless_they_are_below_small(
    square, opens
):
    """x + W₃ gelu(W₂ W₁ x) learns a linear map at a rate of 1, from weights of this gain²."""
    torch.manual_seed(0)
    width, inputs = 16, torch.randn(256, 16)
    target = inputs @ torch.randn(width, width) / 4
    weights = [torch.randn(width, width) * math.sqrt(square / width) for _ in range(3)]
    parameters = [weight.requires_grad_() for weight in weights]
    first, second, third = parameters
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    losses = []
    for _ in range(1000):
        loss = F.mse_loss(inputs + F.gelu(inputs @ first @ second) @ third, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert (losses[-1] < losses[0] / 2) == opens


# ---- what training does


def train(model: nn.Module, inputs: Tensor, target: Tensor, lr: float, steps: int = 120) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    loss = math.inf
    for _ in range(steps):
        optimizer.zero_grad()
        value = F.cross_entropy(model(inputs), target)
        if not torch.isfinite(value):
            return math.inf
        value.backward()
        optimizer.step()
        loss = float(value.detach())
    return loss


@pytest.mark.parametrize(
    ("depth", "fill", "fault"),
    [
        (4, he, None),
        (10, he, None),
        (6, xavier, None),
        (10, lambda layer: layer.reset_parameters(), "vanishing_activations"),
        (30, xavier, "vanishing_activations"),
        (6, lambda layer: nn.init.normal_(layer.weight, std=0.5), "exploding_activations"),
    ],
    ids=["He 4", "He 10", "Xavier 6", "torch 10", "Xavier 30", "std 0.5"],
)
def test_what_is_called_lost_or_wild_does_not_train_at_usual_rates_and_what_is_healthy_does(
    depth, fill, fault
):
    torch.manual_seed(0)
    batch = digits(256)
    best = math.inf
    for lr in (1e-3, 1e-2, 1e-1):
        torch.manual_seed(1)
        model = plain_mlp(depth, 128, fill)
        seen = trace(model, batch.inputs, target=batch.labels)
        found = diagnose(seen).faults
        best = min(best, train(model, batch.inputs, batch.labels, lr))
        assert (found[0] if found else None) == fault
    assert best < 1.0 if fault is None else best > 2.0
