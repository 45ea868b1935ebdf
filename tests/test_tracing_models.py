"""Models off the beaten track: right numbers, or a site or an error that says why not."""

from __future__ import annotations

import collections
import copy
import dataclasses
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from taps import SEED, Tapped, agree, batch, check, reference
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from initlab.tracing import Trace, trace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def same_numbers(one: Trace, other: Trace, rel: float = 1e-5) -> None:
    """Two traces of the same computation agree, site by site, forward and backward."""
    assert one.names == other.names
    for site, twin in zip(one, other, strict=True):
        for field in ("forward", "backward", "weight", "weight_grad"):
            found, expected = getattr(site, field), getattr(twin, field)
            assert (found is None) == (expected is None), (site.name, field)
            if found is not None:
                assert found.second_moment == pytest.approx(expected.second_moment, rel=rel)


# ---------------------------------------------------------------- activation checkpoints


class Nested(Tapped):
    """Checkpoints within checkpoints, of either kind; None is no checkpoint."""

    def __init__(self, outer: bool | None, inner: bool | None):
        super().__init__()
        self.outer, self.inner = outer, inner
        self.a, self.b, self.c, self.head = (nn.Linear(6, 6) for _ in range(4))

    def run(self, section, x: Tensor, reentrant: bool | None) -> Tensor:
        if reentrant is None:
            return section(x)
        return checkpoint(section, x, use_reentrant=reentrant)

    def inside(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(x))

    def section(self, x: Tensor) -> Tensor:
        return self.c(self.run(self.inside, F.relu(self.a(x)), self.inner))

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(self.section, x, self.outer)
        return self.head(self.run(self.section, x, self.outer))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_checkpoints_within_checkpoints_are_seen_once_and_right(outer, inner):
    plain, nested = Nested(None, None), Nested(outer, inner)
    nested.load_state_dict(plain.state_dict())
    traced = trace(nested, batch(5, 6))
    same_numbers(traced, trace(plain, batch(5, 6)))
    assert all(site.reached and site.note is None for site in traced)


def test_both_kinds_of_checkpoint_in_one_model():
    class Mixed(Nested):
        def forward(self, x):
            x = self.run(self.section, x, self.outer)
            return self.head(self.run(self.section, x, self.inner))

    plain, mixed = Mixed(None, None), Mixed(True, False)
    mixed.load_state_dict(plain.state_dict())
    same_numbers(trace(mixed, batch(5, 6)), trace(plain, batch(5, 6)))


class BesideNoGrad(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.still, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def section(self, x):
        return self.tap("a.relu", F.relu(self.tap("a", self.a(x))))

    def forward(self, x):
        with torch.no_grad():
            early = self.still(x)
        if self.taps is None:
            h = checkpoint(self.section, x, use_reentrant=True)
        else:
            h = self.section(x)
        with torch.no_grad():
            late = self.still(x)
        return self.tap("head", self.head(h + early + late))


def test_a_no_grad_block_beside_a_reentrant_checkpoint_is_not_mistaken_for_it():
    traced = check(BesideNoGrad(), batch(5, 6))
    for name in ("still", "still[2]"):
        assert traced[name].reached is False
        assert "without gradients" in traced[name].note
    assert traced["a"].reached


def test_a_checkpoint_that_runs_differently_the_second_time_says_so():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.calls = nn.Linear(6, 6), 0

        def section(self, x):
            self.calls += 1
            return self.a(x) if self.calls == 1 else F.relu(self.a(x))

        def forward(self, x):
            return checkpoint(self.section, x, use_reentrant=True).sum(1)

    site = trace(Fickle(), batch(5, 6))["a"]
    assert site.backward is None
    assert "differently the second time" in site.note


# ---------------------------------------------------------------- attention and recurrence


class WrittenOut(Tapped):
    """nn.TransformerEncoderLayer in plain functions."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.layer = layer

    def attend(self, x: Tensor) -> Tensor:
        attention = self.layer.self_attn
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, k, v)]
        scores = heads[0] @ heads[1].transpose(-1, -2) / heads[0].shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
        out = attention.out_proj
        return self.tap("self_attn", F.linear(mixed, out.weight, out.bias))

    def feed(self, x: Tensor) -> Tensor:
        h = self.tap("linear1", self.layer.linear1(x))
        return self.tap("linear2", self.layer.linear2(self.tap("linear1.relu", F.relu(h))))

    def forward(self, x: Tensor) -> Tensor:
        norm1, norm2 = self.layer.norm1, self.layer.norm2
        if self.layer.norm_first:
            x = self.tap("add", x + self.attend(self.tap("norm1", norm1(x))))
            return self.tap("add[2]", x + self.feed(self.tap("norm2", norm2(x))))
        x = self.tap("norm1", norm1(self.tap("add", x + self.attend(x))))
        return self.tap("norm2", norm2(self.tap("add[2]", x + self.feed(x))))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_layer_has_the_numbers_of_its_formula(training, norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    layer.train(training)
    written_out = WrittenOut(layer)
    x = batch(3, 5, 8)
    taps, gradients = reference(written_out, x)
    traced = trace(layer, x, seed=SEED)
    for name, value in taps.items():
        agree(traced[name], value, gradients[name])


class PackedGru(Tapped):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(5, 6, bidirectional=True), nn.Linear(12, 2)

    def forward(self, packed: PackedSequence) -> Tensor:
        return self.tap("head", self.head(self.tap("rnn", self.rnn(packed)[0].data)))


def test_a_packed_sequence_may_be_the_input():
    packed = pack_padded_sequence(batch(7, 3, 5), torch.tensor([7, 4, 2]))
    traced = check(PackedGru(), packed)
    assert traced["input"].shape == (13, 5)
    assert traced["input"].reached
    assert packed.data.grad_fn is None


class Cells(Tapped):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(5, 4), nn.GRUCell(4, 4)

    def forward(self, x):
        h = c = g = x.new_zeros(len(x), 4)
        for step in range(3):
            suffix = f"[{step + 1}]" if step else ""
            h, c = self.lstm(x, (h, c))
            h = self.tap(f"lstm{suffix}", h)
            g = self.tap(f"gru{suffix}", self.gru(h, g))
        return g


def test_cells_called_step_by_step():
    traced = check(Cells(), batch(6, 5))
    assert traced["lstm[3]"].weight_grad == traced["lstm"].weight_grad
    assert traced["gru"].fan_in == 4


# ---------------------------------------------------------------- views, contractions, casts


class WrittenView(Tapped):
    """An activation and a sum written into parts of a tensor."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.fc(x)
        if self.taps is None:
            h.view(-1, 2, 4)[:, 1].add_(x[:, :4])
            h[:, ::2].relu_()
        else:
            h = torch.cat([h[:, :4], self.tap("add", h[:, 4:] + x[:, :4])], 1)
            left = self.tap("fc.relu", F.relu(h[:, ::2]))
            h = torch.stack([left, h[:, 1::2]], 2).flatten(1)
        return self.tap("head", self.head(h))


def test_the_gradient_of_a_view_written_in_place_is_that_part_of_its_base():
    assert check(WrittenView(), batch(5, 6))["fc.relu"].reached


class Contracted(Tapped):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(6, 2, 4))
        self.w2 = nn.Parameter(torch.randn(5, 4))
        self.w3 = nn.Parameter(torch.randn(3, 2, 5))

    def forward(self, x):
        x = self.tap("w1", torch.tensordot(x, self.w1, dims=1))
        x = self.tap("w2", torch.inner(x, self.w2))
        return self.tap("w3", torch.tensordot(x, self.w3, dims=([1, 2], [1, 2])))


def test_contractions_with_a_parameter_are_layers():
    traced = check(Contracted(), batch(7, 6))
    fans = [(site.fan_in, site.fan_out) for site in traced.select(kind="affine")]
    assert fans == [(6, 8), (4, 5), (10, 3)]


class Autocast(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.tap("a.relu", F.relu(self.tap("a", self.a(x))))
            return self.tap("b", self.b(h))


def test_mixed_precision_under_autocast():
    traced = check(Autocast(), batch(9, 6), rel=1e-2)
    assert traced["a"].weight.second_moment > 0


class Custom(torch.autograd.Function):
    """x², with a gradient of its own; of the second argument it has none."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0], None


class WithCustom(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        a = self.tap("a", self.a(x))
        return self.tap("c", self.c(Custom.apply(a, self.b(x))))


def test_functions_with_a_backward_of_their_own():
    traced = check(WithCustom(), batch(5, 6))
    assert traced["b"].reached is False


class Interrupted(Tapped):
    """User hooks that change what a module reads and returns."""

    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(6, 6), nn.ReLU()
        self.a.register_forward_hook(lambda module, args, output: output * 3)
        self.act.register_forward_pre_hook(lambda module, args: (self.seen(args[0] + 1),))

    def seen(self, z):
        return self.tap("z", z)

    def forward(self, x):
        return self.tap("act", self.act(self.a(x)))


def test_the_users_own_hooks_are_honoured():
    model, x = Interrupted(), batch(5, 6)
    taps, gradients = reference(model, x)
    agree(trace(model, x, seed=SEED)["act"], taps["act"], gradients["act"])


def _double(gradient: Tensor) -> None:
    gradient.mul_(2)


class Handed(Tapped):
    """Both operands of the sum get its gradient, the very tensor; the last to be reached first."""

    def __init__(self, write: bool):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.write = write

    def forward(self, x):
        a, b = self.first(x), self.last(x)
        if self.write:
            b.register_hook(_double)
        return (a + b).tanh()


def test_a_gradient_that_is_handed_on_is_measured_once():
    traced = trace(Handed(write=False), batch(5, 6))
    assert traced["first"].backward is traced["last"].backward is traced["add"].backward
    assert traced["add"].backward.var > 0


def test_a_gradient_that_is_written_to_on_its_way_is_measured_again():
    traced = trace(Handed(write=True), batch(5, 6))
    before, after = traced["last"].backward, traced["first"].backward
    assert after.second_moment == pytest.approx(4 * before.second_moment)


class Inferring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    @torch.inference_mode()
    def backward(ctx, gradient):
        return gradient * 2


def test_a_backward_of_its_own_may_run_in_inference_mode():
    class Infers(Handed):
        def forward(self, x):
            a, b = self.tap("first", self.first(x)), self.tap("last", self.last(x))
            return Inferring.apply(self.tap("add", a + b))

    check(Infers(write=False), batch(5, 6))


# ---------------------------------------------------------------- compiled and scripted


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


def test_a_compiled_model_is_traced_as_it_was_written():
    plain, x = small(), batch(5, 6)
    expected = trace(plain, x)
    compiled = torch.compile(plain, backend="eager")
    before = compiled(x).detach()
    same_numbers(trace(compiled, x), expected)
    assert torch.equal(compiled(x).detach(), before)
    inside = nn.Sequential(compiled, nn.Tanh())
    inside(x)
    assert trace(inside, x).names == ("input", "0.0", "0.1", "0.2", "1", "output")
    plain.compile(backend="eager")
    plain(x)
    same_numbers(trace(plain, x), expected)


@pytest.mark.parametrize(
    "compile_it", [torch.jit.script, lambda m: torch.jit.trace(m, batch(5, 6))]
)
def test_torchscript_is_an_opaque_site_with_the_right_numbers(compile_it):
    plain, x = small(), batch(5, 6)
    expected = trace(plain, x)
    whole = trace(compile_it(plain), x)
    assert [site.name for site in whole] == ["input", "Sequential", "output"]
    assert "TorchScript" in whole["Sequential"].note
    assert whole["input"].backward.second_moment == pytest.approx(
        expected["input"].backward.second_moment, rel=1e-5
    )
    head = nn.Linear(2, 2)
    part = trace(nn.Sequential(compile_it(plain), head), x)
    full = trace(nn.Sequential(plain, head), x)
    assert "TorchScript" in part["0"].note
    for name, twin in (("input", "input"), ("0", "0.2"), ("1", "1")):
        agree_stats(part[name].forward, full[twin].forward)
        agree_stats(part[name].backward, full[twin].backward)


def agree_stats(found, expected) -> None:
    assert found.second_moment == pytest.approx(expected.second_moment, rel=1e-5)
    assert found.mean == pytest.approx(expected.mean, rel=1e-3, abs=1e-6)


def double(x: Tensor) -> Tensor:
    return 2 * x


class CallsScript(Tapped):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.double = torch.jit.script(double)

    def forward(self, x):
        h = self.double(self.tap("a", self.a(x)))
        h = self.tap("relu", F.relu(h))
        return self.tap("b", self.b(h)) + h


def test_what_follows_a_scripted_function_is_still_seen():
    traced = check(CallsScript(), batch(5, 6))
    assert traced["relu"].kind == "activation"
    assert traced["add"].kind == "add"


def test_data_parallel_has_the_numbers_of_its_module():
    plain, x = small(), batch(5, 6)
    found, expected = trace(nn.DataParallel(plain), x), trace(plain, x)
    assert [site.name for site in found[1:-1]] == ["module.0", "module.1", "module.2"]
    for site, twin in zip(found, expected, strict=True):
        agree_stats(site.forward, twin.forward)
        agree_stats(site.backward, twin.backward)


# ---------------------------------------------------------------- tensors of other kinds


class Graph(Tapped):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x, adjacency):
        h = torch.sparse.mm(adjacency, self.tap("fc", self.fc(x)))
        return self.tap("head", self.head(self.tap("fc.relu", torch.relu(h))))


def test_a_graph_convolution_over_a_sparse_adjacency():
    adjacency = (batch(7, 7, seed=3) > 0.5).float().to_sparse()
    traced = check(Graph(), batch(7, 6), adjacency)
    assert "sparse" in traced["adjacency"].note
    assert traced["fc.relu"].reads == ("fc", "adjacency")


def test_a_sparse_parameter_is_left_alone():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(6).to_sparse())

        def forward(self, x):
            return torch.tanh(torch.sparse.mm(self.weight, x))

    model = Sparse()
    kept = model.weight
    assert trace(model, batch(6, 3))["input.tanh"].reached
    assert model.weight is kept
    assert model.weight.grad is None
    assert torch.equal(model.weight.to_dense(), torch.eye(6))


class Spectral(Tapped):
    def __init__(self):
        super().__init__()
        self.fc, self.mix = nn.Linear(6, 8), nn.Linear(5, 5, dtype=torch.cfloat)

    def forward(self, x):
        spectrum = self.mix(torch.fft.rfft(self.tap("fc", self.fc(x))))
        h = torch.fft.irfft(spectrum)
        return self.tap("mix.tanh", torch.tanh(h))


def test_complex_tensors_are_opaque_and_what_surrounds_them_is_right():
    traced = check(Spectral(), batch(5, 6))
    assert "complex" in traced["mix"].note
    assert traced["mix"].forward.second_moment != traced["mix"].forward.second_moment
    with pytest.raises(TypeError, match="complex64 tensor"):
        trace(nn.Linear(6, 2, dtype=torch.cfloat), batch(5, 6).cfloat())


class Ragged(Tapped):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.tap("fc", self.fc(x))
        ragged = torch.nested.as_nested_tensor([h[:3], h[3:]], layout=self.layout)
        return torch.nested.to_padded_tensor(self.head(ragged), 0.0)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_inside_are_opaque(layout):
    traced = check(Ragged(layout), batch(5, 6))
    assert "nested" in traced["head"].note
    assert Trace.from_json(traced.to_json()).to_json() == traced.to_json()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_a_nested_input_is_refused_with_a_remedy(layout):
    ragged = torch.nested.nested_tensor([batch(3, 6), batch(2, 6)], layout=layout)
    with pytest.raises(ValueError, match="to_padded_tensor"):
        trace(nn.Linear(6, 2), ragged)


class Vectorized(Tapped):
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        slope = torch.func.vmap(torch.func.grad(lambda row: torch.tanh(self.fc(row)).sum()))(x)
        return self.tap("head", self.head(self.tap("relu", F.relu(self.tap("z", slope)))))


def test_after_a_functorch_transform_sites_are_right_again():
    model, x = Vectorized(), batch(5, 6)
    taps, gradients = reference(model, x)
    traced = trace(model, x, seed=SEED)
    assert "functorch" in traced["fc"].note
    for name in ("relu", "head"):
        agree(traced[name], taps[name], gradients[name])


# ---------------------------------------------------------------- what goes in and what comes out


@dataclasses.dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


class LanguageModel(Tapped):
    """As those of the transformers library: keywords in, a dataclass with the loss out."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, *, input_ids, labels=None):
        logits = self.tap("head", self.head(self.tap("embed", self.embed(input_ids))))
        if labels is None:
            return Answer(logits)
        return Answer(logits, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_an_output_that_is_already_a_loss():
    model, tokens = LanguageModel(), torch.arange(12).reshape(4, 3) % 9
    traced = check(model, pick=lambda o: o.loss, input_ids=tokens, labels=tokens)
    answer = model(input_ids=tokens, labels=tokens)
    assert traced.loss == pytest.approx(float(answer.loss.detach()), rel=1e-6)
    assert traced["output"].backward.mean == 1
    by_name = trace(
        model, model_kwargs={"input_ids": tokens, "labels": tokens}, output="loss", seed=SEED
    )
    assert by_name == traced
    assert trace(model, model_kwargs={"input_ids": tokens})["output"].shape == (4, 3, 9)


def test_a_function_of_the_output_is_followed_and_makes_no_site():
    model, x = small(), batch(5, 6)
    traced = trace(model, x, output=lambda h: torch.relu(h).square().mean())
    assert traced.names == ("input", "0", "1", "2", "output")
    assert traced["output"].reads == ("2",)
    assert traced["output"].backward.mean == 1


class Encoding(collections.UserDict):
    """A batch as tokenizers return it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    x: Tensor
    label: str = "a"


Pair = collections.namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda x: Encoding(x=x, length=6), lambda b: b["x"]),
        (lambda x: {"outer": [{"x": x}, None]}, lambda b: b["outer"][0]["x"]),
        (Sample, lambda b: b.x),
        (lambda x: Pair(x, 3), lambda b: b.x),
        (lambda x: [x, torch.tensor([1, 2])], lambda b: b[0]),
    ],
)
def test_a_batch_in_any_container(wrap, unwrap):
    class Unwrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 2)

        def forward(self, batch):
            return self.fc(unwrap(batch).add_(1))

    x = batch(5, 6)
    kept = x.clone()
    traced = trace(Unwrapping(), wrap(x))
    assert traced["fc"].reached
    assert traced["input"].reached
    assert torch.equal(x, kept)


class Handling(Tapped):
    """Does to its batch what torch allows with tensors that need no gradient only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        view = x[:, :]
        view.requires_grad = True
        kept = copy.deepcopy(x)
        scale = float(x.numpy().std()) + float(np.asarray(kept).mean())
        return self.tap("fc", self.fc(view * scale))


def test_a_model_may_handle_its_batch_as_if_nobody_watched():
    traced = check(Handling(), batch(5, 6))
    assert traced["input"].reached


class FromScalar(Tapped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 3)

    def forward(self, time):
        return self.tap("fc", self.fc(time.reshape(1, 1)))


def test_a_scalar_input():
    traced = check(FromScalar(), torch.tensor(2.0))
    assert traced["input"].shape == ()
    assert traced["input"].reached


# ---------------------------------------------------------------- geometry, and interruptions


class Fed(Tapped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.tap("fc.relu", F.relu(self.tap("fc", self.fc(x))))


def test_geometry_is_that_of_the_samples():
    model, x = Fed(), batch(8, 6)
    taps, _ = reference(model, x)
    traced = trace(model, x, geometry=True)
    for name, value in taps.items():
        h = value.double()
        unit = F.normalize(h, dim=1)
        pairs = (unit @ unit.T)[~torch.eye(8, dtype=torch.bool)]
        singular = torch.linalg.svdvals(h)
        share = singular / singular.sum()
        rank = float((-share * share.log()).nan_to_num().sum().exp())
        assert traced[name].cosine == pytest.approx(float(pairs.mean()), abs=1e-6)
        assert traced[name].effective_rank == pytest.approx(rank, rel=1e-4)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_an_interrupted_forward_pass_leaves_no_hook_and_no_changed_mode():
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            self.eval()
            until = time.monotonic() + 30
            while time.monotonic() < until:
                x = torch.tanh(self.fc(x))
            return x

    def interrupt(*_):
        raise KeyboardInterrupt

    model = Slow()
    installed = dict(torch.nn.modules.module._global_forward_hooks)
    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            trace(model, batch(4, 6))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert dict(torch.nn.modules.module._global_forward_hooks) == installed
    assert model.training
    assert torch.is_grad_enabled()
    assert trace(small(), batch(4, 6))["1"].reached


# ---------------------------------------------------------------- found by random models


class OverwrittenSequence(Tapped):
    """A linear map of a sequence is a view of a matrix that only torch sees."""

    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)

    def forward(self, x):
        h = self.tap("act", self.act(self.tap("first", self.first(x))))
        return self.tap("last", self.last(h))


def test_an_activation_in_place_after_a_linear_map_of_a_sequence():
    assert check(OverwrittenSequence(), batch(3, 4, 6))["first"].reached


def test_a_view_that_is_overwritten_says_that_its_gradient_is_not_measured():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(12, 2))
    traced = trace(model, batch(5, 2, 6))
    assert traced["0"].reached
    assert traced["1"].backward is None
    assert "written to in place" in traced["1"].note


def test_a_view_that_is_the_output_keeps_its_gradient():
    traced = trace(nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten()), batch(5, 2, 6))
    assert traced["1"].note is None
    assert traced["1"].backward == traced["output"].backward


class OverwritesItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        h = torch.sigmoid(x)
        h.mul_(2).sub_(1)
        return self.fc(h)


class OverwritesAPartOfIt(OverwritesItsInput):
    def forward(self, x):
        left, right = x.chunk(2, -1)
        left.mul_(2)
        return self.fc(torch.cat([left, right], -1))


@pytest.mark.parametrize("kind", [OverwritesItsInput, OverwritesAPartOfIt])
def test_a_model_may_overwrite_what_only_the_gradient_of_its_input_needs(kind):
    traced = trace(kind(), batch(5, 6))
    assert traced["fc"].reached
    assert traced["fc"].weight_grad is not None
    assert traced["input"].backward is None
    assert "overwrites" in traced["input"].note


@pytest.mark.parametrize("inside", [lambda h: h * 2, nn.Identity(), nn.Flatten(0, 1)])
def test_a_reentrant_checkpoint_without_any_layer(inside):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inside = nn.Linear(6, 2), inside

        def forward(self, x):
            return checkpoint(self.inside, self.fc(x), use_reentrant=True)

    assert trace(Model(), batch(3, 4, 6))["fc"].reached
