"""A trace, site by site, against taps placed by hand in the models' own code."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from taps import SEED, Tapped, agree, batch, check
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from initlab.activations import Elementwise, activation
from initlab.tracing import Trace, trace

# ---------------------------------------------------------------- models of every kind


class Functional(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.tap("a.gelu", F.gelu(self.tap("a", self.a(x))))
        x = self.tap("b.relu", torch.relu_(self.tap("b", self.b(x))))
        x = self.tap("c.tanh", self.tap("c", self.c(x)).tanh())
        return self.tap("d.sigmoid", torch.sigmoid(self.tap("d", self.d(x))))


def test_functional_activations_are_sites_named_after_what_they_read():
    traced = check(Functional(), batch(9, 6))
    assert [s.op for s in traced.select(kind="activation")] == ["gelu", "relu", "tanh", "sigmoid"]
    assert traced.names == (
        *("input", "a", "a.gelu", "b", "b.relu", "c", "c.tanh", "d", "d.sigmoid", "output"),
    )
    assert [site.depth for site in traced] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert traced["c"].reads == ("b.relu",)


class InPlace(Tapped):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.tap("relu", self.relu(self.tap("bn1", self.bn1(self.tap("conv1", self.conv1(x))))))
        h = self.tap("conv2", self.conv2(x))
        h += x
        h = self.relu(self.tap("add", h))
        return self.tap("head", self.head(self.tap("relu[2]", h).mean((2, 3))))


@pytest.mark.parametrize("training", [True, False])
def test_in_place_activations_and_residual_sums(training):
    traced = check(InPlace().train(training), batch(4, 3, 8, 8))
    assert traced["relu"].kind == traced["relu[2]"].kind == "activation"
    assert traced["add"].kind == "add"
    assert set(traced["add"].reads) == {"conv2", "relu"}


def test_an_in_place_first_layer_leaves_the_input_alone():
    x = batch(4, 6)
    before = x.clone()
    traced = trace(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2)), x)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad
    assert traced["input"].forward.mean == pytest.approx(float(before.mean()), abs=1e-6)
    assert traced["0"].zero_fraction == pytest.approx(float((before <= 0).double().mean()))


class Unrolled(Tapped):
    """One Linear and one activation module, called again and again."""

    def __init__(self):
        super().__init__()
        self.cell, self.act = nn.Linear(6, 6), nn.Tanh()

    def forward(self, x):
        for step in range(4):
            suffix = f"[{step + 1}]" if step else ""
            x = self.tap(f"act{suffix}", self.act(self.tap(f"cell{suffix}", self.cell(x))))
        return x


def test_a_shared_module_has_one_site_for_every_call_and_one_weight_gradient():
    model, x = Unrolled(), batch(7, 6)
    traced = check(model, x)
    cotangent = torch.randn(7, 6, generator=torch.Generator().manual_seed(SEED))
    (total,) = torch.autograd.grad(model(x), model.cell.weight, cotangent)
    for site in traced.select(kind="affine"):
        assert site.weight_grad.second_moment == pytest.approx(float(total.square().mean()), 1e-4)


class Bare(Tapped):
    """Operations with weights, and no modules."""

    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 8))
        self.w2 = nn.Parameter(torch.randn(10, 8))
        self.w3 = nn.Parameter(torch.randn(3, 5, 10))
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        x = self.tap("w1", x @ self.w1)
        x = self.tap("w2", x.matmul(self.w2.t()))
        x = self.tap("w3", torch.einsum("ni,koi->nko", x, self.w3))
        x = self.tap("linear", F.linear(x.transpose(1, 2), self.weight.t()))
        return F.softmax(x, -1)


def test_weights_without_modules_are_sites_with_true_fans():
    traced = check(Bare(), batch(5, 6))
    fans = {site.name: (site.fan_in, site.fan_out) for site in traced.select(kind="affine")}
    assert fans == {"w1": (6, 8), "w2": (8, 10), "w3": (10, 15), "linear": (3, 4)}
    assert traced["w2"].parameter == "w2"
    assert traced["w1"].weight_grad is not None


class Attention(Tapped):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.tap("qkv", self.qkv(x)).chunk(3, -1)
        h = self.tap("attention", F.scaled_dot_product_attention(q, k, v))
        return self.tap("proj", self.proj(h)) + x


def test_attention_by_function_and_chunked_views():
    traced = check(Attention(), batch(3, 5, 8))
    assert traced["attention"].kind == "attention"
    assert traced["add"].reads == ("proj", "input")


class EagerAttention(Tapped):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            self.tap(name, self.get_submodule(name)(x)).unflatten(-1, (2, 4)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / 2
        weights = self.tap("query.softmax", scores.softmax(-1)).type_as(scores)
        mixed = torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)
        return self.tap("out", self.out(mixed))


def test_attention_by_hand_reads_its_keys_and_values_too():
    traced = check(EagerAttention(), batch(3, 5, 8))
    assert traced["query.softmax"].reads == ("query", "key")
    assert traced["query.softmax"].kind == "other"
    assert traced["out"].reads == ("query.softmax", "value")
    assert traced["out"].units == 8


class Joined(Tapped):
    """A gate, and a skip connection that is concatenated."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        h = self.tap("first", self.first(x))
        gated = h * self.tap("gate.sigmoid", torch.sigmoid(self.tap("gate", self.gate(h))))
        return self.tap("last", self.last(torch.cat([x, gated], 1)))


def test_a_product_and_a_concatenation_read_all_that_they_are_made_of():
    assert check(Joined(), batch(2, 3, 5, 5))["last"].reads == ("first", "input", "gate.sigmoid")


class RelativePositions(Tapped):
    def __init__(self):
        super().__init__()
        self.qkv, self.table = nn.Linear(8, 24), nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.tap("attention", F.scaled_dot_product_attention(q, k, v, attn_mask=self.table))


def test_what_is_added_to_the_logits_of_an_attention_is_not_its_weight():
    site = check(RelativePositions(), batch(3, 5, 8))["attention"]
    assert (site.parameter, site.weight, site.reads) == (None, None, ("qkv",))


class PoolsByAttention(Tapped):
    """As CLIP pools: torch's own function, with projections that are layers."""

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x):
        q, k, v, c = self.q_proj, self.k_proj, self.v_proj, self.c_proj
        biases = torch.cat([q.bias, k.bias, v.bias])
        found, _ = F.multi_head_attention_forward(
            x[:1], x, x, 8, 2, None, biases, None, None, False, 0.0, c.weight, c.bias,
            use_separate_proj_weight=True, q_proj_weight=q.weight, k_proj_weight=k.weight,
            v_proj_weight=v.weight,
        )  # fmt: skip
        return self.tap("q_proj", found)


def test_the_weight_of_attention_by_function_is_that_of_its_queries():
    site = check(PoolsByAttention(), batch(5, 3, 8))["q_proj"]
    assert (site.kind, site.parameter, site.fan_in) == ("attention", "q_proj.weight", 8)


class Hypernetwork(Tapped):
    """A layer whose weights another network makes of a code that it has learned."""

    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.randn(1, 6))
        self.hidden, self.norm, self.make = nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 12)

    def forward(self, x):
        h = self.tap("hidden.relu", torch.relu(self.tap("hidden", self.hidden(self.code))))
        weight = self.tap("make", self.make(self.tap("norm", self.norm(h)))).view(3, 4)
        return self.tap("linear", F.linear(x, weight))


def test_what_makes_weights_is_seen_with_its_activations_and_norms():
    traced = check(Hypernetwork(), batch(5, 4))
    assert traced["make"].reads == ("norm",)
    assert traced["norm"].reads == ("hidden.relu",)
    assert traced["linear"].reads == ("input", "make")


class SideBySide(Tapped):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(2, 16, 8))

    def forward(self, x):
        ends = torch.tensor([3, 8], dtype=torch.int32)
        return self.tap("experts", F.grouped_mm(x, self.experts.transpose(1, 2), offs=ends))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
def test_experts_in_one_grouped_product_are_a_layer():
    site = check(SideBySide(), batch(8, 8))["experts"]
    assert (site.parameter, site.fan_in, site.fan_out) == ("experts", 8, 16)


class Chunked(Tapped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x):
        h = self.tap("fc", self.fc(x))
        left, right = h[:, :4], h[:, 4:]
        return self.tap("fc.relu", F.relu(left)) + self.tap("fc.tanh", torch.tanh(right))


def test_views_of_one_tensor_count_towards_its_gradient():
    assert check(Chunked(), batch(4, 6))["add"].kind == "add"


class Tied(Tapped):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.tap("head", self.head(self.tap("embed", self.embed(tokens))))


def test_tied_weights_report_the_total_gradient_in_both_places():
    model, tokens = Tied(), torch.randint(0, 11, (4, 3))
    traced = check(model, tokens)
    assert traced["embed"].weight_grad == traced["head"].weight_grad
    assert traced["input"].backward is None
    assert traced["embed"].fan_in == 1
    generator = torch.Generator().manual_seed(SEED)
    output = model(tokens)
    cotangent = torch.randn(output.shape, generator=generator)
    (total,) = torch.autograd.grad(output, model.embed.weight, cotangent)
    assert traced["head"].weight_grad.second_moment == pytest.approx(
        float(total.square().mean()), 1e-4
    )


class Recurrent(Tapped):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(5, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = self.tap("rnn", self.rnn(x)[0])
        return self.tap("head", self.head(h))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    site = check(Recurrent(kind), batch(4, 7, 5))["rnn"]
    assert (site.kind, site.fan_in, site.fan_out) == ("recurrent", 6, 6)
    assert site.parameter == "rnn.weight_hh_l0"
    assert site.weight_grad is not None


class Packed(Tapped):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        h, _ = self.rnn(packed)
        h = h._replace(data=self.tap("rnn", h.data))
        return self.head(pad_packed_sequence(h)[0])


def test_packed_sequences():
    traced = check(Packed(), batch(7, 3, 5), torch.tensor([7, 4, 2]))
    assert traced["rnn"].shape == (13, 6)


class Heads(Tapped):
    def __init__(self, batch_first):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        h = self.tap("attend", self.attend(x, x, x, need_weights=False)[0])
        return self.tap("norm", self.norm(x + h))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_is_one_site(batch_first, training):
    traced = check(Heads(batch_first).train(training), batch(4, 4, 8))
    assert (traced["attend"].fan_in, traced["attend"].fan_out) == (8, 8)
    assert traced["attend"].weight_shape == (24, 8)
    assert traced["add"].kind == "add"


def test_the_encoders_fast_path_hides_no_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    traced = trace(model, batch(2, 5, 8), backward=False)
    names = set(traced.names)
    for index in range(2):
        parts = {"self_attn", "norm1", "linear1", "linear1.relu", "linear2", "norm2"}
        assert {f"layers.{index}.{part}" for part in parts} <= names
    assert torch.backends.mha.get_fastpath_enabled()


@dataclasses.dataclass
class Result:
    label: str
    inner: dict


class Exotic(Tapped):
    def __init__(self, wrap):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.tap("fc", self.fc(x)))


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda h: {"ids": torch.arange(3), "logits": h, "none": None}, lambda o: o["logits"]),
        (lambda h: (None, 3, [h]), lambda o: o[2][0]),
        (lambda h: Result("x", {"a": (h, h * 2)}), lambda o: o.inner["a"][0]),
        (lambda h: SimpleNamespace(value=h), lambda o: o.value),
    ],
)
def test_the_first_float_tensor_is_found_in_any_output(wrap, pick):
    model, x = Exotic(wrap), batch(4, 6)
    traced = check(model, x, pick=pick)
    assert trace(model, x).to_json() == traced.to_json()


def test_output_picks_by_key_index_or_attribute():
    model = Exotic(lambda h: {"a": h, "b": h.sum()})
    traced = trace(model, batch(4, 6), output="b")
    assert traced["output"].shape == ()
    assert traced["output"].backward.mean == 1
    assert traced.loss == pytest.approx(float(model(batch(4, 6))["b"].detach()), rel=1e-5)
    assert trace(Exotic(lambda h: (h, h[:2])), batch(4, 6), output=1)["output"].shape == (2, 3)
    with pytest.raises(ValueError, match="output='c'"):
        trace(model, batch(4, 6), output="c")
    with pytest.raises(TypeError, match="no float tensor"):
        trace(Exotic(lambda h: None), batch(4, 6))


class Several(Tapped):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Embedding(9, 4)

    def forward(self, x, *, tokens, extra=None):
        h = self.tap("left", self.left(x)) + self.tap("right", self.right(tokens))
        return self.tap("add", h) if extra is None else h * extra["scale"]


def test_several_inputs_by_position_and_keyword():
    x, tokens = batch(5, 6), torch.randint(0, 9, (5,))
    traced = check(Several(), x, tokens=tokens)
    assert traced.names[:2] == ("input", "tokens")
    assert traced["tokens"].reached is False
    scale = {"scale": torch.full((5, 1), 2.0)}
    traced = trace(Several(), x, model_kwargs={"tokens": tokens, "extra": scale})
    assert traced["extra"].backward is not None
    assert scale["scale"].grad is None


class DictBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, batch):
        return self.fc(batch["x"].mul_(2)) + batch["more"][0]


def test_a_batch_in_a_dict_is_copied_not_written_to():
    data = {"x": batch(4, 6), "more": [torch.ones(4, 2)]}
    kept = copy.deepcopy(data)
    traced = trace(DictBatch(), data)
    assert torch.equal(data["x"], kept["x"])
    assert traced.names[:3] == ("input", "input[2]", "fc")


class Checkpointed(Tapped):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU()) for _ in range(3)
        )
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        x = self.tap("first", self.first(x))
        for index, block in enumerate(self.blocks):
            if self.taps is None and self.reentrant is not None:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
                continue
            for part, layer in enumerate(block):
                x = self.tap(f"blocks.{index}.{part}", layer(x))
        return self.tap("last", self.last(x))


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_checkpointed_sections_are_counted_once_and_right(reentrant):
    model = Checkpointed(reentrant)
    kept = [torch.randn_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), kept, strict=True):
        parameter.grad = grad
    traced = check(model, batch(5, 6))
    assert len(traced) == 16
    assert traced["blocks.1.0"].weight_grad is not None
    assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))


class Parametrized(Tapped):
    def __init__(self):
        super().__init__()
        self.fc = parametrizations.weight_norm(nn.Linear(6, 4))
        self.ortho = parametrizations.orthogonal(nn.Linear(4, 4))
        self.spectral = torch.nn.utils.spectral_norm(nn.Linear(4, 3))

    def forward(self, x):
        x = self.tap("ortho", self.ortho(self.tap("fc", self.fc(x))))
        return self.tap("spectral", self.spectral(x))


def test_parametrized_layers_report_the_effective_weight():
    model = Parametrized()
    traced = check(model.eval(), batch(5, 6))
    assert [s.name for s in traced.select(kind="affine")] == ["fc", "ortho", "spectral"]
    assert traced["ortho"].weight.second_moment == pytest.approx(1 / 4, rel=1e-4)
    weight = model.fc.weight
    assert traced["fc"].weight.second_moment == pytest.approx(
        float(weight.detach().square().mean())
    )
    assert all(s.weight_grad is not None for s in traced.select(kind="affine"))


class Reshaping(Tapped):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3)
        self.skip, self.flat, self.pool = nn.Identity(), nn.Flatten(), nn.MaxPool1d(2)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(9, 2)

    def forward(self, x):
        h = self.tap("skip", self.skip(self.tap("conv", self.conv(x))))
        h = self.tap("pool.relu", F.relu(self.tap("pool", self.pool(h))))
        h = self.tap("drop", self.drop(self.tap("flat", self.flat(h))))
        return self.tap("fc", self.fc(h))


def test_other_leaf_modules_are_sites_too():
    traced = check(Reshaping(), batch(5, 2, 8))
    assert [s.name for s in traced.select(kind="other")] == ["skip", "pool", "flat", "drop"]
    assert traced["pool"].op == "MaxPool1d"


class Partial(Tapped):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.hidden, self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.tap("frozen", self.frozen(x))
        with torch.no_grad():
            h = self.hidden(x)
        self.unused(x)
        return self.tap("used", self.used(x)) + h


def test_what_the_gradient_does_not_reach_is_said_to_be_unreached():
    traced = check(Partial(), batch(5, 6))
    for name in ("hidden", "unused"):
        assert traced[name].reached is False
        assert traced[name].backward is traced[name].weight_grad is None
    assert "without gradients" in traced["hidden"].note
    assert traced["frozen"].reached is True
    assert traced["frozen"].weight_grad is None
    assert traced["frozen"].weight is not None
    assert "not reached" in traced._repr_html_()


class CallsForward(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = F.relu(self.tap("a", self.a.forward(x)))
        return self.tap("b", self.b.forward(self.tap("a.relu", h)))


def test_a_layer_whose_forward_is_called_directly_is_known_by_its_weight():
    check(CallsForward(), batch(5, 6))


@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3), (torch.float64, 1e-9)]
)
def test_other_precisions(dtype, rel):
    traced = check(Functional().to(dtype), batch(9, 6).to(dtype), rel=rel)
    assert traced["a.gelu"].dead_fraction == 0


class Experts(Tapped):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mine = x[:, 0].sign().long() + 1 == index
            h = expert(x[mine])
            out[mine] = self.tap(f"experts.{index}", h) if index != 1 else h
        return F.relu(out)


def test_control_flow_that_depends_on_the_data_and_empty_tensors():
    traced = check(Experts(), batch(9, 6))
    assert traced["experts.1"].forward.numel == 0
    assert traced.select(kind="activation")[0].op == "relu"


class Siamese(Tapped):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, x, y):
        one = self.tap("net.1", self.net[1](self.tap("net.0", self.net[0](x))))
        two = self.tap("net.1[2]", self.net[1](self.tap("net.0[2]", self.net[0](y))))
        return (one - two).square().mean()


def test_two_calls_in_one_loss():
    traced = check(Siamese(), batch(4, 6), batch(4, 6, seed=2))
    assert traced.names[:2] == ("input", "y")
    assert traced["output"].backward.mean == 1


class Penalized(Tapped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 1)

    def forward(self, x):
        score = self.tap("fc", torch.tanh(self.fc(x)) * 1)
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score + slope.square().sum(1, keepdim=True)


def test_a_gradient_taken_inside_the_model_is_not_taken_for_ours():
    model, x = Penalized(), batch(5, 6)
    x.requires_grad_()
    leaf = x.detach().requires_grad_()
    y = model.fc(leaf)
    score = torch.tanh(y)
    (slope,) = torch.autograd.grad(score.sum(), leaf, create_graph=True)
    output = score + slope.square().sum(1, keepdim=True)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED))
    (expected,) = torch.autograd.grad(output, y, cotangent)
    agree(trace(model, x)["fc"], y.detach(), expected)


class Vectorized(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return torch.func.vmap(lambda row: torch.tanh(self.fc(row)))(x)


def test_functorch_transforms_inside_are_opaque_not_wrong():
    traced = trace(Vectorized(), batch(5, 6))
    assert "functorch" in traced["fc"].note
    assert traced["output"].backward is not None


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return torch.fft.fft(self.fc(x)).abs()


def test_complex_tensors_inside():
    assert trace(Complex(), batch(4, 6))["fc"].reached
    spectrum = trace(nn.Sequential(nn.Linear(4, 4).to(torch.cfloat)), batch(3, 4).cfloat(),
                     output=lambda h: h.abs())  # fmt: skip
    assert "complex" in spectrum["0"].note


def test_sparse_gradients():
    traced = trace(nn.Embedding(9, 4, sparse=True), torch.randint(0, 9, (5,)))
    assert traced["embedding"].weight_grad.numel == 36


def test_scripted_submodules_are_opaque_sites():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
    traced = trace(nn.Sequential(scripted, nn.Linear(6, 2)), batch(4, 6))
    assert traced["1"].reached
    assert len(traced) >= 3


def test_data_parallel_on_the_cpu():
    traced = trace(nn.DataParallel(nn.Linear(6, 2)), batch(4, 6))
    assert "module" in traced.names


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))


def test_lazy_modules_are_materialized_and_nothing_else():
    model = Lazy()
    traced = trace(model, batch(3, 2, 6, 6))
    assert traced["3"].fan_in == 64
    assert float(model[1].running_mean.abs().sum()) == 0
    assert int(model[1].num_batches_tracked) == 0


class Custom(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class NewGELUActivation(Custom):
    pass


def test_a_composed_activation_module_is_one_site():
    model = nn.Sequential(nn.Linear(6, 40), NewGELUActivation(), Elementwise(activation("sin")))
    traced = trace(model, batch(20, 6))
    assert traced.names == ("input", "0", "1", "2", "output")
    assert [s.op for s in traced.select(kind="activation")] == ["gelu_tanh", "sin"]
    assert traced["1"].dead_fraction == 0


class Preactivated(nn.Module):
    """An activation and a weight in one leaf: the layer keeps the leaf's name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return F.linear(torch.relu(x), self.weight)


def test_an_activation_module_with_a_slope_of_its_own_names_its_own_site():
    model = nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.PReLU(6), Preactivated())
    traced = trace(model, batch(4, 6))
    assert traced.names == ("input", "0", "1", "2", "2.relu", "3", "output")
    assert [site.kind for site in traced[2:4]] == ["activation", "activation"]


def test_modules_named_like_the_ends_keep_the_names_unique():
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.output = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.output(F.relu(self.input(x)))

    traced = trace(Ends(), batch(4, 6))
    assert traced.names == ("input", "input.linear", "input.linear.relu", "output.linear", "output")


def test_a_single_layer_is_a_model():
    assert trace(nn.Linear(6, 2), batch(4, 6)).names == ("input", "linear", "output")
    assert trace(nn.ReLU(), batch(4, 6)).names == ("input", "input.relu", "output")


# ---------------------------------------------------------------- what the numbers say


def test_fans_are_the_true_ones():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1),
    )
    sites = trace(model, batch(2, 4, 8, 8)).select(kind="affine")
    fans = [(s.fan_in, s.fan_out) for s in sites]
    assert fans == [(18, 36), (9, 9 / 4), (32, 96)]


def test_dead_zero_and_saturated_are_three_things():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
    with torch.no_grad():
        model[0].bias[:3] = -100.0
        model[2].weight.zero_()
        model[2].bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    traced = trace(model, batch(8, 6))
    assert traced["1"].dead_fraction == 0.75
    assert traced["1"].zero_fraction >= 0.75
    assert traced["1"].saturated_fraction is None
    assert traced["3"].dead_fraction == 0
    assert traced["3"].zero_fraction == 0.75
    assert traced["3"].saturated_fraction == 0.25


def test_a_dead_unit_of_a_convolution_is_a_channel():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    assert trace(model, batch(4, 3, 8, 8))["1"].dead_fraction == 0.25
    sequence = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    with torch.no_grad():
        sequence[0].bias[0] = -100.0
    assert trace(sequence, batch(4, 4, 6))["1"].dead_fraction == 0.25


def test_one_image_without_a_batch_dimension_is_a_batch_of_one():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.MaxPool2d(2), nn.Tanh()
    )
    with torch.no_grad():
        model[0].bias[:2] = -100.0
    image = batch(4, 9, 11)
    alone, of_one = (trace(model, x, geometry=True) for x in (image, image[None]))
    assert alone["1"].dead_fraction == 0.25
    assert "one sample" in alone["input"].note
    for one, other in zip(alone, of_one, strict=True):
        assert one.dead_fraction == other.dead_fraction
        assert one.units == other.units
        assert one.effective_rank == pytest.approx(other.effective_rank)
        assert one.forward.across_samples_var == other.forward.across_samples_var == 0
        assert one.forward.across_units_var == pytest.approx(other.forward.across_units_var)
    assert trace(nn.Sequential(nn.Linear(4, 4)), batch(4))["0"].forward.across_samples_var == 0


class Turned(nn.Module):
    """Channels are normalized where they lie last, as wav2vec2 does, and split in halves."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 6, 3), nn.LayerNorm(6)

    def forward(self, x):
        h = torch.relu(self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2))
        left, right = h.chunk(2, dim=1)
        return torch.cat([torch.relu(left), torch.relu(right)], 1).transpose(1, 2).relu()


def test_units_stay_the_channels_wherever_a_view_takes_them():
    model = Turned()
    with torch.no_grad():
        model.norm.bias[:3] = -50.0
    sites = trace(model, batch(4, 2, 11)).select(kind="activation")
    assert [(s.units, s.dead_fraction) for s in sites] == [(6, 0.5), (3, 1.0), (3, 0.0), (6, 0.5)]


CALLS = (
    (lambda h: F.leaky_relu(h, 0.3), nn.LeakyReLU(0.3)),
    (lambda h: F.elu(h, 0.5), nn.ELU(0.5)),
    (lambda h: torch.celu(h, alpha=2.0), nn.CELU(2.0)),
    (lambda h: F.softplus(h, beta=3.0), nn.Softplus(3.0)),
    (lambda h: F.hardtanh(h, -2.0, 1.0), nn.Hardtanh(-2.0, 1.0)),
    (lambda h: F.threshold(h, 0.1, 20.0), nn.Threshold(0.1, 20.0)),
    (lambda h: F.softshrink(h, 0.2), nn.Softshrink(0.2)),
    (lambda h: F.hardshrink(h, 0.3), nn.Hardshrink(0.3)),
    (lambda h: F.prelu(h, torch.tensor([0.75])), nn.PReLU(init=0.75)),
    (lambda h: F.gelu(h, approximate="tanh"), nn.GELU("tanh")),
)


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.fc, self.call = nn.Linear(6, 6), call

    def forward(self, x):
        return self.call(self.fc(x))


@pytest.mark.parametrize(("call", "module"), CALLS)
def test_a_site_knows_its_activation_as_it_was_called(call, module):
    traced = trace(Calls(call), batch(5, 6))
    (site,) = traced.select(kind="activation")
    (of_module,) = trace(nn.Sequential(nn.Linear(6, 6), module), batch(5, 6)).select(
        kind="activation"
    )
    assert site.activation is of_module.activation is activation(module)
    assert Trace.from_json(traced.to_json())[site.name].activation is site.activation
    z = batch(50, seed=3)
    assert torch.equal(site.activation(z), module(z))


def test_the_slope_of_a_leaky_relu_is_honoured():
    torch.manual_seed(0)  # of four samples, all may leave one more unit off
    model = nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.0), nn.LeakyReLU(0.2), nn.ELU(0.5))
    with torch.no_grad():
        model[0].bias[0] = -100.0
    traced = trace(model, batch(4, 6))
    assert [s.dead_fraction for s in traced.select(kind="activation")] == [0.25, 0, 0]


def test_cross_entropy_mse_and_a_loss_of_ones_own():
    model, x = nn.Linear(6, 3), batch(5, 6)
    target = torch.tensor([0, 1, 2, 1, 0])
    traced = trace(model, x, target=target)
    assert traced.loss == pytest.approx(float(F.cross_entropy(model(x), target).detach()))
    assert traced.num_classes == 3
    output = model(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(output, target), output)
    agree(traced["linear"], output.detach(), slope)
    assert trace(model, x, target=torch.zeros(5, 3)).loss == pytest.approx(
        float(model(x).detach().square().mean()), rel=1e-5
    )
    mine = trace(model, x, target=2.0, loss_fn=lambda output, target: output.sum() * target)
    assert mine["output"].backward.mean == 2
    assert mine.num_classes is None


def test_cross_entropy_over_positions():
    logits = nn.Linear(6, 3)
    target = torch.randint(0, 3, (4, 5))
    assert trace(logits, batch(4, 5, 6), target=target).num_classes == 3


def test_a_partly_overflowed_site_is_not_shown_as_a_number():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].weight[0] = 3e38
    traced = trace(model, batch(5, 6).abs() + 1)
    site = traced["0"]
    assert site.forward.nonfinite == 5
    assert site.forward.second_moment == math.inf
    assert math.isnan(site.forward.var)
    assert traced.to_frame().loc["0", "forward_second_moment"] == math.inf
    html = traced._repr_html_()
    assert "5 not finite" in html
    assert "<td>inf</td>" in html


def test_vanishing_and_exploding_signals_are_reported_as_such():
    for gain, depth in ((1e-4, 9), (1e4, 9)):
        layers = [nn.Linear(32, 32, bias=False, dtype=torch.float32) for _ in range(depth)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=gain / 32**0.5)
        traced = trace(nn.Sequential(*layers), batch(16, 32))
        for index in range(depth):
            site = traced[str(index)]
            if gain < 1:
                assert 0 < site.forward.rms < 10 * gain ** (index + 1)
            elif index >= 8:
                assert site.forward.nonfinite > 0 or site.forward.rms > 1e30


def test_moments_measure_the_same_and_no_more():
    model, x = InPlace(), batch(4, 3, 8, 8)
    full, some = trace(model, x), trace(model, x, statistics="moments")
    assert full.names == some.names
    for one, other in zip(full, some, strict=True):
        assert other.forward.var == pytest.approx(one.forward.var, rel=1e-3)
        assert other.forward.abs_max is other.zero_fraction is other.dead_fraction is None


def test_the_forward_tracer_alone():
    traced = trace(Functional(), batch(9, 6), backward=False)
    assert all(s.backward is None and s.reached is None for s in traced)
    assert traced["a"].weight is not None
    assert traced["a"].weight_grad is None


def test_histogram_and_geometry_on_demand():
    traced = trace(Functional(), batch(9, 6), histogram=True, geometry=True)
    for site in traced:
        assert sum(site.histogram.counts) == site.forward.numel
        assert -1 <= site.cosine <= 1
        assert 1 <= site.effective_rank <= 6.001
    assert trace(Functional(), batch(9, 6))["a"].histogram is None


def test_equal_seeds_give_equal_numbers_and_disturb_no_generator():
    model, x = Reshaping(), batch(5, 2, 8)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(2), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    first = trace(model, x)
    drawn = torch.rand(2), np.random.rand(), random.random()
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]
    assert trace(model, x).to_json() == first.to_json()
    assert trace(model, x, seed=1).to_json() != first.to_json()
    assert trace(model, x, probe="rademacher")["output"].backward.second_moment == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_tracing_works_under_any_grad_mode(mode):
    model = Functional()
    expected = trace(model, batch(9, 6)).to_json()
    with mode():
        enabled = torch.is_grad_enabled()
        assert trace(model, batch(9, 6)).to_json() == expected
        assert trace(model, torch.as_tensor(batch(9, 6)) * 1).to_json() == expected
        assert torch.is_grad_enabled() == enabled


def test_the_batch_may_lie_along_another_dimension():
    model = nn.Linear(6, 4)
    x = batch(7, 3, 6)
    site = trace(model, x, batch_dim=1)["linear"]
    h = model(x).detach().double()
    assert site.forward.across_samples_var == pytest.approx(float(h.var(1, correction=0).mean()))


# ---------------------------------------------------------------- the result


def test_a_trace_survives_json_exactly():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    nn.init.constant_(model[0].weight, 1e38)
    traced = trace(model, batch(5, 6) * 10, histogram=True, geometry=True)
    assert traced["0"].forward.nonfinite > 0
    text = traced.to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert Trace.from_json(text).to_json() == text
    healthy = trace(Functional(), batch(9, 6), histogram=True)
    assert Trace.from_json(healthy.to_json()) == healthy


def test_a_trace_is_a_sequence_of_sites():
    traced = trace(Functional(), batch(9, 6))
    assert traced[0].name == "input"
    assert traced[-1].name == "output"
    assert [s.name for s in traced[1:3]] == ["a", "a.gelu"]
    assert "a" in traced
    assert traced.select(kind="activation", op="tanh")[0].name == "c.tanh"
    with pytest.raises(KeyError, match=r"did you mean 'c\.tanh'"):
        traced["c.tan"]
    with pytest.raises(ValueError, match="did you mean 'activation'"):
        traced.select(kind="activaton")
    with pytest.raises(ValueError, match="unknown field"):
        traced.select(knid="affine")
    assert repr(traced) == "Trace(10 sites, 4 affine)"
    assert repr(traced["a"]) == "Site(1, 'a', affine, shape=(9, 6))"
    assert isinstance(hash(traced), int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        traced.loss = 1


def test_a_trace_becomes_a_frame_and_a_table():
    traced = trace(Functional(), batch(9, 6))
    frame = traced.to_frame()
    assert frame.index.name == "name"
    assert frame.loc["a", "forward_var"] == traced["a"].forward.var
    assert {"backward_second_moment", "weight_grad_mean", "dead_fraction"} <= set(frame.columns)
    assert traced._repr_html_().count("<tr>") == 11


# ---------------------------------------------------------------- bad input


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(6, 2)


class Scalar(nn.Module):
    def forward(self, x):
        return x.square().mean()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: trace(nn.Linear, x), TypeError, "call it"),
        (lambda m, x: trace(lambda y: y, x), TypeError, "nn.Module"),
        (lambda m, x: trace(m), ValueError, "no inputs"),
        (lambda m, x: trace(m, "text"), ValueError, "no tensor"),
        (lambda m, x: trace(m, x.numpy()), ValueError, r"\(ndarray\).*torch.as_tensor"),
        (lambda m, x: trace(m, DataLoader(x)), TypeError, "is a DataLoader: pass one batch"),
        (lambda m, x: trace(m, iter(DataLoader(x))), TypeError, "pass one batch"),
        (lambda m, x: trace(m, TensorDataset(x)), TypeError, "is a TensorDataset: pass one batch"),
        (lambda m, x: trace(made_in_inference(), x), ValueError, "build the model outside"),
        (lambda m, x: trace(m, x, target=x, loss_fn=nn.MSELoss), TypeError, r"nn.CrossEntropyLoss"),
        (lambda m, x: trace(m, x, target=x, loss_fn="mse"), TypeError, "loss_fn='mse' must be"),
        (lambda m, x: trace(Scalar(), x, target=x), ValueError, "a loss already: leave target out"),
        (lambda m, x: trace(m, x[:0]), ValueError, "input has 0 samples along batch_dim 0"),
        (lambda m, x: trace(m, x, batch_dim=2), ValueError, "batch_dim=2"),
        (lambda m, x: trace(m, x, statistics="momens"), ValueError, "did you mean 'moments'"),
        (lambda m, x: trace(m, x, batch_dim="x"), TypeError, "batch_dim='x' must be a whole"),
        (lambda m, x: trace(m, x, probe="norml"), ValueError, "did you mean 'normal'"),
        (lambda m, x: trace(m, x, seed=None), TypeError, "seed=None must be a whole number"),
        (lambda m, x: trace(m, x, loss_fn=F.mse_loss), ValueError, "without a target"),
        (lambda m, x: trace(m, x, target=[1, 2]), TypeError, "must be a tensor"),
        (lambda m, x: trace(m, x, target=torch.zeros(3, 2)), ValueError, "equal shapes"),
        (lambda m, x: trace(m, x, target=torch.zeros(3).long()), ValueError, "one class index"),
        (lambda m, x: trace(m, x, target=torch.full((4,), 9)), ValueError, "class 9"),
        (
            lambda m, x: trace(m, x, target=torch.zeros(4), loss_fn=lambda o, t: o),
            ValueError,
            "one number",
        ),
        (
            lambda m, x: trace(nn.Embedding(3, 2).requires_grad_(False), torch.tensor([1])),
            ValueError,
            "backward=False",
        ),
        (
            lambda m, x: trace(nn.Linear(6, 1), x, target=torch.zeros(4).long().unsqueeze(1)),
            ValueError,
            "class",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(call, error, message):
    with pytest.raises(error, match=message):
        call(nn.Linear(6, 2), batch(4, 6))


def test_a_model_without_parameters_is_fine():
    traced = trace(nn.Sequential(nn.Tanh(), nn.Softplus()), batch(4, 6))
    assert traced.names == ("input", "0", "1", "output")
    assert traced["0"].reached


# ---------------------------------------------------------------- safety


class Failing(nn.Module):
    """Does everything that a trace has to undo, and may raise at any point."""

    def __init__(self, fail: str = "never", seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.fail = fail
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.3)
        self.spectral = torch.nn.utils.spectral_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.head.bias.requires_grad_(False)
        self.calls = 0
        self.cache = None
        self.losses, self.seen, self.sizes = [0.5], {"first": 1}, {3}
        self.register_buffer("counter", torch.zeros(3))
        self.norm.eval()

    def forward(self, x):
        self.calls += 1
        self.losses.append(x), self.seen.clear(), self.sizes.add(len(x))
        self.conv._parameters["weight"] = self.conv._parameters.pop("weight")
        self.counter += 1
        h = F.relu(self.norm(self.conv(x)), inplace=True)
        self.cache = h = self.drop(h).mean(2)
        self.train(not self.training)
        with torch.no_grad():
            self.head.weight.clamp_(-0.1, 0.1)
            self.conv.weight.data.mul_(0.5)
            self.head.bias.data = self.head.bias.data + 1
        self.head.bias.requires_grad_(True)
        torch.set_default_dtype(torch.float64)
        random.random(), np.random.rand()
        if self.fail == "forward":
            raise RuntimeError("midway")
        if self.fail == "interrupt":
            raise KeyboardInterrupt
        h = self.head(self.spectral(h).float())
        return Explode.apply(h) if self.fail == "backward" else h


class Explode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("midway back")


def snapshot(model: nn.Module) -> dict:
    """Everything of DESIGN §7 that can be looked at from outside."""
    hooks = [
        {k: dict(v) for k, v in vars(m).items() if k.endswith("hooks")} for m in model.modules()
    ]
    return {
        "parameters": [(id(p), p.detach().clone(), p.requires_grad) for p in model.parameters()],
        "pointers": [p.data_ptr() for p in model.parameters()],
        "grads": [
            None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()
        ],
        "buffers": [(n, id(b), b.clone()) for n, b in model.named_buffers()],
        "modes": [m.training for m in model.modules()],
        "hooks": hooks,
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "contents": [
            value.copy()
            for m in model.modules()
            for value in vars(m).values()
            if type(value) in (list, set, dict)
        ],
        "global_hooks": [
            dict(getattr(torch.nn.modules.module, name))
            for name in vars(torch.nn.modules.module)
            if name.startswith("_global") and name.endswith("hooks")
        ],
        "random": (torch.get_rng_state(), random.getstate(), repr(np.random.get_state())),
        "process": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ),
    }


def same(left, right) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def assert_untouched(before: dict, model: nn.Module) -> None:
    after = snapshot(model)
    for part, state in before.items():
        assert same(state, after[part]), part


@pytest.mark.parametrize("fail", ["never", "forward", "interrupt", "backward"])
@pytest.mark.parametrize("options", [{}, {"backward": False}, {"statistics": "moments"}])
def test_nothing_changes_whether_a_trace_returns_or_raises(fail, options):
    model = Failing(fail)
    model.head.weight.grad = torch.ones(2, 4)
    before = snapshot(model)
    if fail == "never" or (fail == "backward" and options.get("backward") is False):
        trace(model, batch(5, 2, 8), **options)
    else:
        expected = {"forward": RuntimeError, "backward": RuntimeError}.get(fail, KeyboardInterrupt)
        with pytest.raises(expected) as raised:
            trace(model, batch(5, 2, 8), **options)
        assert any("initlab.trace" in note for note in raised.value.__notes__)
    assert_untouched(before, model)
    assert model.calls == 0
    assert model.cache is None
    pickle.loads(pickle.dumps(model))
    copy.deepcopy(model)


def test_an_exception_says_how_far_the_trace_had_come():
    with pytest.raises(RuntimeError, match="midway") as raised:
        trace(Failing("forward"), batch(5, 2, 8))
    assert "after site 'drop'" in raised.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "note"),
    [
        (lambda m, x: trace(m, (x, x)), "the batch is one tuple of 2"),
        (lambda m, x: trace(m.half(), x), "input is of torch.float32, the parameters are of"),
        (lambda m, x: trace(m, x.long()), "input is of torch.int64, the parameters are of"),
    ],
)
def test_an_exception_says_what_may_be_wrong_with_the_batch(call, note):
    with pytest.raises((TypeError, RuntimeError, ValueError)) as raised:
        call(nn.Linear(6, 2), batch(4, 6))
    assert note in "".join(getattr(raised.value, "__notes__", []))


def test_an_exception_of_the_loss_says_what_it_was_given():
    with pytest.raises(ZeroDivisionError) as raised:
        trace(nn.Linear(6, 2), batch(4, 6), target=[1, 2], loss_fn=lambda o, t: 1 / 0)
    (note,) = raised.value.__notes__
    assert "a float32 tensor of shape (4, 2) and a list of 2" in note


def test_a_model_made_in_inference_mode_is_traced_forward():
    traced = trace(made_in_inference(), batch(4, 6), backward=False)
    assert traced["output"].forward.second_moment > 0


def test_training_goes_on_after_a_trace_as_if_there_had_been_none():
    def train(look) -> dict:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(),
            nn.Linear(144, 3),
        )  # fmt: skip
        images, classes = torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            look(model, images, classes)
            optimizer.step()
            look(model, images, classes)
        return model.state_dict()

    alone = train(lambda *_: None)
    traced = train(lambda model, x, y: trace(model, x, target=y, geometry=True, histogram=True))
    assert all(torch.equal(alone[name], traced[name]) for name in alone)


def test_the_models_own_backward_reaches_no_gradient_of_ours():
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            self.fc(x.detach()).sum().backward()
            return self.fc(x)

    model = Greedy()
    kept = model.fc.weight.grad = torch.ones(2, 6)
    trace(model, batch(4, 6))
    assert model.fc.weight.grad is kept
    assert torch.equal(kept, torch.ones(2, 6))
    assert model.fc.bias.grad is None


class HooksItsChild(nn.Module):
    """Some models install hooks of their own when they are first called."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.is_hooked = False

    def forward(self, x):
        if not self.is_hooked:
            self.fc.register_forward_pre_hook(lambda module, args: None)
            self.fc.register_forward_hook(lambda module, args, output: output + 1)
            self.fc.register_full_backward_hook(lambda module, into, out: None)
            self.is_hooked = True
        return self.fc(x)


def test_hooks_that_a_model_installs_at_its_first_call_are_gone_again():
    model = HooksItsChild()
    before = snapshot(model)
    trace(model, batch(2, 4))
    assert same(before, snapshot(model))
    model(batch(2, 4))
    assert len(model.fc._forward_hooks) == 1


def test_accumulation_hooks_of_the_user_do_not_fire():
    model, fired = nn.Linear(6, 2), []
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append(p))
    trace(model, batch(4, 6))
    assert not fired


def test_no_activation_outlives_a_trace():
    import gc
    import weakref

    seen = []

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            h = self.fc(x)
            seen.append(weakref.ref(h))
            return h * 1

    traced = trace(Keeping(), batch(4, 6))
    gc.collect()
    assert seen[0]() is None
    assert traced["fc"].reached


def test_ten_thousand_layers_trace():
    layers = [layer for _ in range(10_000) for layer in (nn.Linear(8, 8), nn.Tanh())]
    traced = trace(nn.Sequential(*layers), batch(4, 8), statistics="moments")
    assert len(traced) == 20_002
    assert traced[-1].depth == 10_000


def test_another_thread_can_train_meanwhile():
    import threading

    def train() -> Tensor:
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
        for index, parameter in enumerate(model.parameters()):
            torch.nn.init.constant_(parameter, 0.1 * (index + 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            model(batch(8, 6)).square().mean().backward()
            optimizer.step()
        return model[0].weight.detach().clone()

    alone, results = train(), []
    thread = threading.Thread(target=lambda: results.append(train()))
    thread.start()
    expected = trace(Functional(), batch(9, 6)).names
    while thread.is_alive():
        assert trace(Functional(), batch(9, 6)).names == expected
    thread.join()
    assert torch.equal(results[0], alone)


def test_traces_on_several_threads_disturb_neither_each_other_nor_the_process():
    import threading

    model, x = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2)), batch(9, 6)
    alone, before, results = trace(model, x), snapshot(model), []

    def work():
        results.extend(trace(model, x).to_json() for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone.to_json()] * 100
    assert_untouched(before, model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_numbers_of_the_cpu():
    model, x = InPlace(), batch(4, 3, 8, 8)
    on_cpu, on_gpu = trace(model, x), trace(copy.deepcopy(model).cuda(), x.cuda())
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.forward.var == pytest.approx(one.forward.var, rel=1e-3)
        assert other.backward.var == pytest.approx(one.backward.var, rel=1e-2)
        assert other.dead_fraction == one.dead_fraction
