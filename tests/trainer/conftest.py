"""A process group of one rank for the whole session, and small runs on small text."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, Manifest


@dataclass(frozen=True)
class SmallRun:
    """A signed run with its genesis file, and the corpus that its peers train on."""

    manifest: Manifest
    manifest_file: Path
    genesis: Path
    corpus: Path


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import torch

    from atoll.trainer.ranks import joined_ranks

    torch.set_num_threads(1)
    with joined_ranks(0, 1, 0, tmp_path_factory.mktemp("store") / "file") as group:
        yield group


@pytest.fixture(scope="session")
def owner() -> Identity:
    return Identity(b"\x07" * 32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        lines = (f"Document {number}, line {line}: {'abcdefg'[line % 7] * (line % 5)}.\n" for line in range(12))
        (folder / f"{number:03}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory,
    owner: Identity,
    corpus: Path,
) -> Callable[..., SmallRun]:
    """A run of a tiny model; keyword arguments overlay the draft's tables."""
    from atoll.trainer.genesis import make_genesis

    def make(**tables: dict[str, Any]) -> SmallRun:
        tree: dict[str, dict[str, Any]] = {
            "run": {"name": "small", "owner": peer_name(owner.peer_id), "rounds": 3, "seed": 5},
            "model": {
                "config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
            },
            "data": {"source": "local", "sequence_length": 16, "evaluation_tokens": 256, "held_out_every": 8},
            "inner": {"steps": 4, "batch_sequences": 4, "warmup_steps": 3},
            "exchange": {"contribution_codec": "fp32", "gather_codec": "fp32", "token_unit": 1, "part_elements": 4096},
        }
        for name, values in tables.items():
            tree.setdefault(name, {}).update(values)
        draft = Draft.from_tree(tree)
        folder = tmp_path_factory.mktemp("run")
        manifest = Manifest.sign(draft, make_genesis(draft, folder / "genesis"), owner)
        (folder / "manifest").write_bytes(manifest.signed_bytes())
        return SmallRun(manifest, folder / "manifest", folder / "genesis", corpus)

    return make
