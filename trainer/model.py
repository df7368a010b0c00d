"""The model from the manifest's settings: a Hugging Face class from an allow-list, every config key known and bounded.

A manifest may come from a stranger, so a config key is refused unless it is listed here: Hugging Face configs have keys
that load code or files. Knows no weights: those are genesis' bytes, laid in by `flatten`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from atoll.protocol.errors import ManifestError
from atoll.protocol.manifest import ARCHITECTURES, ModelSettings
from atoll.protocol.settings import suggestion
from atoll.trainer.ranks import Ranks


@dataclass(frozen=True)
class _Key:
    kind: type
    low: float = 1
    high: float = 1 << 24
    choices: tuple[str, ...] = ()


_KEYS: Mapping[str, _Key] = {
    "hidden_size": _Key(int), "intermediate_size": _Key(int), "num_hidden_layers": _Key(int, 1, 1024),
    "num_attention_heads": _Key(int, 1, 4096), "num_key_value_heads": _Key(int, 1, 4096),
    "head_dim": _Key(int, 2, 4096), "vocab_size": _Key(int), "max_position_embeddings": _Key(int),
    "tie_word_embeddings": _Key(bool),
    "attention_bias": _Key(bool), "mlp_bias": _Key(bool), "rms_norm_eps": _Key(float, 0, 1),
    "initializer_range": _Key(float, 0, 10), "rope_theta": _Key(float, 1, 1e12),
    "hidden_act": _Key(str, choices=("silu", "gelu", "relu", "gelu_pytorch_tanh")),
}
_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4,
    "tie_word_embeddings": True,
}


def model_config(settings: ModelSettings, vocab_size: int, separator: int) -> Any:
    """A `LlamaConfig`. Raises ManifestError for an unknown key, a value out of bounds, or sizes that do not fit."""
    if settings.architecture not in ARCHITECTURES:
        near = suggestion(settings.architecture, ARCHITECTURES)
        raise ManifestError(f"`model.architecture` is {settings.architecture!r}{near}.")
    values = {**_DEFAULTS, **{key: _checked(key, value) for key, value in settings.config.items()}}
    _check_shapes(values)
    values.setdefault("vocab_size", vocab_size)
    if values["vocab_size"] < vocab_size:
        raise ManifestError(
            f"`model.config.vocab_size` is {values['vocab_size']}, the tokenizer needs {vocab_size}: leave it out."
        )
    from transformers import LlamaConfig

    theta = values.pop("rope_theta", 10_000.0)
    return LlamaConfig(
        **values, rope_parameters={"rope_type": "default", "rope_theta": theta}, use_cache=False, dtype=torch.float32,
        bos_token_id=None, eos_token_id=separator, pad_token_id=None,
    )


def seeded_model(config: Any, seed: int) -> nn.Module:
    """A new model on the CPU with random weights, for genesis; they differ between CPUs."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    model: nn.Module = LlamaForCausalLM(config)
    return model


def meta_model(config: Any) -> nn.Module:
    """The model's shapes without its memory."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config)
    return model


def sharded_model(config: Any, ranks: Ranks) -> nn.Module:
    """The model on this rank's device, sharded over all ranks per decoder layer (FSDP2), its weights not yet set."""
    model = shard(meta_model(config), ranks)
    model.to_empty(device=ranks.compute.device)
    # Rotary frequencies are computed, not trained: they belong to no vector and are empty on `meta`.
    rotary: Any = type(model.get_submodule("model.rotary_emb"))
    with torch.device(ranks.compute.device):
        model.get_submodule("model").rotary_emb = rotary(config)
    return model


def shard(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Apply FSDP2 in place. A peer of one rank keeps its layers gathered: dropping them saves no memory."""
    policy = MixedPrecisionPolicy()
    if ranks.compute.mixed:
        policy = MixedPrecisionPolicy(param_dtype=ranks.compute.dtype, reduce_dtype=torch.float32)
    apply = functools.partial(fully_shard, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=ranks.size > 1)
    layers = model.get_submodule("model.layers")
    for layer in layers.children():
        apply(layer)
    apply(model)
    return model


def reshard(model: nn.Module) -> None:
    """Back to the shards, after a forward without a backward.

    Until then `named_parameters` shows the gathered copies, and what is written to the shards is not seen by a forward.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _checked(key: str, value: Any) -> Any:
    known, where = _KEYS.get(key), f"model.config.{key}"
    if known is None:
        raise ManifestError(f"unknown key `{where}`{suggestion(key, _KEYS)}.")
    if known.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, known.kind) or (known.kind is not bool and isinstance(value, bool)):
        raise ManifestError(f"`{where}` must be of type {known.kind.__name__}, not {value!r}.")
    if known.choices and value not in known.choices:
        raise ManifestError(f"`{where}` is {value!r}{suggestion(str(value), known.choices)}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not known.low <= value <= known.high:
        raise ManifestError(f"`{where}` is {value}, it must lie between {known.low:g} and {known.high:g}.")
    return value


def _check_shapes(values: Mapping[str, Any]) -> None:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    groups = values.get("num_key_value_heads", heads)
    if heads % groups:
        raise ManifestError(f"`model.config.num_attention_heads`, {heads}, no multiple of key-value heads, {groups}.")
    if "head_dim" not in values and hidden % heads:
        raise ManifestError(f"`model.config.hidden_size` is {hidden}, no multiple of num_attention_heads, {heads}.")
    width = values.get("head_dim", hidden // heads)
    if width % 2:
        raise ManifestError(f"`model.config.head_dim` is {width}; rotary positions need an even one.")
