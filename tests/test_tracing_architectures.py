"""Published architectures, small and untrained, against hooks on their layers.

They come from the transformers library (``pip install initlab[architectures]``) and are built from
their configurations: nothing is downloaded. Without the library these tests are skipped.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from initlab.tracing import trace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
from transformers.pytorch_utils import Conv1D  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SIZES, "vocab_size": 99}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99}
IMAGES = {"image_size": 32, "patch_size": 8}
LANGUAGE = {
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99},
    "BertForMaskedLM": TEXT,
    "LlamaForCausalLM": {**TEXT, "num_key_value_heads": 2},
    "MixtralForCausalLM": {**TEXT, "num_key_value_heads": 2, "num_local_experts": 3},
    "MambaForCausalLM": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99},
    "GPTNeoXForCausalLM": TEXT,
    "AlbertForMaskedLM": {**TEXT, "embedding_size": 16},
    "FNetForMaskedLM": {**TEXT, "tpu_short_seq_length": 12},
    "T5ForConditionalGeneration": {**T5, "decoder_start_token_id": 0},
}
VISION = {
    "ViTForImageClassification": {**SIZES, **IMAGES},
    "ResNetForImageClassification": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    },
    "ConvNextForImageClassification": {
        "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32,
    },
    "SwinModel": {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
        "num_heads": [2, 4], "window_size": 4,
    },
}  # fmt: skip
SOUND = {
    "Wav2Vec2Model": {
        **TEXT, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
}  # fmt: skip
LAYERS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, nn.BatchNorm2d, Conv1D)


def build(name: str, config: dict) -> nn.Module:
    torch.manual_seed(0)
    model_class = getattr(transformers, name)
    return model_class(model_class.config_class(**config))


def hooked(model: nn.Module, batch: dict, pick) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of every layer, named by module and call, by torch's own hooks."""
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def watch(name):
        def hook(module, args, output):
            calls[name] = calls.get(name, 0) + 1
            key = name if calls[name] == 1 else f"{name}[{calls[name]}]"
            output = output.clone()  # no view, so that writing to it later leaves the hook in force
            outputs[key] = output.detach().clone()
            output.register_hook(lambda gradient: gradients.__setitem__(key, gradient.clone()))
            return output

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, LAYERS)
    ]
    torch.manual_seed(0)
    np.random.seed(0)  # wav2vec2 masks with numpy's numbers
    output = pick(model(**batch))
    cotangent = torch.ones_like(output)
    if output.ndim:
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(output.shape, generator=generator)
    torch.autograd.grad(output, list(model.parameters()), cotangent, allow_unused=True)
    for handle in handles:
        handle.remove()
    return outputs, gradients


def check_layers(model: nn.Module, batch: dict, pick) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    traced = trace(model, model_kwargs=batch, output=pick)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    outputs, gradients = hooked(model, batch, pick)
    assert len(outputs) > 5
    for name, value in outputs.items():
        site = traced[name]
        square = float(value.double().square().mean())
        assert site.forward.second_moment == pytest.approx(square, rel=1e-4), name
        if name in gradients:
            square = float(gradients[name].double().square().mean())
            assert site.backward.second_moment == pytest.approx(square, rel=1e-3), name
        else:
            assert site.reached is False
    for site in traced:
        assert site.forward.nonfinite == 0
        assert site.forward.second_moment == site.forward.second_moment or site.note


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models(name, training):
    tokens = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(0))
    model = build(name, LANGUAGE[name]).train(training)
    check_layers(model, {"input_ids": tokens, "labels": tokens}, lambda output: output.loss)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", VISION)
def test_vision_models(name, training):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = build(name, VISION[name]).train(training)
    check_layers(model, {"pixel_values": images}, lambda output: output[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SOUND)
def test_speech_models(name, training):
    waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    model = build(name, SOUND[name]).train(training)
    check_layers(model, {"input_values": waves}, lambda output: output.last_hidden_state)


def test_gradient_checkpointing_changes_no_number():
    tokens = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(0))
    model = build("GPT2LMHeadModel", LANGUAGE["GPT2LMHeadModel"]).train()
    batch = {"input_ids": tokens, "labels": tokens}
    plain = trace(model, model_kwargs=batch, output="loss")
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        checkpointed = trace(model, model_kwargs=batch, output="loss")
        assert checkpointed.names == plain.names
        for site, twin in zip(checkpointed, plain, strict=True):
            assert site.reached == twin.reached
            if site.reached:
                assert site.backward.second_moment == pytest.approx(
                    twin.backward.second_moment, rel=1e-4
                )
