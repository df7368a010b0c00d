"""Models from a config, their canonical order, and the way of a vector in and out of them."""

import dataclasses

import numpy as np
import pytest
import torch

from atoll.protocol.digest import array_digest, state_digest
from atoll.protocol.errors import ManifestError, MismatchError
from atoll.protocol.manifest import Draft, ModelSettings
from atoll.trainer import flatten
from atoll.trainer.data.loader import Windows
from atoll.trainer.evaluate import held_out_loss
from atoll.trainer.genesis import genesis_digest, make_genesis, read_vector
from atoll.trainer.model import meta_model, model_config, seeded_model, sharded_model

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def config(**values):
    return model_config(ModelSettings(config={**SMALL, **values}), 257, 256)


@pytest.mark.parametrize(("values", "words"), [
    ({"hiden_size": 32}, "did you mean `hidden_size`"), ({"auto_map": {}}, "unknown key"),
    ({"_name_or_path": "x"}, "unknown key"), ({"quantization_config": {}}, "unknown key"),
    ({"hidden_size": "32"}, "type int"), ({"hidden_size": True}, "type int"), ({"hidden_size": 0}, "between"),
    ({"num_hidden_layers": 10**9}, "between"), ({"hidden_size": 33}, "no multiple of num_attention_heads"),
    ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 8}, "no multiple of key-value heads"),
    ({"hidden_size": 30}, "an even one"), ({"hidden_act": "slu"}, "did you mean `silu`"),
    ({"vocab_size": 100}, "the tokenizer needs 257"), ({"rms_norm_eps": -1.0}, "between"),
])
def test_a_config_that_cannot_be_built_is_refused_with_the_remedy(values, words):
    with pytest.raises(ManifestError, match=words):
        config(**values)


def test_an_architecture_that_is_not_listed_is_refused():
    with pytest.raises(ManifestError, match="did you mean `LlamaForCausalLM`"):
        model_config(ModelSettings(architecture="LlamaForCausaLM"), 257, 256)


def test_the_canonical_order_is_by_name_with_tied_weights_once():
    entries = flatten.canonical_entries(seeded_model(config(num_hidden_layers=11), 1))
    names = [entry.name for entry in entries]
    assert names == sorted(names)
    assert "lm_head.weight" not in names
    assert names.index("model.layers.10.mlp.up_proj.weight") < names.index("model.layers.2.mlp.up_proj.weight")
    assert [entry.start for entry in entries[1:]] == [entry.stop for entry in entries[:-1]]
    untied = flatten.canonical_entries(seeded_model(config(tie_word_embeddings=False), 1))
    assert untied[0].name == "lm_head.weight"


def test_a_larger_model_has_the_right_shapes_without_its_memory():
    model = meta_model(config(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                              num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=False))
    assert flatten.numel(model) == 8_030_261_248
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_sharded_model_computes_what_the_plain_one_does(ranks):
    plain, sharded = seeded_model(config(), 1), sharded_model(config(), ranks)
    assert flatten.canonical_entries(plain) == flatten.canonical_entries(sharded)
    vector = np.concatenate([p.detach().numpy().reshape(-1) for _, p in sorted(plain.named_parameters())])
    vector.flags.writeable = False
    flatten.load(sharded, vector, ranks)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert torch.equal(sharded(input_ids=ids, use_cache=False).logits, plain(input_ids=ids, use_cache=False).logits)
    assert sharded.lm_head.weight is sharded.model.embed_tokens.weight


def test_a_pseudo_gradient_is_outer_minus_inner_even_right_after_a_forward(ranks):
    model = sharded_model(config(), ranks)
    size = flatten.numel(model)
    inner = np.random.default_rng(1).standard_normal(size, np.float32)
    outer = np.random.default_rng(2).standard_normal(size, np.float32)
    flatten.load(model, inner, ranks)
    windows = Windows(np.arange(40, dtype=np.uint16), 8)
    held_out_loss(model, windows, windows.spread(8), 4, ranks)
    out = np.empty_like(outer)
    assert flatten.pseudo_gradient(model, outer, out, ranks)
    assert np.array_equal(out, outer - inner)
    inner[5] = np.inf
    flatten.load(model, inner, ranks)
    assert not flatten.pseudo_gradient(model, outer, out, ranks)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_genesis_is_the_models_bytes_under_the_state_digest_of_round_0(momentum, owner, tmp_path, make_run):
    draft: Draft = make_run().manifest.draft
    draft = dataclasses.replace(draft, outer=dataclasses.replace(draft.outer, momentum=momentum))
    settings = make_genesis(draft, tmp_path / "genesis")
    data = (tmp_path / "genesis").read_bytes()
    assert len(data) == 4 * settings.numel
    vector = np.frombuffer(data, "<f4")
    part = draft.exchange.part_elements
    chunks = [array_digest(vector[start:start + part]) for start in range(0, vector.size, part)]
    if momentum:
        chunks += [array_digest(np.zeros_like(vector[start:start + part])) for start in range(0, vector.size, part)]
    assert settings.digest == state_digest(0, 0, chunks)
    assert genesis_digest(read_vector(tmp_path / "genesis", settings.numel), draft) == settings.digest
    assert make_genesis(draft, tmp_path / "again") == settings


def test_a_genesis_file_of_another_size_is_refused(tmp_path):
    (tmp_path / "genesis").write_bytes(b"\0" * 12)
    with pytest.raises(MismatchError, match="12 bytes"):
        read_vector(tmp_path / "genesis", 4)
