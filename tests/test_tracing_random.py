"""Random models: a trace leaves each of them as it was, and says what an independent probe says.

The models are drawn from ``random_models``; what counts as state is DESIGN's list, looked at
bit by bit, and whether the model still pickles to the same bytes.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # it replaces functions of torch when it is first imported
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import (
    FAILING_PLANS,
    PLANS,
    POSITIONS,
    SAMPLES,
    TOKENS,
    WIDTH,
    Tree,
    names_in,
    recorded,
)
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from initlab.tracing import Site, Trace, trace

SEED = 0
PATCHABLE = (torch, F, torch.Tensor, torch.nn.init, nn.Module, nn.Linear, nn.Conv1d, torch.autograd)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"backward": False},
    {"statistics": "moments"},
    {"histogram": True, "geometry": True},
    {"probe": "rademacher", "batch_dim": 1},
    {"target": torch.zeros(SAMPLES, POSITIONS, dtype=torch.long)},
)
many = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


def inputs_of(tokens: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if tokens:
        return torch.randint(0, TOKENS, (SAMPLES, POSITIONS), generator=generator)
    return torch.randn(SAMPLES, POSITIONS, WIDTH, generator=generator)


def drawn(plan: list[Any], *, tokens: bool, scalar: bool, training: bool, grads: bool) -> Tree:
    torch.manual_seed(7)
    model = Tree(plan, tokens=tokens, scalar=scalar)
    if not training:
        model.eval()
    for index, parameter in enumerate(model.parameters()):
        if grads and index % 2:
            parameter.grad = torch.ones_like(parameter)
    return model


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a trace may not change: what it is, and which objects hold it."""
    modules = list(model.modules())
    parameters = list(model.parameters())
    return {
        "bytes": pickle.dumps(model if is_picklable(model) else model.state_dict()),
        "parameters": [(id(p), p.data_ptr(), p.requires_grad, id(p.grad)) for p in parameters],
        "versions": [p.grad._version for p in parameters if p.grad is not None],
        "buffers": [(name, id(b)) for name, b in model.named_buffers()],
        "modes": [m.training for m in modules],
        "attributes": [[(k, id(v)) for k, v in vars(m).items()] for m in modules],
        "hooks": [[list(v.items()) for k, v in vars(m).items() if "hooks" in k] for m in modules],
        "parameter hooks": [p._backward_hooks for p in parameters],
        "global hooks": [
            list(value)
            for name, value in vars(torch.nn.modules.module).items()
            if name.startswith("_global") and name.endswith("hooks")
        ],
        "random": (
            torch.get_rng_state().numpy().tobytes(), random.getstate(),
            pickle.dumps(np.random.get_state()),
        ),
        "process": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.overrides._get_current_function_mode_stack(),
            sys.getrecursionlimit(),
        ),
    }  # fmt: skip


def is_picklable(model: nn.Module) -> bool:
    """Parametrized modules are not: torch refuses."""
    return not any(map(is_parametrized, model.modules()))


def assert_same(before: dict[str, Any], model: nn.Module) -> None:
    after = state_of(model)
    changed = [part for part in before if before[part] != after[part]]
    assert not changed, changed
    pickle.loads(after["bytes"])
    copy.deepcopy(model)


def plain(model: nn.Module, x: Tensor) -> str:
    """How the model fares without a tracer, on a copy: "fine", or where it raises."""
    model, x = copy.deepcopy(model), x.clone()
    try:
        output = model(x)
    except (LookupError, RuntimeError):
        return "raises forward"
    if not output.requires_grad:
        return "no gradient"
    try:
        output.sum().backward()
    except (ArithmeticError, RuntimeError):
        return "raises backward"
    return "fine"


@pytest.fixture(autouse=True)
def nothing_is_patched():
    """No function or method of torch is another one after all these traces."""
    before = [functions_of(owner) for owner in PATCHABLE]
    with warnings.catch_warnings():  # of checkpoints that have no gradients to compute
        warnings.simplefilter("ignore")
        yield
    for owner, functions in zip(PATCHABLE, before, strict=True):
        after = functions_of(owner)
        changed = [name for name, function in functions.items() if after.get(name) is not function]
        assert not changed, (owner, changed)


def functions_of(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if callable(value)}


@given(plan=PLANS, tokens=st.booleans(), scalar=st.booleans(), training=st.booleans(),
       grads=st.booleans())  # fmt: skip
@settings(many, max_examples=1000)
def test_random_models_stay_as_they_are_and_every_site_is_right(
    plan, tokens, scalar, training, grads
):
    model = drawn(plan, tokens=tokens, scalar=scalar, training=training, grads=grads)
    x = inputs_of(tokens)
    traced = observed(model, x, seed=SEED)
    if traced is None:
        assert plain(model, x) != "fine"
    elif not runs_differently_again(plan):
        assert_right(traced, model, x)


def observed(model: nn.Module, x: Tensor, **options: Any) -> Trace | None:
    """The trace, None where the model raises; either way nothing has changed."""
    before, kept = state_of(model), x.clone()
    try:
        return trace(model, x, **options)
    except (LookupError, ArithmeticError, RuntimeError, ValueError):
        return None
    finally:
        assert_same(before, model)
        assert torch.equal(x, kept)


def runs_differently_again(plan: Any) -> bool:
    """Whether a checkpoint holds what changes with every run: its gradients are its own affair."""
    names = names_in(plan)
    checkpoints, changing = (
        {"Checkpointed", "CheckpointedReentrantly"},
        {"spectral_norm", "Stateful"},
    )
    return bool(names & checkpoints) and bool(names & changing)


def assert_right(traced: Trace, model: nn.Module, x: Tensor) -> None:
    """Site by site, in order of execution, against the taps in the model's own code."""
    leaf = x.clone().requires_grad_(x.is_floating_point())
    output, taps = recorded(lambda: model(leaf.clone()), SEED)
    sites = traced.sites[1:-1]
    assert [site.shape for site in sites] == [tuple(each.value.shape) for each in taps]
    assert len(set(traced.names)) == len(traced)
    untracked = "overwrites" in (traced[0].note or "")  # then some gradients cannot be had
    for site, each in zip(sites, taps, strict=True):
        given_up = "not measured" in (site.note or "") or (untracked and not site.reached)
        if each.is_alias:  # one tensor has one gradient, that of all its uses
            agree(dataclasses.replace(site, backward=None, reached=False), each.value, None)
        else:
            agree(site, each.value, None if given_up else each.gradient)
    assert traced.sites[-1].forward.second_moment == pytest.approx(
        float(output.double().square().mean()), rel=1e-4
    )


def agree(site: Site, h: Tensor, gradient: Tensor | None) -> None:
    assert site.reached is (gradient is not None), site.name
    for stats, tensor in ((site.forward, h), (site.backward, gradient)):
        if stats is None or tensor is None:
            continue
        values = tensor.double()
        size = float(values.square().mean())
        near = {"rel": 1e-4, "abs": 1e-5 * size + 1e-30}
        assert stats.second_moment == pytest.approx(size, rel=1e-4, abs=1e-30), site.name
        assert stats.mean == pytest.approx(float(values.mean()), abs=1e-4 * size**0.5 + 1e-30)
        assert stats.var == pytest.approx(float(values.var(correction=0)), **near)
        assert stats.abs_max == pytest.approx(float(values.abs().max()), rel=1e-5, abs=1e-30)
        across = float(values.var(0, correction=0).mean())
        assert stats.across_samples_var == pytest.approx(across, **near), site.name
    zeros = float((h == 0).double().mean())
    assert site.zero_fraction == pytest.approx(zeros), site.name


@given(plan=FAILING_PLANS, tokens=st.booleans(), training=st.booleans(), grads=st.booleans())
@settings(many, max_examples=600)
def test_random_models_that_raise_midway_stay_as_they_are(plan, tokens, training, grads):
    model = drawn(plan, tokens=tokens, scalar=False, training=training, grads=grads)
    x = inputs_of(tokens)
    if observed(model, x, seed=SEED) is not None:
        assert plain(model, x) != "raises forward"
    else:
        assert plain(model, x) != "fine" or "raises in backward" in str(plan)


@given(plan=PLANS, options=st.sampled_from(OPTIONS), tokens=st.booleans(), training=st.booleans())
@settings(many, max_examples=600)
def test_random_models_stay_as_they_are_with_every_option(plan, options, tokens, training):
    model = drawn(plan, tokens=tokens, scalar=False, training=training, grads=True)
    x = inputs_of(tokens)
    if observed(model, x, **options) is None:
        assert plain(model, x) != "fine"
