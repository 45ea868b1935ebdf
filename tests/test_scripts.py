"""Experiment.code(): a script that needs no initlab prints what run() measures."""

import contextlib
import io
import re
import subprocess
import sys

import pytest
import torch

from initlab import Experiment, register_activation

EXPERIMENTS = [
    Experiment(depth=5, width=32, data="noise"),
    Experiment(depth=5, width=32, activation="tanh", scheme="xavier_normal"),
    Experiment(depth=12, width=24, activation="gelu", scheme="orthogonal", gain=1.4),
    Experiment(depth=4, activation="sin", scheme="lecun_uniform", loss="cross_entropy"),
    Experiment(widths=(40, 30, 7), activation="relu_squared", scheme="pytorch_default"),
    Experiment(depth=3, scheme="normal", scheme_params={"std": 0.1}, bias="normal", bias_std=0.2),
    Experiment(depth=3, scheme="kaiming_uniform", scheme_params={"mode": "fan_out"}, bias=0.3,
               activation="tanh", norm="batch"),
    Experiment(depth=3, scheme="trunc_normal", scheme_params={"std": 0.05}, activation="softplus",
               norm="layer", seed=5),
    Experiment(depth=4, width=20, data="noise", dropout=0.25),
    Experiment(architecture="cnn", depth=2, width=4, batch_size=32, loss="cross_entropy",
               dropout=0.5),
    Experiment(architecture="cnn", depth=3, width=6, batch_size=32, padding="circular"),
    Experiment(architecture="cnn", depth=3, width=6, batch_size=32, loss="cross_entropy",
               norm="batch", activation="leaky_relu"),
    Experiment(architecture="cnn", depth=2, width=4, batch_size=16, data="noise", norm="layer",
               scheme="constant", bias="pytorch_default", activation="prelu"),
]  # fmt: skip


def assert_prints_what_run_measures(printed, experiment):
    numbers = re.findall(r"layer \d+: E h\^2 = (\S+), E \(dL/dh\)\^2 = (\S+)", printed)
    sites = experiment.run().select(kind="affine")
    assert len(numbers) == len(sites)
    for (forward, backward), site in zip(numbers, sites, strict=True):
        assert float(forward) == pytest.approx(site.forward.second_moment, rel=1e-5, abs=1e-30)
        assert float(backward) == pytest.approx(site.backward.second_moment, rel=1e-5, abs=1e-30)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda each: each.to_json()[:60])
def test_the_script_prints_the_same_numbers_as_run(experiment):
    code = experiment.code()
    assert "initlab" not in code
    printed = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    assert_prints_what_run_measures(printed.getvalue(), experiment)


def test_the_script_runs_by_itself_with_torch_alone():
    experiment = EXPERIMENTS[0]
    without_us = "import sys\nsys.modules['initlab'] = sys.modules['sklearn'] = None\n"
    ran = subprocess.run(
        [sys.executable, "-I", "-"], input=without_us + experiment.code(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert_prints_what_run_measures(ran.stdout, experiment)


def test_an_activation_that_a_script_cannot_spell_is_refused(monkeypatch):
    from initlab import activations

    monkeypatch.setattr(activations, "_registry", dict(activations._registry))
    monkeypatch.setattr(activations, "ACTIVATIONS", activations._registry)
    monkeypatch.setattr("initlab.experiment.ACTIVATIONS", activations._registry)
    register_activation("cubed", lambda z: z**3)
    with pytest.raises(ValueError, match="'cubed' was registered from Python"):
        Experiment(activation="cubed", depth=2).code()
