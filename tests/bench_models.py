"""Models with and without a fault planted by hand: what diagnose() is measured on.

The models are those that people post: plain, normalized, residual, recurrent, with functional
activations and with layers of their own. They are initialized by torch alone, so that no opinion of
this package enters; a fault is planted by writing to the weights of one layer, or of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initlab.diagnosis import Diagnosis, diagnose
from initlab.tracing import trace

BATCH = 32
Plant = Callable[[nn.Module], object]


# ---------------------------------------------------------------- the architectures


def mlp(phi: Callable[[], nn.Module], depth: int, width: int, gain: float) -> nn.Sequential:
    """``depth`` hidden layers between 32 features and 10 classes."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 32, width), phi()]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for linear in linears(model):
        nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
        nn.init.zeros_(linear.bias)
    return model


class FunctionalCNN(nn.Module):
    """Convolutions with functional ReLU and pooling, as in the tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).flatten(1)
        return self.head(F.relu(self.fc1(x)))


def cnn_batch_norm() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in ((3, 16), (16, 32), (32, 32), (32, 32)):
        layers += [nn.Conv2d(*channels, 3, padding=1), nn.BatchNorm2d(channels[1]), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class ResidualMLP(nn.Module):
    """h + W₂ relu(W₁ h) without normalization; He weights, branches divided by √L."""

    def __init__(self, blocks: int = 12, width: int = 64, scaled: bool = True) -> None:
        super().__init__()
        self.stem = nn.Linear(32, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)
        for linear in (*self.first, *self.second):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        for linear in self.second if scaled else ():
            linear.weight.data /= math.sqrt(blocks)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            h = h + second(F.relu(first(h)))
        return self.head(h)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(h)))


def resnet() -> nn.Sequential:
    """A residual network whose branches start at 0, as torchvision's ``zero_init_residual``."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(ResidualBlock(16) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(size, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(size, length, width))
        return x + self.out(F.gelu(self.fc(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, blocks: int = 4, width: int = 32, vocabulary: int = 27, *,
                 tied: float | None = None) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.tied = tied is not None
        if tied is not None:
            nn.init.normal_(self.tokens.weight, std=tied)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight) if self.tied else self.head(self.norm(x))


def dqn() -> nn.Sequential:
    """A deep Q-network of six Linear layers, with the biases and weights that torch gives it."""
    sizes = (8, 128, 128, 128, 128, 128, 4)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Recurrent(nn.Module):
    """A classifier of token sequences by the last state of an LSTM or RNN."""

    def __init__(self, kind: Callable[..., nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(27, 32)
        self.rnn = kind(32, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(tokens))
        return self.head(states[:, -1])


def conv3d() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 8, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


class UNet(nn.Module):
    """Down and up again by a transposed convolution, with a concatenated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.first(x))
        deep = F.relu(self.up(F.relu(self.down(wide))))
        return self.last(torch.cat([wide, deep], dim=1))


class ReZero(nn.Module):
    """x + α·relu(W x) with α = 0 (Bachlechner et al. 2021)."""

    def __init__(self, blocks: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(blocks))
        self.alpha = nn.Parameter(torch.zeros(blocks))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, alpha in zip(self.layers, self.alpha, strict=True):
            x = x + alpha * F.relu(layer(x))
        return self.head(x)


def autoencoder() -> nn.Sequential:
    """Through a bottleneck of two units, which leaves no more than two directions."""
    return nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2),
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.Sigmoid(),
    )  # fmt: skip


def encoder() -> nn.TransformerEncoder:
    """Torch's own post-norm encoder."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 4)


class ViT(nn.Module):
    """Patches, a class token of zeros, and torch's own encoder, its norms first or last."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 48))
        self.positions = nn.Parameter(torch.randn(1, 17, 48) * 0.02)
        layer = nn.TransformerEncoderLayer(
            48, 4, 192, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class Mixer(nn.Module):
    def __init__(self, blocks: int = 4, width: int = 32, places: int = 16) -> None:
        super().__init__()

        def mlps(size: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
                for _ in range(blocks)
            )

        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * blocks))
        self.places, self.channels = mlps(places), mlps(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        norms = iter(self.norms)
        for places, channels in zip(self.places, self.channels, strict=True):
            x = x + places(next(norms)(x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(next(norms)(x))
        return self.head(self.norm(x).mean(1))


class T5Like(nn.Module):
    """Attention by hand, unscaled and with biases by distance; N(0, 1/(width·size)) queries."""

    def __init__(self, blocks: int = 3, width: int = 64, heads: int = 4, length: int = 16) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(27, width)
        self.distances = nn.Parameter(torch.randn(heads, length, length))
        square = (width, width)
        parts = {"query": square, "key": square, "value": square, "out": square,
                 "wide": (width, 4 * width), "narrow": (4 * width, width)}  # fmt: skip
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*sizes, bias=False) for name, sizes in parts.items()})
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 27, bias=False)
        for linear in linears(self):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        for block in self.blocks:
            block["query"].weight.data *= (width / heads) ** -0.5  # type: ignore[index, operator]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        size, length, width = x.shape
        for block in self.blocks:
            h = F.layer_norm(x, (width,))
            q, k, v = (
                block[name](h).view(size, length, self.heads, -1).transpose(1, 2)  # type: ignore[index]
                for name in ("query", "key", "value")
            )
            mixed = (q @ k.transpose(-1, -2) + self.distances).softmax(-1) @ v
            x = x + block["out"](mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[index]
            wide = F.relu(block["wide"](F.layer_norm(x, (width,))))  # type: ignore[index]
            x = x + block["narrow"](wide)  # type: ignore[index]
        return self.head(self.norm(x))


class FirstToken(nn.Module):
    """As the text model of a CLIP: causal attention, weights of 0.02, and one place is read. Where
    it is the first, its attention has one key."""

    def __init__(self, blocks: int = 4, width: int = 64, place: int = -1) -> None:
        super().__init__()
        self.place = place
        self.tokens = nn.Embedding(27, width)
        names = ("query", "key", "value", "out")
        self.attentions = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for layers in self.attentions:
            h = F.layer_norm(x, x.shape[-1:])
            q, k, v = (
                layers[name](h).unflatten(-1, (4, -1)).transpose(1, 2)  # type: ignore[index]
                for name in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + layers["out"](mixed.transpose(1, 2).flatten(2))  # type: ignore[index]
        return self.head(self.norm(x)[:, self.place])


class Siren(nn.Module):
    """sin(30·(W x + b)), drawn as in Sitzmann et al. 2020."""

    def __init__(self, width: int = 64, hidden: int = 4) -> None:
        super().__init__()
        sizes = (2, *(width,) * (hidden + 1))
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.head = nn.Linear(width, 3)
        for linear in linears(self):
            bound = 0.5 if linear.in_features == 2 else math.sqrt(6 / width) / 30
            nn.init.uniform_(linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(30 * layer(x))
        return self.head(x)


class TwoLayerLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(27, 32)
        self.rnn = nn.LSTM(32, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0].mean(1))


class Translator(nn.Module):
    """A GRU that reads, and one that writes from the state of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(27, 32)
        self.encoder, self.decoder = (nn.GRU(32, 48, batch_first=True) for _ in range(2))
        self.head = nn.Linear(48, 27)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.decoder(x, self.encoder(x)[1])[0])


class NormedUNet(nn.Module):
    """A U-Net whose convolutions have batch normalization behind them."""

    def __init__(self) -> None:
        super().__init__()

        def conv(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()
            )

        self.first, self.second, self.third = conv(3, 8), conv(8, 16), conv(24, 8)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.first(x)
        deep = self.up(self.second(F.max_pool2d(wide, 2)))
        return self.head(self.third(torch.cat([wide, deep], dim=1)))


class OwnLayer(nn.Module):
    """A layer that somebody wrote: x @ kernel + shift, from U(±bound)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / fan_in)
        self.kernel = nn.Parameter(torch.empty(fan_in, fan_out).uniform_(-bound, bound))
        self.shift_bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.shift_bias


class OwnMLP(nn.Module):
    def __init__(self, width: int = 128) -> None:
        super().__init__()
        sizes = (32, *(width,) * 4)
        self.layers = nn.ModuleList(map(OwnLayer, sizes[:-1], sizes[1:]))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


# ---------------------------------------------------------------- the faults


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all layers, embeddings, positions and class tokens aside."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    embedded |= {id(p) for n, p in model.named_parameters() if n in ("token", "positions")}
    return [p for p in model.parameters() if p.ndim > 1 and id(p) not in embedded]


def everywhere(fill: Callable[[Tensor], object]) -> Plant:
    def plant(model: nn.Module) -> None:
        for weight in matrices(model):
            fill(weight)

    return plant


def at(name: str, fill: Callable[[Tensor], object]) -> Plant:
    """Write to one parameter, given by its dotted name."""
    return lambda model: fill(model.get_parameter(name))


def times(factor: float) -> Callable[[Tensor], object]:
    return lambda tensor: tensor.mul_(factor)


def constant(value: float) -> Callable[[Tensor], object]:
    return lambda tensor: nn.init.constant_(tensor, value)


def normal(std: float) -> Callable[[Tensor], object]:
    return lambda tensor: nn.init.normal_(tensor, std=std)


def uniform(bound: float) -> Callable[[Tensor], object]:
    return lambda tensor: nn.init.uniform_(tensor, -bound, bound)


def one_nan(tensor: Tensor) -> None:
    tensor.view(-1)[0] = math.nan


def rank_one(weight: Tensor) -> None:
    """The product of a column and a row of the same size."""
    column, row = torch.randn(weight.shape[0], 1), torch.randn(1, weight.shape[1])
    weight.copy_(column @ row * weight.std())


# ---------------------------------------------------------------- the bench


@dataclass(frozen=True)
class Architecture:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int | None = 10
    tokens: bool = False


def _images() -> Tensor:
    return torch.randn(BATCH, 3, 16, 16)


def _features() -> Tensor:
    return torch.randn(BATCH, 32)


def _sequences() -> Tensor:
    return torch.randint(0, 27, (BATCH, 16))


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("mlp_relu", lambda: mlp(nn.ReLU, 12, 64, math.sqrt(2)), _features),
        Architecture("mlp_relu_deep", lambda: mlp(nn.ReLU, 50, 64, math.sqrt(2)), _features, None),
        Architecture("mlp_tanh", lambda: mlp(nn.Tanh, 20, 64, 1.4), _features),
        Architecture("mlp_sigmoid", lambda: mlp(nn.Sigmoid, 3, 64, 2.0), _features),
        Architecture("mlp_gelu", lambda: mlp(nn.GELU, 8, 96, 1.5), _features),
        Architecture("cnn", FunctionalCNN, _images),
        Architecture("cnn_batch_norm", cnn_batch_norm, _images),
        Architecture("residual_mlp", ResidualMLP, _features),
        Architecture("resnet", resnet, _images),
        Architecture("transformer", Transformer, _sequences, 27, True),
        Architecture("dqn", dqn, lambda: torch.randn(BATCH, 8), None),
        Architecture("lstm", Recurrent, _sequences),
        Architecture("rnn", lambda: Recurrent(nn.RNN), _sequences),
        Architecture("conv3d", conv3d, lambda: torch.randn(BATCH, 1, 8, 8, 8)),
        Architecture("own_layers", OwnMLP, _features),
        Architecture("unet", UNet, _images, None),
        Architecture("rezero", ReZero, _features),
        Architecture("autoencoder", autoencoder, _features, None),
        Architecture("encoder", encoder, lambda: torch.randn(BATCH, 12, 32), None),
        Architecture("vit", lambda: ViT(norm_first=True), _images),
        Architecture("vit_post_norm", lambda: ViT(norm_first=False), _images),
        Architecture("mixer", Mixer, _images),
        Architecture("t5_like", T5Like, _sequences, 27, True),
        Architecture("clip_like", FirstToken, _sequences),
        Architecture("siren", Siren, lambda: torch.rand(64, 2) * 2 - 1, None),
        Architecture("lstm_two_layers", TwoLayerLSTM, _sequences),
        Architecture("translator", Translator, _sequences, 27, True),
        Architecture("unet_batch_norm", NormedUNet, _images, None),
    )
}


@dataclass(frozen=True)
class Case:
    """A model with a fault planted in it, or with none.

    ``where`` holds the sites at which it may be found to begin; empty where there are several.
    """

    architecture: str
    fault: str | None = None
    plant: Plant | None = None
    where: tuple[str, ...] = ()
    title: str = ""
    build: Callable[[], nn.Module] | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, [self.architecture, self.fault or "healthy", self.title]))

    def make(self, seed: int) -> tuple[nn.Module, Tensor, Tensor | None]:
        """The model, a batch, and a target where its loss is checked."""
        architecture = ARCHITECTURES[self.architecture]
        torch.manual_seed(seed)
        model = (self.build or architecture.build)()
        inputs = architecture.inputs()
        with torch.no_grad():
            if self.plant is not None:
                self.plant(model)
        if architecture.classes is None:
            return model, inputs, None
        shape = inputs.shape if architecture.tokens else inputs.shape[:1]
        return model, inputs, torch.randint(0, architecture.classes, shape)


def _healthy() -> Iterator[Case]:
    for name in ARCHITECTURES:
        yield Case(name)
    yield Case("dqn", title="kaiming", plant=everywhere(_kaiming))
    yield Case("conv3d", title="kaiming", plant=everywhere(_kaiming))
    yield Case("cnn", title="xavier", plant=everywhere(nn.init.xavier_uniform_))
    yield Case("cnn_batch_norm", title="hidden scale", plant=at("3.weight", times(1e-3)))
    yield Case("residual_mlp", title="zero branches", plant=_zero_branches)
    yield Case("residual_mlp", title="fixup", plant=_fixup)
    yield Case("mlp_tanh", title="xavier", plant=everywhere(nn.init.xavier_normal_))
    yield Case("transformer", title="torch's own", plant=_reset)
    yield Case("clip_like", title="first token", build=lambda: FirstToken(place=0))
    yield Case("transformer", title="tied", build=lambda: Transformer(tied=0.02))


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _zero_branches(model: nn.Module) -> None:
    for layer in model.second:  # type: ignore[union-attr]
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]


def _fixup(model: nn.Module) -> None:
    """Zhang et al. 2019: the branches and the classifier start at 0."""
    _zero_branches(model)
    nn.init.zeros_(model.head.weight)  # type: ignore[arg-type, union-attr]


def _reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def _planted() -> Iterator[Case]:
    yield from _scales()
    yield from _units()
    yield from _symmetric()
    yield from _biased()
    for name, layer in (
        ("mlp_relu", "10"),
        ("mlp_tanh", "10"),
        ("mlp_gelu", "6"),
        ("dqn", "4"),
        ("residual_mlp", "stem"),
        ("own_layers", "layers.1"),
    ):
        leaf = "kernel" if name == "own_layers" else "weight"
        site = f"{layer}.{leaf}" if leaf == "kernel" else layer
        yield Case(name, "rank_collapse", at(f"{layer}.{leaf}", rank_one), (site,))
    for name, parameter, site in (
        ("mlp_relu", "8.weight", "8"),
        ("mlp_sigmoid", "2.bias", "2"),
        ("cnn", "conv2.bias", "conv2"),
        ("cnn_batch_norm", "4.weight", "4"),
        ("resnet", "4.conv1.weight", "4.conv1"),
        ("transformer", "blocks.1.fc.weight", "blocks.1.fc"),
        ("dqn", "4.weight", "4"),
        ("lstm", "rnn.weight_hh_l0", "rnn"),
        ("conv3d", "3.weight", "3"),
        ("own_layers", "layers.2.kernel", "layers.2.kernel"),
    ):
        yield Case(name, "non_finite", at(parameter, one_nan), (site,), parameter.split(".")[-1])
    for name, head in (
        ("mlp_relu", "24"),
        ("mlp_tanh", "40"),
        ("mlp_gelu", "16"),
        ("cnn", "head"),
        ("cnn_batch_norm", "14"),
        ("residual_mlp", "head"),
        ("resnet", "8"),
        ("transformer", "head"),
        ("lstm", "head"),
        ("conv3d", "11"),
        ("own_layers", "head"),
    ):
        untuned = name in ("transformer", "lstm", "conv3d", "cnn")  # their logits are small
        factor = 1000 if untuned else 100
        plant = at(f"{head}.weight", times(factor))
        yield Case(name, "wrong_initial_loss", plant, (head,))
    yield Case(
        "transformer", "wrong_initial_loss", None, ("tokens[2]",), "tied to N(0, 1)",
        lambda: Transformer(tied=1.0),
    )  # fmt: skip


def _scales() -> Iterator[Case]:
    small, large = "vanishing_activations", "exploding_activations"
    yield Case("mlp_relu", small, everywhere(normal(0.01)), ("0",), "std 0.01")
    yield Case("mlp_relu", small, at("10.weight", times(1e-4)), ("10",), "one layer")
    yield Case("mlp_tanh", small, everywhere(times(0.3)), (), "all × 0.3")
    yield Case("mlp_gelu", small, everywhere(normal(0.01)), ("0",), "std 0.01")
    yield Case("cnn", small, everywhere(times(0.05)), (), "all × 0.05")
    yield Case("dqn", small, everywhere(normal(0.01)), (), "std 0.01")
    yield Case("conv3d", small, everywhere(times(0.05)), (), "all × 0.05")
    yield Case("own_layers", small, everywhere(uniform(0.005)), (), "U(±0.005)")
    yield Case("residual_mlp", small, at("stem.weight", times(1e-5)), ("stem",), "stem")
    for name in ("vit", "vit_post_norm", "mixer", "siren", "lstm_two_layers", "translator",
                 "unet_batch_norm"):  # fmt: skip
        yield Case(name, small, everywhere(times(1e-4)), (), "all × 1e-4")
    yield Case("mlp_relu", large, everywhere(normal(1.0)), ("0",), "std 1")
    yield Case("mlp_relu", large, at("10.weight", times(1e3)), ("10",), "one layer")
    yield Case("mlp_gelu", large, everywhere(normal(1.0)), ("0",), "std 1")
    yield Case("cnn", large, everywhere(normal(1.0)), (), "std 1")
    yield Case("dqn", large, everywhere(normal(1.0)), (), "std 1")
    yield Case("conv3d", large, everywhere(normal(1.0)), (), "std 1")
    yield Case("own_layers", large, everywhere(uniform(0.5)), (), "U(±0.5)")
    yield Case("mlp_relu", large, everywhere(lambda w: w.uniform_(0, 1)), ("0", "2"), "U(0, 1)")
    yield Case("residual_mlp", large, build=lambda: ResidualMLP(16, scaled=False), title="3^L")
    yield Case(
        "transformer", large, at("blocks.2.out.weight", times(1e4)), ("blocks.2.out",), "branch"
    )
    yield Case(
        "mlp_sigmoid", "vanishing_gradients", title="deep",
        build=lambda: mlp(nn.Sigmoid, 12, 64, 1.0),
    )  # fmt: skip
    for part, site in (("query", "key"), ("key", "query"), ("value", "key"), ("out", "value")):
        plant, where = at(f"attentions.1.{part}.weight", times(1e-5)), f"attentions.1.{site}"
        yield Case("clip_like", "vanishing_gradients", plant, (where,), part)
    yield Case("mlp_relu", "vanishing_gradients", at("24.weight", constant(0)), ("24",), "head 0")
    yield Case("cnn", "vanishing_gradients", at("head.weight", constant(0)), ("head",), "head 0")
    yield Case("conv3d", "vanishing_gradients", at("11.weight", constant(0)), ("11",), "head 0")
    yield Case(
        "mlp_tanh", "exploding_gradients", title="gain 3", build=lambda: mlp(nn.Tanh, 30, 64, 3.0)
    )


def _units() -> Iterator[Case]:
    for name, bias, site in (
        ("mlp_relu", "10.bias", "10"),
        ("cnn", "conv2.bias", "conv2"),
        ("cnn_batch_norm", "7.bias", "7"),
        ("dqn", "4.bias", "4"),
        ("conv3d", "3.bias", "3"),
        ("mlp_relu", "22.bias", "22"),
        ("own_layers", "layers.2.shift_bias", "layers.2.kernel"),
        ("residual_mlp", "first.3.bias", "first.3"),
    ):
        yield Case(name, "dead_units", at(bias, constant(-30)), (site,), bias)
    yield Case("mlp_tanh", "saturation", everywhere(normal(1.0)), (), "std 1")
    yield Case("mlp_sigmoid", "saturation", everywhere(normal(2.0)), (), "std 2")
    yield Case("mlp_tanh", "saturation", at("10.weight", times(30)), ("10",), "one layer")
    yield Case("rnn", "saturation", at("rnn.weight_hh_l0", times(100)), ("rnn",), "hidden × 100")


def _symmetric() -> Iterator[Case]:
    for name in ("mlp_relu", "mlp_tanh", "mlp_sigmoid", "mlp_gelu", "cnn", "cnn_batch_norm", "dqn",
                 "conv3d", "lstm", "rnn", "own_layers"):  # fmt: skip
        yield Case(name, "symmetry", everywhere(constant(0.02)), (), "all 0.02")
    for name in ("mlp_relu", "mlp_tanh", "cnn", "own_layers", "vit", "vit_post_norm", "mixer"):
        yield Case(name, "symmetry", everywhere(constant(0.0)), (), "all 0")
    plant = at("blocks.1.fc.weight", constant(0.02))
    yield Case("transformer", "symmetry", plant, ("blocks.1.fc",), "one layer")
    yield Case("mlp_relu", "symmetry", at("10.weight", constant(0.1)), ("10",), "one layer")


def _biased() -> Iterator[Case]:
    for name, bias, site in (
        ("mlp_relu", "10.bias", "10"),
        ("mlp_gelu", "6.bias", "6"),
        ("cnn", "conv2.bias", "conv2"),
        ("dqn", "4.bias", "4"),
        ("conv3d", "3.bias", "3"),
        ("mlp_tanh", "10.bias", "10"),
        ("own_layers", "layers.2.shift_bias", "layers.2.kernel"),
    ):
        yield Case(name, "bias_dominated", at(bias, constant(20)), (site,), bias)


CASES: tuple[Case, ...] = (*_healthy(), *_planted())


# ---------------------------------------------------------------- running it


@dataclass(frozen=True)
class Outcome:
    """What was said of one case, and of the same model after its own remedy."""

    case: Case
    seed: int
    first: Diagnosis
    second: Diagnosis | None

    @property
    def named(self) -> str:
        """The fault named first."""
        return self.first.findings[0].fault if self.first.findings else "healthy"

    @property
    def is_right(self) -> bool:
        return self.named == (self.case.fault or "healthy")

    @property
    def is_placed(self) -> bool:
        return not self.case.where or (
            bool(self.first.findings) and self.first.findings[0].where in self.case.where
        )

    @property
    def is_cured(self) -> bool:
        return self.second is not None and self.second.healthy


def look(model: nn.Module, inputs: Tensor, target: Tensor | None) -> Diagnosis:
    return diagnose(trace(model, inputs, target=target, geometry=True))


def run(case: Case, seed: int) -> Outcome:
    """Diagnose a case; where a fault is found, apply its remedy and diagnose again."""
    model, inputs, target = case.make(seed)
    first = look(model, inputs, target)
    if first.healthy:
        return Outcome(case, seed, first, None)
    exec(first.code, {"model": model})
    return Outcome(case, seed, first, look(model, inputs, target))
