import copy
import html
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from hammering import hammer
from torch import nn

from initlab import ModelExplorer, diagnose, init_, trace
from initlab.explorers.model_trial import batch_of, schemes_for
from initlab.plots import BESIDE_FORWARD


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc(x.flatten(1))


class Plain(nn.Module):
    """A weight that the module holds itself, where init_ does not look."""

    def __init__(self, width=128):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width).uniform_(-0.5, 0.5))

    def forward(self, x):
        return x @ self.weight


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = ConvNet()
    nn.init.normal_(model.conv.weight, std=1e-6)
    nn.init.zeros_(model.conv.bias)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 1, 16, 16, generator=generator), torch.arange(32) % 10


@pytest.fixture
def explorer(model, batch):
    return ModelExplorer(model, batch[0], target=batch[1])


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first | second)


# ---- the model is left alone


def test_nothing_but_apply_writes_to_the_model(model, batch):
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    grad, before, numbers = model.fc.weight.grad, state(model), torch.get_rng_state()
    explorer = ModelExplorer(model, batch[0], target=batch[1])
    for name in explorer.controls["scheme"].options:
        explorer.controls["scheme"].value = name
    for _, right in BESIDE_FORWARD:
        explorer.controls["right"].value = right
    explorer.resample()
    explorer.look_again()
    explorer.reset()
    assert same(state(model), before)
    assert model.fc.weight.grad is grad
    assert model.training
    assert not model.fc._forward_hooks
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("name", ["the remedy", "kaiming_normal", "lsuv"])
def test_apply_gives_the_model_the_very_numbers_that_were_shown(explorer, model, batch, name):
    explorer.controls["scheme"].value = name
    shown, tried = explorer.trace, state(explorer.trial)
    norm, rng = state(model.stem[1]), torch.get_rng_state()
    held = dict(model.named_parameters())
    explorer.apply_()
    assert same(state(model), tried)
    assert same(state(model.stem[1]), norm)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter is held[key] for key, parameter in model.named_parameters())
    again = trace(model, batch[0], target=batch[1], histogram=True)
    assert [site.forward for site in again] == [site.forward for site in shown]
    assert explorer.trial is None
    assert explorer.controls["scheme"].value == "as it is"
    assert explorer.status.startswith(f"Applied to your model: {name}.")


@pytest.mark.parametrize("name", ["the remedy", "xavier_uniform", "trunc_normal"])
def test_the_code_does_what_was_tried(explorer, model, batch, name, capsys):
    explorer.controls["scheme"].value = name
    explorer.controls["seed"].value = 5
    tried = state(explorer.trial)
    other, (x, y) = copy.deepcopy(model), batch
    with torch.random.fork_rng():
        exec(explorer.code(), {"model": other, "batch": x, "target": y})
    assert same(state(other), tried)
    assert ("Healthy" in capsys.readouterr().out) is explorer.diagnosis.healthy


def test_scheme_parameters_reach_the_copy(explorer):
    explorer.controls["scheme"].value = "trunc_normal"
    explorer.controls["scheme_params"].value = {"std": 0.5}
    assert "std=0.5" in explorer.code()
    assert explorer.trial.fc.weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_apply_with_nothing_tried_says_what_to_choose(explorer, model):
    before = state(model)
    with pytest.raises(ValueError, match=r"nothing to apply.*'the remedy'"):
        explorer.apply_()
    explorer._apply.click()
    assert "nothing to apply" in explorer.status
    assert same(state(model), before)


def test_the_apply_button_applies(explorer, model):
    assert explorer._apply.disabled
    explorer.controls["scheme"].value = "the remedy"
    assert not explorer._apply.disabled
    explorer._apply.click()
    assert explorer.diagnosis.healthy
    assert model.conv.weight.std() > 0.01


# ---- what is shown


def test_it_diagnoses_and_selects_where_the_fault_begins(explorer, model, batch):
    (seen, _) = explorer._was
    assert explorer.trace == trace(model, batch[0], target=batch[1], histogram=True)
    finding = diagnose(seen.trace).findings[0]
    assert explorer.controls["site"].value == finding.where == "conv"
    assert finding.fault in explorer.status
    assert finding.evidence in explorer.status
    assert finding.remedy in explorer.status
    assert explorer.status in explorer.live.alt


def test_the_remedy_cures_and_the_status_compares(explorer):
    explorer.controls["scheme"].value = "the remedy"
    assert explorer.diagnosis.healthy
    assert explorer.status.startswith("A copy with the remedy: healthy")
    assert "as it is: vanishing_activations at conv" in explorer.status
    lines = {line.get_linestyle() for line in explorer.figure.axes[0].lines}
    assert {"-", "--", ":"} <= lines  # the copy, the model as it is, the selected layer


def test_the_tree_is_indented_by_path_and_marks_the_fault(explorer):
    labels = {name: label for label, name in explorer.controls["site"].options}
    assert list(labels) == list(explorer.trace.names)
    assert labels["stem.0"].startswith("\u00a0\u00a0stem.0")
    assert labels["conv"].startswith("⚠ conv")
    assert not labels["fc"].startswith("\u00a0")


@pytest.mark.parametrize("name", ["input", "stem.0", "stem.1", "conv", "conv.relu", "output"])
def test_every_site_shows_its_numbers_and_is_marked(explorer, name):
    before = explorer.live.png
    explorer.controls["site"].value = "fc"
    assert explorer.live.png != before
    explorer.controls["site"].value = name
    site = explorer.trace[name]
    panel = explorer._picture.panels[0]
    assert set(panel.moving[-1].get_xdata()) == {site.depth}
    assert html.escape(name) in explorer._numbers.value
    titles = [ax.get_title(loc="left") for ax in explorer.figure.axes[2:]]
    assert titles[0] == f"Values of {name}"
    assert ("Weights of" in titles[1]) is (site.parameter is not None)
    assert f"{name} is selected" in explorer.live.alt


def test_a_site_shows_its_weights_before_and_after(explorer, model):
    explorer.controls["scheme"].value = "kaiming_normal"
    after, before = explorer.figure.axes[3].patches[0], explorer.figure.axes[3].patches[-1]
    assert after.get_data().edges[-1] == pytest.approx(explorer.trial.conv.weight.max().item())
    assert before.get_data().edges[-1] == pytest.approx(model.conv.weight.max().item())
    assert "as it is" in explorer._numbers.value


@pytest.mark.parametrize("scheme", ["as it is", "zeros", "constant"])
@pytest.mark.parametrize("right", [key for _, key in BESIDE_FORWARD])
def test_every_view_of_every_start_draws(explorer, scheme, right):
    explorer.controls["scheme"].value = scheme
    explorer.controls["right"].value = right
    explorer.controls["quantity"].value = "across_samples_var"
    assert not explorer.live.dimmed, explorer.status


def test_the_pointer_reads_what_is_and_what_was(explorer):
    was = explorer.trace["conv"].forward.second_moment
    explorer.controls["scheme"].value = "kaiming_normal"
    now = explorer.trace["conv"].forward.second_moment
    left, right = explorer.live.readout
    said = f"layer 2, conv: kaiming_normal {now:.4g}, as it is {was:.4g}"
    assert left["rows"][1] == [2, said]
    assert [row[0] for row in right["rows"]] == [1, 2, 3]
    explorer.controls["right"].value = "units"
    assert "dead units" in explorer.live.readout[1]["rows"][0][1]


def test_the_cosine_view_lets_the_rank_be_checked(explorer):
    assert any("rank" in reason for reason in explorer.diagnosis.not_checked)
    explorer.controls["right"].value = "cosine"
    assert not any("rank" in reason for reason in explorer.diagnosis.not_checked)
    assert explorer.trace["fc"].cosine is not None


def test_reset_returns_to_the_first_view(explorer, model, batch):
    first = explorer.summary()
    explorer.controls["site"].value = "fc"
    explorer.controls["scheme"].value = "ones"
    explorer.controls["right"].value = "units"
    explorer.resample()
    explorer.reset()
    assert explorer.summary() == first == ModelExplorer(model, batch[0], target=batch[1]).summary()


def test_look_again_sees_what_training_did(explorer, model):
    init_(model, "kaiming_normal", activation="relu", seed=0)
    assert not explorer.diagnosis.healthy
    explorer.look_again()
    assert explorer.diagnosis.healthy
    assert "the remedy" not in explorer.controls["scheme"].options


def test_the_folds_hold_the_report_and_the_code(explorer):
    report, code = explorer._folds
    assert explorer._report.value == explorer._code.value == ""
    report.selected_index = code.selected_index = 0
    assert "vanishing_activations" in explorer._report.value
    explorer.controls["scheme"].value = "orthogonal"
    assert "Healthy" in explorer._report.value
    assert explorer._code.value == explorer.code()


def test_many_threads_end_on_what_the_controls_say(explorer, model, batch):
    moves = {
        "scheme": ["zeros", "orthogonal", "lecun_normal"],
        "site": ["fc", "conv", "stem.0"],
        "seed": range(1, 5),
    }
    hammer(explorer, **moves)
    alone = ModelExplorer(model, batch[0], target=batch[1])
    for name, values in moves.items():
        alone.controls[name].value = values[-1]
    assert explorer.summary() == alone.summary()
    assert same(state(explorer.trial), state(alone.trial))
    assert explorer.live.png == alone.live.png


# ---- models of all kinds


def test_a_weight_that_a_module_holds_itself_is_cured_by_the_remedy():
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (Plain(), nn.ReLU())]
    model = nn.Sequential(*layers)
    explorer = ModelExplorer(model, torch.randn(64, 128))
    assert explorer.controls["scheme"].options == ("as it is", "the remedy")
    explorer.controls["scheme"].value = "the remedy"
    assert explorer.diagnosis.healthy
    explorer.apply_()
    assert diagnose(trace(model, torch.randn(64, 128))).healthy


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, tokens, *, scale):
        return self.fc(torch.tanh(self.embed(tokens) * scale))


def test_keyword_arguments_and_integers_are_taken():
    tokens = torch.arange(12).reshape(4, 3)
    model = TwoInputs()
    explorer = ModelExplorer(model, tokens, model_kwargs={"scale": 2.0})
    explorer.controls["scheme"].value = "xavier_normal"
    assert not explorer.live.dimmed, explorer.status
    assert "model_kwargs=batch" in explorer.code()
    assert batch_of(model, (tokens,), {"scale": 2.0}) == {"tokens": tokens, "scale": 2.0}


def test_inputs_without_a_name_beside_keyword_arguments_do_without_a_batch():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, *parts, scale):
            return self.fc(sum(parts)) * scale

    model, inputs = Sum(), (torch.randn(8, 4), torch.randn(8, 4))
    explorer = ModelExplorer(model, *inputs, model_kwargs={"scale": 2.0})
    explorer.controls["scheme"].value = "xavier_normal"
    assert not explorer.live.dimmed, explorer.status
    exec(explorer.code(), {"model": model, "inputs": inputs, "model_kwargs": {"scale": 2.0}})
    assert same(state(model), state(explorer.trial))
    explorer.controls["scheme"].value = "lsuv"
    assert "batch" in explorer.status  # what it lacks
    assert explorer.live.dimmed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_weights_that_are_not_finite(dtype):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    explorer = ModelExplorer(model, torch.randn(16, 8, dtype=dtype))
    assert explorer.diagnosis.faults[0] == "non_finite"
    explorer.controls["scheme"].value = "the remedy"
    explorer.apply_()
    assert explorer.diagnosis.healthy
    assert model[0].weight.dtype == dtype


def test_residual_models_are_offered_the_schemes_for_them():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
            self.alpha = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x + self.alpha * self.fc2(F.relu(self.fc1(x)))

    explorer = ModelExplorer(nn.Sequential(*(Block() for _ in range(3))), torch.randn(16, 8))
    for name in ("fixup", "rezero", "gpt2"):
        explorer.controls["scheme"].value = name
        assert not explorer.live.dimmed, explorer.status
    assert explorer.code().count("gpt2") == 1


def test_a_recurrent_model_and_an_own_loss():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    x, y = torch.randn(16, 5, 8), torch.randn(16, 1)
    explorer = ModelExplorer(Net(), x, target=y, loss_fn=F.l1_loss)
    explorer.controls["site"].value = "lstm"
    explorer.controls["scheme"].value = "orthogonal"
    assert not explorer.live.dimmed, explorer.status
    assert "loss_fn=loss_fn" in explorer.code()


def test_only_schemes_that_fit_are_offered(model, batch, explorer):
    offered = schemes_for(model, explorer.trace)
    assert "kaiming_normal" in offered
    assert "identity" not in offered  # 16 → 10 is not square, and convolutions are no matrices
    assert "fixup" not in offered  # no residual branches
    assert "rezero" not in offered  # no scalars
    for name in offered:
        init_(copy.deepcopy(model), name, batch=batch[0], seed=0)


# ---- errors in words


def test_what_is_no_model_or_cannot_run_raises_at_once(model):
    with pytest.raises(TypeError, match=r"nn\.Module"):
        ModelExplorer(lambda x: x, torch.ones(2, 2))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        ModelExplorer(model, torch.ones(2, 3, 4))


def test_an_error_is_said_and_the_picture_dimmed_until_the_next_change(model, explorer):
    weight = model.fc.weight
    model.fc.register_buffer("cached", weight * 2, persistent=False)  # torch cannot copy this
    explorer.controls["scheme"].value = "orthogonal"
    assert "deepcopy" in explorer.status
    assert 'role="alert"' in explorer._status.value
    assert explorer.live.dimmed
    assert explorer.trace is explorer.diagnosis is explorer.trial is None
    explorer.controls["site"].value = "fc"
    assert explorer.live.dimmed
    del model.fc.cached
    explorer.controls["seed"].value = 3
    assert not explorer.live.dimmed
    assert explorer.trial is not None


def test_a_model_that_no_longer_runs_is_said_until_it_does(explorer, model):
    head, model.fc = model.fc, nn.Linear(3, 10)
    explorer.look_again()
    assert "RuntimeError" in explorer.status
    explorer.controls["site"].value = "stem.0"
    assert explorer.live.dimmed
    model.fc = head
    explorer.controls["site"].value = "conv"
    assert not explorer.live.dimmed
    assert "as it is" in explorer.status


def test_a_parameter_out_of_range_is_said(explorer):
    explorer.controls["scheme"].value = "trunc_normal"
    explorer.controls["scheme_params"].value = {"std": -1.0}
    assert "std" in explorer.status
    assert explorer.live.dimmed
    explorer.controls["scheme_params"].value = {"std": 0.1}
    assert not explorer.live.dimmed


class Slow(nn.Module):
    """Sleeps in forward, as a large model computes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(20))
        self.pause = 0.06

    def forward(self, x):
        for layer in self.layers:
            time.sleep(self.pause)
            x = torch.relu(layer(x))
        return x


def is_idle(explorer: ModelExplorer) -> bool:
    return explorer._worker is None


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_model_that_takes_long_leaves_the_controls_alone_and_can_be_stopped():
    model, x = Slow(), torch.randn(8, 16)
    explorer = ModelExplorer(model, x)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.monotonic()
    explorer.controls["scheme"].value = "kaiming_normal"
    assert time.monotonic() - start < 0.5
    wait_for(lambda: explorer.live.dimmed)
    assert explorer._stop.layout.display is None
    explorer._stop.click()
    wait_for(lambda: is_idle(explorer), 5)
    assert explorer.status.startswith("Stopped")
    assert explorer.live.dimmed
    assert explorer._stop.layout.display == "none"
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    model.pause = 0.0
    explorer.controls["seed"].value = 3
    wait_for(lambda: is_idle(explorer))
    assert explorer.status.startswith("A copy with kaiming_normal")
    assert not explorer.live.dimmed


def test_stop_says_that_it_waits_for_the_operation_that_is_running():
    running, done = threading.Event(), threading.Event()

    class Long(nn.Linear):
        def forward(self, x):
            running.set()
            assert done.wait(30)
            return super().forward(x)

    done.set()
    explorer = ModelExplorer(nn.Sequential(Long(16, 16), nn.ReLU()), torch.randn(8, 16))
    explorer.timing["compute"] = 2e3  # as after a first look that took long
    done.clear(), running.clear()
    explorer.controls["scheme"].value = "kaiming_normal"
    assert running.wait(30)
    explorer._stop.click()
    assert "Stopping after the operation" in explorer._status.value  # "status" would wait
    done.set()
    wait_for(lambda: is_idle(explorer))
    assert explorer.status.startswith("Stopped")


def test_of_what_is_asked_while_a_model_runs_the_newest_is_done():
    model = Slow()
    explorer = ModelExplorer(model, torch.randn(8, 16))
    for seed in range(1, 6):
        explorer.controls["seed"].value = seed
        explorer.controls["scheme"].value = "kaiming_normal" if seed % 2 else "xavier_normal"
    wait_for(lambda: is_idle(explorer))
    assert explorer.status.startswith("A copy with kaiming_normal")
    assert "seed=5" in explorer.code()
    assert not explorer.live.dimmed


def test_code_that_asks_for_a_result_while_a_model_runs_gets_that_of_now():
    explorer = ModelExplorer(Slow(), torch.randn(8, 16))
    explorer.controls["scheme"].value = "zeros"
    assert not is_idle(explorer)
    assert "symmetry" in explorer.diagnosis.faults
    explorer.controls["seed"].value = 1
    assert "seed=1" in explorer.code()
    explorer.controls["scheme"].value = "kaiming_normal"
    explorer.apply_()
    assert explorer.status.startswith("Applied to your model: kaiming_normal")
