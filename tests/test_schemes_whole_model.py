"""lsuv, fixup, skipinit, rezero, gpt2 and mup: what each does to a whole model."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from initlab import SCHEMES, init_, mlp, scheme, trace

WIDTH, BLOCKS = 64, 50


class Block(nn.Module):
    def __init__(self, width=WIDTH, *, gated=False, phi=F.relu):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.ones(1)) if gated else None
        self.phi = phi

    def forward(self, x):
        branch = self.fc2(self.phi(self.fc1(x)))
        return x + (branch if self.alpha is None else self.alpha * branch)


class ResNet(nn.Module):
    def __init__(self, blocks=BLOCKS, *, gated=False, classes=None):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(gated=gated) for _ in range(blocks)))
        self.head = nn.Linear(WIDTH, classes) if classes else nn.Identity()

    def forward(self, x):
        return self.head(self.blocks(x))


class Transformer(nn.Module):
    """Pre-norm, 3 layers, tied head."""

    def __init__(self, layers=3, width=32):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def second_moment(model, x):
    return float(model(x).double().square().mean())


# ---------------------------------------------------------------- residual networks


def test_he_multiplies_the_second_moment_by_three_at_every_block():
    """log10 over 8 nets: sd about √(50·3/64)/ln 10 = 0.7 each, mean below by half the variance in
    ln, 0.5; 5 s.e. = 1.2."""
    logs = []
    for seed in range(8):
        model = ResNet().double()
        init_(model, "kaiming_normal", activation="relu", seed=seed)
        x = noise(64, WIDTH, seed=seed).double()
        logs.append(math.log10(second_moment(model, x) / float(x.square().mean())))
    assert abs(sum(logs) / 8 - 50 * math.log10(3)) < 0.5 + 1.2


@pytest.mark.parametrize("given", [{"branches": "blocks.*.fc2"}, {"batch": noise(2, WIDTH)}])
def test_fixup_keeps_the_second_moment_through_fifty_blocks(given):
    model, x = ResNet(), noise(64, WIDTH)
    report = init_(model, "fixup", activation="relu", seed=0, **given)
    assert second_moment(model, x) == pytest.approx(float(x.square().mean()), rel=1e-6)
    he = math.sqrt(2 / WIDTH)
    for block in range(BLOCKS):
        inner, last = report[f"blocks.{block}.fc1.weight"], report[f"blocks.{block}.fc2.weight"]
        assert inner.intended_std == pytest.approx(he / math.sqrt(BLOCKS))  # m = 2: L^(−1/2)
        assert inner.scheme == last.scheme == "fixup"
        assert last.intended_std == last.actual_std == 0
    assert not report.suspicious


@pytest.mark.parametrize("given", [{"branches": "blocks.*.fc2"}, {"batch": noise(2, WIDTH)}])
def test_fixup_sets_the_classifier_to_zero(given):
    model = ResNet(4, classes=10)
    init_(model, "fixup", activation="relu", seed=0, **given)
    assert not model.head.weight.any()
    assert not model(noise(3, WIDTH)).any()


def test_fixup_scales_deeper_branches_less():
    """m = 3 layers: L^(−1/4)."""
    net = nn.Sequential(*(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))) for _ in range(16)))
    report = init_(net, "fixup", activation="relu", branches="*.2", seed=0)
    assert report["3.0.weight"].intended_std == pytest.approx(0.5 * 16**-0.25)
    assert report["3.1.weight"].intended_std == pytest.approx(0.5 * 16**-0.25)


@pytest.mark.parametrize("name", ["skipinit", "rezero"])
def test_gates_at_zero_keep_the_second_moment_through_fifty_blocks(name):
    model, x = ResNet(gated=True), noise(64, WIDTH)
    report = init_(model, name, activation="relu", seed=0)
    assert second_moment(model, x) == pytest.approx(float(x.square().mean()), rel=1e-6)
    assert report["blocks.7.alpha"].scheme == name
    he = math.sqrt(2 / WIDTH)
    assert report["blocks.7.fc2.weight"].intended_std == pytest.approx(he)


def test_skipinits_scalar_may_begin_at_another_value():
    model = ResNet(4, gated=True)
    init_(model, "skipinit", activation="relu", value=0.5, seed=0)
    assert all(block.alpha == 0.5 for block in model.blocks)


def test_branches_tell_the_gates_from_other_scalars():
    model = ResNet(3, gated=True)
    model.temperature = nn.Parameter(torch.tensor(0.07))
    init_(model, "rezero", activation="relu", branches="*.alpha")
    assert model.temperature == torch.tensor(0.07)
    assert not model.blocks[2].alpha.any()
    with pytest.raises(
        ValueError, match=r"unknown branches pattern 'blocks\.0\.alpa'; did you mean"
    ):
        init_(model, "rezero", activation="relu", branches="blocks.0.alpa")


def test_scalars_that_may_be_no_gates_are_not_set_to_0_unless_named():
    model = ResNet(3, gated=True)
    model.temperature = nn.Parameter(torch.tensor(0.07))
    with pytest.raises(
        ValueError, match=r"not clear: alpha, temperature\. Name them, as in branches"
    ):
        init_(model, "rezero", activation="relu")
    alone = nn.Sequential(nn.Linear(4, 4))
    alone.temperature = nn.Parameter(torch.tensor(0.07))
    with pytest.raises(ValueError, match="branches='temperature'"):
        init_(alone, "skipinit", activation="relu")
    assert alone.temperature == torch.tensor(0.07)
    listed = nn.Sequential(nn.Linear(4, 4))
    listed.gates = nn.ParameterList([torch.ones(1), torch.ones(())])
    init_(listed, "rezero", activation="relu")
    assert not any(gate.any() for gate in listed.gates)


@pytest.mark.parametrize("name", ["skipinit", "rezero"])
def test_a_model_without_gates_is_refused_with_the_remedy(name):
    with pytest.raises(
        ValueError, match=r"this model holds none: give every block an nn.Parameter"
    ):
        init_(ResNet(2), name, activation="relu")


@pytest.mark.parametrize("name", ["fixup", "gpt2"])
def test_branches_have_to_be_known(name):
    with pytest.raises(ValueError, match=r"pass branches=… .* or batch=… to find them"):
        init_(ResNet(2), name, activation="relu")
    with pytest.raises(ValueError, match="no residual sum was seen"):
        init_(mlp(4, [4, 4]), name, batch=noise(2, 4))
    with pytest.raises(ValueError, match=r"unknown branches pattern '\*\.fc3'"):
        init_(ResNet(2), name, activation="relu", branches="*.fc3")


def test_branches_without_a_scheme_that_uses_them_are_refused():
    with pytest.raises(ValueError, match="branches is used by schemes for residual networks only"):
        init_(ResNet(2), "xavier_normal", branches="*.fc2")


def test_a_projection_on_the_shortcut_is_not_the_branch():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.shortcut = nn.Conv2d(4, 8, 1)
            self.conv1, self.conv2 = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.shortcut(x) + self.conv2(F.relu(self.conv1(x)))

    report = init_(Down(), "fixup", batch=noise(2, 4, 6, 6), seed=0)
    assert report["conv2.weight"].actual_std == 0
    assert report["shortcut.weight"].actual_std > 0


class Projected(nn.Module):
    """Its shortcut is registered and called last."""

    def __init__(self, width=8):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.shortcut = nn.Linear(width, width)

    def forward(self, x):
        return self.branch(x) + self.shortcut(x)


@pytest.mark.parametrize("given", [{"branches": "*.branch.2"}, {"batch": noise(2, 8)}])
@pytest.mark.parametrize("classes", [None, 3])
def test_the_last_shortcut_is_no_classifier(given, classes):
    """A network without a head would else be dead."""
    blocks = [Projected() for _ in range(3)]
    model = nn.Sequential(*blocks, *([nn.Linear(8, classes)] if classes else []))
    report = init_(model, "fixup", activation="relu", seed=0, **given)
    assert report["2.shortcut.weight"].actual_std > 0
    assert report["2.branch.2.weight"].actual_std == 0
    if classes:
        assert report["3.weight"].actual_std == 0


def test_of_an_overridden_head_the_layer_before_is_no_classifier():
    model = ResNet(3, classes=4)
    report = init_(model, "fixup", activation="relu", branches="blocks.[01].fc2",
                   overrides={"head": "ones"}, seed=0)  # fmt: skip
    assert report["head.weight"].scheme == "ones"
    assert report["blocks.2.fc2.weight"].actual_std > 0


# ---------------------------------------------------------------- gpt2


def test_gpt2_scales_the_residual_projections_by_the_root_of_their_number():
    model = Transformer()
    tokens = torch.arange(12).reshape(2, 6)
    report = init_(model, "gpt2", batch=tokens, seed=0)
    scaled = {row.name for row in report if row.note.startswith("scaled")}
    assert scaled == {
        f"blocks.{i}.{name}.weight" for i in range(3) for name in ("self_attn.out_proj", "linear2")
    }
    for row in report:
        if row.scheme == "gpt2":
            expected = 0.02 / math.sqrt(6) if row.name in scaled else 0.02
            assert row.intended_std == pytest.approx(expected)
    assert report["embed.weight"].scheme == "gpt2"
    assert report["blocks.0.norm1.weight"].scheme is None
    assert not report.suspicious
    named = init_(model, "gpt2", branches=["*.out_proj", "*.linear2"], seed=0)
    assert [row.intended_std for row in named] == [row.intended_std for row in report]


# ---------------------------------------------------------------- lsuv


def variances(model, x):
    return [site.forward.var for site in trace(model, x, backward=False) if site.kind == "affine"]


@pytest.mark.parametrize("phi", ["relu", "tanh", "gelu"])
def test_lsuv_brings_every_layers_variance_to_one(phi):
    model, x = mlp(64, [64] * 20, phi), noise(128, 64)
    report = init_(model, "lsuv", batch=x, seed=0)
    assert all(abs(variance - 1) < 0.1 for variance in variances(model, x))
    corrected = [row.name for row in report if row.note.startswith("scaled")]
    assert corrected == [f"linear{l}.weight" for l in range(2, 21)]  # orthogonal on unit noise is 1
    assert not report.suspicious


def test_lsuv_works_on_a_network_that_is_no_sequential():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(30, 40), nn.Conv1d(3, 30, 3)

        def forward(self, x):
            return self.second(torch.relu(self.first(x)).mean(2))

    model, x = Free(), noise(200, 3, 12) * 5
    init_(model, "lsuv", batch=(x,), seed=0)
    assert all(abs(variance - 1) < 0.1 for variance in variances(model, x))


def test_lsuv_leaves_modes_buffers_hooks_and_generators_alone():
    model = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8)
    )
    model[1].eval()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    init_(model, "lsuv", batch=noise(32, 8), seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lsuv_keeps_within_its_tolerance_and_its_number_of_corrections():
    """A saturating layer of its own needs several corrections."""

    class Saturating(nn.Linear):
        def forward(self, x):
            return 2 * torch.tanh(super().forward(x))

    x = noise(256, 16)
    layer = Saturating(16, 16)
    init_(layer, "lsuv", batch=x, tolerance=0.01, seed=0)
    with torch.no_grad():
        assert abs(float(layer(x).var(correction=0)) - 1) < 0.01
        init_(layer, "lsuv", batch=x, tolerance=0.01, iterations=1, seed=0)
        assert abs(float(layer(x).var(correction=0)) - 1) > 0.01


def test_lsuv_says_which_layers_it_could_not_normalize():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rnn, self.last = nn.Linear(4, 8), nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.rnn(3 * self.first(x))[0])

    model, x = Net(), noise(5, 20, 4)
    report = init_(model, "lsuv", batch=x, seed=0)
    assert report["last.weight"].note.startswith("scaled by")
    assert report["rnn.weight_hh_l0"].note.startswith("as drawn: its layer was not called")
    assert all(abs(variance - 1) < 0.1 for variance in variances(model, x))


def test_lsuv_needs_a_batch_and_one_that_varies():
    with pytest.raises(ValueError, match=r"'lsuv' measures the layers' outputs: pass batch="):
        init_(mlp(4, [4]), "lsuv")
    with pytest.raises(ValueError, match="layer 'linear1' has variance 0, which no factor"):
        init_(mlp(4, [4]), "lsuv", batch=torch.zeros(3, 4))


# ---------------------------------------------------------------- mup


def test_mup_has_the_variances_and_learning_rates_of_the_papers_table():
    report = init_(
        mlp(10, [256, 256, 256], "relu", head=7), "mup", activation="relu", base_width=64, seed=0
    )
    he = math.sqrt(2 / 256)
    assert report["linear2.weight"].intended_std == pytest.approx(he)
    assert report["head.weight"].intended_std == pytest.approx(math.sqrt(2 * 64) / 256)
    adam, sgd = report.lr_multipliers["adam"], report.lr_multipliers["sgd"]
    assert {name: adam[f"{name}.weight"] for name in ("linear1", "linear2", "head")} == {
        "linear1": 1.0, "linear2": 0.25, "head": 0.25,
    }  # fmt: skip
    assert {name: sgd[f"{name}.weight"] for name in ("linear1", "linear2", "head")} == {
        "linear1": 4.0, "linear2": 1.0, "head": 0.25,
    }  # fmt: skip
    assert adam["linear2.bias"] == 1.0
    assert sgd["linear2.bias"] == 4.0
    assert sgd["head.bias"] == 1.0
    assert not report.suspicious


def test_at_the_base_width_mup_changes_nothing():
    model, plain = mlp(8, [64, 64], head=3), mlp(8, [64, 64], head=3)
    report = init_(model, "mup", activation="relu", base_width=64, seed=0)
    init_(plain, "kaiming_normal", activation="relu", seed=0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other)
    hidden = [report.lr_multipliers[o][f"{n}.weight"] for o in ("adam", "sgd")
              for n in ("linear2", "head")]  # fmt: skip
    assert hidden == [1.0] * 4


class LanguageModel(nn.Module):
    """Width 128 throughout, twice the base width."""

    def __init__(self, *, tied):
        super().__init__()
        self.embed, self.position = nn.Embedding(20, 128), nn.Parameter(torch.zeros(9, 128))
        self.block = nn.TransformerEncoderLayer(128, 4, 128, batch_first=True)
        self.norm, self.head = nn.LayerNorm(128), nn.Linear(128, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.block(x)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("given", [{}, {"batch": torch.arange(6)[None]}])
def test_in_a_language_model_the_embedding_is_mups_input_layer(tied, given):
    model = LanguageModel(tied=tied)
    report = init_(model, "mup", activation="relu", base_width=64, seed=0, **given)
    adam, sgd = report.lr_multipliers["adam"], report.lr_multipliers["sgd"]
    assert set(adam) == set(sgd) == {name for name, _ in model.named_parameters()} - {"position"}
    hidden = {name for name in adam if "block" in name and name.endswith("weight")
              and "norm" not in name}  # fmt: skip
    assert {adam[name] for name in hidden} == {0.5}
    assert {sgd[name] for name in hidden} == {1.0}
    for name in ("embed.weight", "norm.weight", "block.norm1.bias", "block.linear1.bias"):
        assert (adam[name], sgd[name]) == (1.0, 2.0), name
    assert not [row for row in report if row.name in hidden and "scaled" in row.note]
    if not tied:
        assert (adam["head.weight"], sgd["head.weight"]) == (0.5, 0.5)
        assert "scaled by 0.7071" in report["head.weight"].note


def test_mup_counts_channels_and_takes_a_depthwise_kernel_for_a_vector():
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, groups=128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    report = init_(model, "mup", activation="relu", base_width=64, seed=0)
    adam, sgd = report.lr_multipliers["adam"], report.lr_multipliers["sgd"]
    weights = [f"{layer}.weight" for layer in (0, 1, 3, 4, 7)]
    assert [adam[name] for name in weights] == [1.0, 1.0, 0.5, 1.0, 0.5]
    assert [sgd[name] for name in weights] == [2.0, 2.0, 1.0, 2.0, 0.5]


@pytest.mark.parametrize("model", [nn.Embedding(3, 4), nn.LayerNorm(4)])
def test_a_model_without_weights_has_learning_rates_all_the_same(model):
    report = init_(model, "mup", activation="relu", base_width=2)
    assert report.lr_multipliers["sgd"]["weight"] == 2.0


def test_of_an_overridden_output_layer_mup_keeps_the_learning_rate():
    """Zeros in the output layer are usual with µP; the layer below is hidden all the same."""
    model = mlp(10, [128, 128], head=5)
    report = init_(
        model, "mup", activation="relu", base_width=64, seed=0, overrides={"head": "zeros"}
    )
    assert not model.head.weight.any()
    assert report.lr_multipliers["adam"]["head.weight"] == 0.5
    assert report["linear2.weight"].intended_std == pytest.approx(math.sqrt(2 / 128))


# ---------------------------------------------------------------- the code, and what all share


def namespace(model, **more):
    return {"torch": torch, "nn": nn, "model": model, **more}


def same_parameters(one, other):
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def case(name):
    """A model, what init_ is given, and what the snippet finds in its namespace."""
    torch.manual_seed(5)
    if name == "lsuv":
        x = noise(64, 16)
        return mlp(16, [16] * 5), {"batch": x}, lambda model: {"batch": x}
    if name == "mup":
        return mlp(16, [32, 32], head=4), {}, lambda model: {"head": model.head}
    model = ResNet(3, gated=name in ("skipinit", "rezero"), classes=5)
    given = {"branches": "*.fc2"} if SCHEMES[name].needs == "branches" else {}
    return (
        model,
        given,
        lambda model: {
            "branches": [[block.fc1, block.fc2] for block in model.blocks],
            "scalars": [block.alpha for block in model.blocks],
            "classifier": model.head,
        },
    )


@pytest.mark.parametrize("name", [n for n, entry in SCHEMES.items() if entry.whole_model])
def test_the_code_of_a_whole_model_scheme_does_the_same_in_a_clean_namespace(name):
    model, given, found = case(name)
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    init_(model, name, activation="relu", **given)
    torch.manual_seed(0)
    exec(SCHEMES[name].code("model"), namespace(other, **found(other)))
    assert same_parameters(model, other)


class Gated(nn.Module):
    """Attention in a gated residual block."""

    def __init__(self):
        super().__init__()
        self.attention, self.alpha = nn.MultiheadAttention(16, 2), nn.Parameter(torch.ones(()))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)


@pytest.mark.parametrize("name", ["gpt2", "rezero", "skipinit"])
def test_the_code_for_transformers_reaches_attentions_input_projections(name):
    model = nn.Sequential(nn.Embedding(7, 16), Gated(), Gated())
    other, ends = copy.deepcopy(model), ["*.out_proj", "*.down"]
    torch.manual_seed(0)
    init_(model, name, activation="relu", branches=ends if name == "gpt2" else None)
    torch.manual_seed(0)
    blocks = other[1:]
    found = {
        "branches": [[b.attention.out_proj] for b in blocks] + [[b.up, b.down] for b in blocks],
        "scalars": [block.alpha for block in blocks],
    }
    exec(SCHEMES[name].code("model"), namespace(other, **found))
    assert same_parameters(model, other)


def test_every_whole_model_scheme_says_what_it_needs_as_data():
    for entry in SCHEMES.values():
        if entry.whole_model:
            assert not SCHEMES[entry.base].whole_model
            assert entry.needs in ("", "batch", "branches", "scalars")


def test_a_whole_model_scheme_cannot_be_given_to_a_part():
    with pytest.raises(ValueError, match="overrides: scheme 'lsuv' looks at the whole model"):
        init_(ResNet(2), "zeros", overrides={"head": "lsuv"})


def test_overridden_layers_are_not_adjusted():
    model = ResNet(4)
    report = init_(
        model, "fixup", activation="relu", branches="*.fc2", seed=0,
        overrides={"blocks.2.fc2": scheme("constant", val=0.5)},
    )  # fmt: skip
    assert (model.blocks[2].fc2.weight == 0.5).all()
    assert not model.blocks[1].fc2.weight.any()
    assert report["blocks.2.fc2.weight"].scheme == "constant"
