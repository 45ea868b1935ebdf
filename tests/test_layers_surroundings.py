"""Which activation a layer reads or feeds, and which residual branch it is in."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initlab import trace
from initlab.layers import branches_ending, in_sequential, in_trace


def seen(model, *inputs):
    return in_trace(model, trace(model, *inputs, backward=False))


class Net(nn.Module):
    """Layers a, b, … of width 4 and a forward function of them."""

    def __init__(self, forward, count=4, **more):
        super().__init__()
        for letter in "abcdefgh"[:count]:
            self.add_module(letter, nn.Linear(4, 4))
        for name, module in more.items():
            self.add_module(name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


X = torch.ones(3, 4)


def test_a_plain_branch_is_what_the_sum_adds_to_its_shortcut():
    assert seen(Net(lambda m, x: x + m.b(F.relu(m.a(x)))), X).branches == (("a", "b"),)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_order_of_the_summands_does_not_matter(swapped):
    def forward(m, x):
        h = m.a(x)
        branch = m.c(torch.tanh(m.b(h)))
        return m.d(branch + h if swapped else h + branch)

    found = seen(Net(forward), X)
    assert found.branches == (("b", "c"),)
    assert found.order == ("a", "b", "c", "d")
    assert found.before["b"] == "identity"
    assert found.before["c"].name == "tanh"
    assert found.after["c"] == "identity"


def test_branches_in_place_in_a_row_and_in_parallel_are_told_apart():
    def forward(m, x):
        h = x + m.a(x)
        h = h + m.b(h) + m.c(h)
        h += m.d(F.relu(h))
        return h

    assert seen(Net(forward), X).branches == (("a",), ("b",), ("c",), ("d",))


def test_a_projection_on_the_shortcut_is_no_branch():
    net = Net(lambda m, x: m.a(x) + m.c(F.relu(m.b(x))))
    assert seen(net, X).branches == (("b", "c"),)


def test_a_sum_without_layers_or_without_a_fork_is_no_branch():
    assert seen(Net(lambda m, x: m.a(x + F.relu(x))), X).branches == ()
    two = Net(lambda m, x: m.a(x[0]) + m.b(x[1]))
    assert seen(two, (X, X.clone())).branches == ()


def test_attention_ends_in_its_output_projection():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    net = Net(lambda m, x: x + m.attention(m.norm(x), x, x)[0], 0, attention=attention,
              norm=nn.LayerNorm(4))  # fmt: skip
    found = seen(net, torch.ones(2, 3, 4))
    assert found.branches == (("attention", "attention.out_proj"),)
    assert found.before["attention.out_proj"] == "identity"


def test_norms_pooling_and_dropout_are_looked_through_in_a_trace_as_in_a_sequential():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.SELU(), nn.MaxPool2d(2), nn.Dropout(),
        nn.Flatten(), nn.Linear(36, 3), nn.Softplus(), nn.Linear(3, 2),
    )  # fmt: skip
    traced, ordered = seen(model, torch.ones(2, 1, 8, 8)), in_sequential(model)
    for found in (traced, ordered):
        assert found.order == ("0", "6", "8")
        assert found.before["6"] is model[2]
        assert found.after["0"] is model[2]
        assert found.before["8"] is model[7]
        assert found.after["6"] is model[7]
    assert traced.before["0"] == traced.after["8"] == "identity"


class Parts(nn.Module):
    """As many write it: two Sequentials, and a layer that stands alone."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.SELU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh())
        )
        self.head = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.ELU(), nn.Linear(8, 8))
        self.list = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.alone = nn.Linear(8, 2)


def test_sequentials_inside_a_model_tell_of_their_activations():
    """Not of their ends, nor of layers side by side, between which the model may put anything."""
    model = Parts()
    found = in_sequential(model)
    assert found.before == {"features.2.0": model.features[1], "head.3": model.head[2]}
    assert found.after == {
        "features.0": model.features[1],
        "features.2.0": model.features[2][1],
        "head.0": model.head[2],
    }
    assert found.order == ()


def test_padding_upsampling_and_placeholders_are_looked_through():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.Identity(), nn.SELU(), nn.Identity(), nn.ReflectionPad1d(1),
        nn.Upsample(scale_factor=2), nn.Conv1d(4, 2, 3), nn.Identity(),
    )  # fmt: skip
    traced, ordered = seen(model, torch.ones(2, 2, 8)), in_sequential(model)
    for found in (traced, ordered):
        assert found.before["6"] is found.after["0"] is model[2]
        assert found.before["0"] == found.after["6"] == "identity"


def test_one_activation_module_for_all_layers_is_found_behind_each():
    phi = nn.SELU()
    model = nn.Sequential(nn.Linear(4, 4), phi, nn.Linear(4, 4), phi, nn.Linear(4, 4))
    found = in_sequential(model)
    assert found.before == {"0": "identity", "2": phi, "4": phi}
    assert found.after == {"0": phi, "2": phi, "4": "identity"}


@pytest.mark.parametrize("layer", [nn.Linear(3, 3), nn.MultiheadAttention(4, 2), nn.GRU(3, 3)])
def test_a_layer_alone_reads_the_input_and_gives_the_output(layer):
    found = in_sequential(layer)
    assert found.before[""] == found.after[""] == "identity"


def test_a_block_in_a_sequential_hides_only_its_own_neighbours():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), Parts(), nn.Linear(2, 2))
    found = in_sequential(model)
    assert found.before["2"] is model[1]
    assert found.before["0"] == "identity"
    assert "4" not in found.before
    assert "2" not in found.after
    assert found.before["3.head.3"] is model[3].head[2]


def test_modules_with_a_state_are_not_called_to_find_out_what_they_are():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return F.silu(x)

    model = nn.Sequential(nn.Linear(4, 4), Counting(), nn.Linear(4, 4))
    assert "2" not in in_sequential(model).before
    found = seen(model, X)
    assert found.before["2"].name == "silu"
    assert model[1].calls == 0


def test_functions_of_the_model_itself_do_not_make_it_an_activation():
    class Root(nn.Linear):
        def forward(self, x):
            return torch.tanh(super().forward(F.elu(x)))

    found = seen(Root(4, 4), X)
    assert (found.before[""].name, found.after[""].name) == ("elu", "tanh")


def test_a_module_that_is_no_sequential_tells_nothing():
    found = in_sequential(Net(lambda m, x: m.a(x)))
    assert (found.before, found.after, found.order) == ({}, {}, ())


def test_of_a_layer_that_is_called_twice_the_first_call_counts():
    found = seen(Net(lambda m, x: m.a(torch.tanh(m.a(x))), 1), X)
    assert found.before["a"] == "identity"
    assert found.order == ("a",)


def test_branches_are_named_by_their_last_layers():
    layers = ["stem", "0.fc1", "0.fc2", "1.fc1", "1.mid.fc", "1.fc2", "head"]
    assert branches_ending(["*.fc2"], layers) == (("0.fc1", "0.fc2"), ("1.fc2",))
    known = [("1.fc1", "1.mid.fc", "1.fc2")]
    assert branches_ending(["*.fc2"], layers, known) == (("0.fc1", "0.fc2"), known[0])
    with pytest.raises(ValueError, match=r"unknown branches pattern '0\.fc3'; did you mean '0\.fc"):
        branches_ending(["0.fc3"], layers)


def test_two_branches_side_by_side_in_one_module_end_at_their_own_last_layers():
    layers = ["0.q", "0.proj", "0.up", "0.down"]
    assert branches_ending(["*.proj", "*.down"], layers) == (
        ("0.q", "0.proj"), ("0.up", "0.down"),
    )  # fmt: skip
