"""Bringing a run's folder to life: manifest and genesis in place, log replayed, state at the tip. For the service."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from atoll.p2p.blobs import BlobStore
from atoll.p2p.fetch import Fetcher
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.p2p.workshop import OuterState, Workshop, load_state
from atoll.protocol import canonical
from atoll.protocol.digest import Digest, array_digest, content_digest, state_digest
from atoll.protocol.errors import MismatchError
from atoll.protocol.manifest import Manifest
from atoll.protocol.messages import BlobKind


@dataclass
class Resumed:
    chain: Chain
    workshop: Workshop
    history: list[LogEntry]
    digest: Digest


def keep_manifest(store: RunStore, manifest: Manifest, genesis: Path | None) -> None:
    """Put the manifest, and a genesis file that its owner made, into the run's folder. Raises MismatchError."""
    if not store.manifest.exists():
        partial = store.manifest.with_suffix(".partial")
        partial.write_bytes(manifest.signed_bytes())
        partial.rename(store.manifest)
    if genesis is not None and not store.genesis.exists():
        partial = store.genesis.with_suffix(".partial")
        shutil.copyfile(genesis, partial)
        if state_digest(0, 0, _genesis_chunks(partial, manifest)) != manifest.genesis.digest:
            partial.unlink()
            raise MismatchError(
                f"{genesis} is not the genesis that the manifest names; "
                "take the one written beside it by `atoll run sign`."
            )
        partial.rename(store.genesis)
        tokenizer = genesis.with_name("tokenizer.json")
        if manifest.draft.model.tokenizer != "bytes" and tokenizer.exists() and not store.tokenizer.exists():
            shutil.copyfile(tokenizer, store.tokenizer)


async def fetch_missing(fetcher: Fetcher, manifest: Manifest, store: RunStore, blobs: BlobStore) -> None:
    """Get from peers what the folder lacks: genesis, tokenizer. Resumes where it was interrupted."""
    digest = manifest.draft.model.tokenizer_digest
    if manifest.draft.model.tokenizer != "bytes" and not (
        store.tokenizer.exists() and content_digest(store.tokenizer.read_bytes()) == digest
    ):
        partial = store.tokenizer.with_suffix(".partial")
        partial.write_bytes(await fetcher.fetch(BlobKind.TOKENIZER, digest))
        partial.rename(store.tokenizer)
    if not store.genesis.exists():
        await fetcher.genesis(manifest, blobs, store.genesis)


def resume(store: RunStore, blobs: BlobStore, manifest: Manifest) -> Resumed:
    """The chain from the log, and the state at its tip: from the newest intact state on disk, later results
    applied.

    Raises MismatchError if genesis is damaged.
    """
    chain = Chain(manifest.run_id, electorates.genesis(manifest.electorate), manifest.genesis.digest, manifest.layout)
    history = store.log()
    workshop = Workshop(manifest, blobs, _newest(store, manifest, history))
    _serve_genesis(store, blobs, manifest)
    kept, reached = [], workshop.state.parent == manifest.run_id
    for entry in history:
        certificate = entry.certificate
        chain.check(certificate)
        if reached:
            if any(blobs.size(part.digest) is None for part in certificate.value.parts):
                break  # its results are gone from this disk: peers still have them
            workshop.commit(certificate)
        reached = reached or certificate.id == workshop.state.parent
        chain.append(certificate)
        kept.append(entry)
    if len(kept) < len(history):
        store.rewrite(kept)
    blobs.retain(BlobKind.PART, [chain.tip.id])
    recent = kept[-manifest.draft.exchange.retain_rounds :]
    blobs.retain(BlobKind.RESULT, [chain.tip.id, *(entry.certificate.value.parent for entry in recent)])
    return Resumed(chain, workshop, kept, chain.tip.state)


def _newest(store: RunStore, manifest: Manifest, history: list[LogEntry]) -> OuterState:
    saved = store.saved_states()
    for entry in reversed(history):
        value = entry.certificate.value
        if value.id in saved:
            try:
                return load_state(saved[value.id], manifest, value.id, value.round, value.tokens, value.state)
            except MismatchError:
                saved[value.id].unlink()  # torn or damaged: an older one and the log serve as well
    if state_digest(0, 0, _genesis_chunks(store.genesis, manifest)) != manifest.genesis.digest:
        raise MismatchError(f"{store.genesis} is damaged: remove it, and it is fetched from peers again.")
    params = np.fromfile(store.genesis, dtype="<f4").astype(np.float32, copy=False)
    momentum = np.zeros_like(params) if manifest.draft.outer.momentum > 0 else None
    return OuterState(manifest.run_id, 0, 0, params, momentum)


def _genesis_chunks(path: Path, manifest: Manifest) -> list[Digest]:
    """Chunk digests of genesis, read part by part: the parameters', and zeros for the momentum where there is one."""
    if path.stat().st_size != 4 * manifest.genesis.numel:
        raise MismatchError(
            f"{path} has {path.stat().st_size} bytes, this run's genesis has {4 * manifest.genesis.numel}."
        )
    layout = manifest.layout
    values = np.memmap(path, dtype="<f4", mode="r")
    chunks = [array_digest(np.array(values[bounds], dtype=np.float32)) for bounds in layout]
    if manifest.draft.outer.momentum > 0:
        chunks += [array_digest(np.zeros(layout.size(part), np.float32)) for part in range(layout.parts)]
    return chunks


def _serve_genesis(store: RunStore, blobs: BlobStore, manifest: Manifest) -> None:
    """Let newcomers fetch manifest, tokenizer and genesis from this peer."""
    chunks = _genesis_chunks(store.genesis, manifest)
    for chunk, bounds in zip(chunks, manifest.layout, strict=False):
        blobs.register(chunk, store.genesis, 4 * bounds.start, 4 * (bounds.stop - bounds.start))
    listing = store.folder / "genesis_chunks"
    listing.write_bytes(canonical.encode(chunks))
    blobs.register(manifest.genesis.digest, listing, 0, listing.stat().st_size)
    blobs.register(manifest.run_id, store.manifest, 0, store.manifest.stat().st_size)
    if store.tokenizer.exists():
        blobs.register(manifest.draft.model.tokenizer_digest, store.tokenizer, 0, store.tokenizer.stat().st_size)
