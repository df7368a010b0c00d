"""Bringing a run's folder to life: manifest and genesis in place, log replayed, state at the tip. For the service."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from atoll.p2p.blobs import BlobStore
from atoll.p2p.fetch import Fetcher
from atoll.p2p.journal import Journal
from atoll.p2p.outer_state import OuterState, genesis_chunks
from atoll.p2p.rebuild import rebuild
from atoll.p2p.residuals import FileResiduals
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.p2p.run_store import LogEntry, RunStore
from atoll.p2p.workshop import Workshop
from atoll.protocol import canonical
from atoll.protocol.certificate import Certificate
from atoll.protocol.codecs.registry import codec
from atoll.protocol.digest import Digest, content_digest, state_digest
from atoll.protocol.errors import MismatchError, MissingBytesError
from atoll.protocol.identity import PeerId
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
        if state_digest(0, 0, genesis_chunks(partial, manifest)) != manifest.genesis.digest:
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


def resume(
    store: RunStore, blobs: BlobStore, manifest: Manifest, journal: Journal, own: PeerId | None = None
) -> Resumed:
    """The chain from the log, and the state at its tip.

    Where results are gone from this disk the log ends: peers still have them. A FORK at its end stays. A journal that
    remembers only what came after that end has forgotten votes under parents that come again: a new one is begun.
    `own` is this peer's id, needed where the contribution codec uses error feedback. Raises MismatchError if genesis is
    damaged; MalformedError, SignatureError or KeyError for a log that is not this run's.
    """
    history, state = _intact(store, blobs, manifest)
    lineage = certificates(history)
    workshop = Workshop(
        manifest, blobs, state, lineage=lineage, store=store, own=own, residuals=_residuals(store, manifest),
    )
    _serve_genesis(store, blobs, manifest)
    chain = Chain(
        manifest.run_id, electorates.genesis(manifest.electorate), manifest.genesis.digest, manifest.layout,
        owner=manifest.owner, settings=manifest.draft.exchange,
    )
    for entry in history:
        chain.append(entry.link)
    if journal.floor and not any(parent in chain for parent in journal.floor):
        journal.renew()
    recent = [manifest.run_id, *(certificate.id for certificate in lineage)]
    recent = recent[-manifest.draft.exchange.retain_rounds - 1 :]
    blobs.retain(BlobKind.PART, recent)
    blobs.retain(BlobKind.RESULT, recent)
    return Resumed(chain, workshop, history, chain.tip.state)


def certificates(history: Iterable[LogEntry]) -> list[Certificate]:
    """The certificates of a log, without its FORKs."""
    return [entry.certificate for entry in history if entry.certificate is not None]


def _intact(store: RunStore, blobs: BlobStore, manifest: Manifest) -> tuple[list[LogEntry], OuterState]:
    """The log as far as its states can be had, and the last of them; the rest is cut off the file."""
    history = store.log()
    while True:
        try:
            return history, rebuild(store, blobs, manifest, certificates(history))
        except MissingBytesError as error:
            gone = next(at for at, entry in enumerate(history) if entry.link.id == error.certificate)
            history = history[:gone]
            store.rewrite(history)


def _residuals(store: RunStore, manifest: Manifest) -> FileResiduals | None:
    if codec(manifest.draft.exchange.contribution_codec).error_feedback:
        return FileResiduals(store.folder / "residuals", manifest.layout)
    return None


def _serve_genesis(store: RunStore, blobs: BlobStore, manifest: Manifest) -> None:
    """Let newcomers fetch manifest, tokenizer and genesis from this peer."""
    chunks = genesis_chunks(store.genesis, manifest)
    for chunk, bounds in zip(chunks, manifest.layout, strict=False):
        blobs.register(chunk, store.genesis, 4 * bounds.start, 4 * (bounds.stop - bounds.start))
    listing = store.folder / "genesis_chunks"
    listing.write_bytes(canonical.encode(chunks))
    blobs.register(manifest.genesis.digest, listing, 0, listing.stat().st_size)
    blobs.register(manifest.run_id, store.manifest, 0, store.manifest.stat().st_size)
    if store.tokenizer.exists():
        blobs.register(manifest.draft.model.tokenizer_digest, store.tokenizer, 0, store.tokenizer.stat().st_size)
