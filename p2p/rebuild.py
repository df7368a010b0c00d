"""The outer state at the end of a lineage, from what is on this disk: after a restart, and when lineages are switched.

Trusts nothing but the certificates it is given: every state on the way is held against its certified digest. Knows no
chain and does not fetch. Used by `boot.resume` and `Workshop.adopt`.
"""

from collections.abc import Sequence

from atoll.p2p.blobs import BlobStore
from atoll.p2p.outer_state import Chunks, OuterState, Stepper, load_genesis, load_state
from atoll.p2p.run_store import RunStore
from atoll.protocol.certificate import Certificate
from atoll.protocol.errors import MismatchError
from atoll.protocol.manifest import Manifest


def rebuild(store: RunStore, blobs: BlobStore, manifest: Manifest, lineage: Sequence[Certificate]) -> OuterState:
    """The state after the last certificate of `lineage` (from genesis, oldest first), in new vectors.

    Starts from the newest intact saved state that lies on the lineage, else from genesis; a damaged one is removed.
    Raises MissingBytesError with the first certificate whose results are gone; MismatchError where genesis is damaged,
    or certified results lead to another state than the certified one.
    """
    stepper = Stepper(manifest, blobs)
    state, done = _newest(store, manifest, lineage)
    for certificate in lineage[done:]:
        stepper.check_bytes(certificate)  # of all, before the long work
    chunks: dict[int, Chunks] = {}
    for certificate in lineage[done:]:
        chunks = stepper.advance(state, certificate, chunks)
    return state


def _newest(store: RunStore, manifest: Manifest, lineage: Sequence[Certificate]) -> tuple[OuterState, int]:
    """A state on the lineage, and how many certificates led to it."""
    saved = store.saved_states()
    for done in range(len(lineage), 0, -1):
        value = lineage[done - 1].value
        if value.id in saved:
            try:
                return load_state(saved[value.id], manifest, value.id, value.round, value.tokens, value.state), done
            except MismatchError:
                saved[value.id].unlink()  # torn or damaged: an older one and the log serve as well
    return load_genesis(store.genesis, manifest), 0
