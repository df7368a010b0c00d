"""The transition table: what a message under the tip does in each phase. `round` dispatches by it, and by nothing else.

A message under an older parent is answered by CERT and one under a parent not reached yet waits, in every phase; the
last column of DESIGN's table, timeouts, is `lead.turn_at` and `lastballot.due_at`, which say for each phase when.
"""

import enum
from collections.abc import Mapping

from atoll.p2p.round.core import Phase
from atoll.protocol.messages import Blob, Cert, Get, Prepare, Promise, Propose, Ready, Start, Voted


class Do(enum.StrEnum):
    NOTE = "note who is there, what it has made and what it wants"
    SERVE = "answer with what is known"
    BEGIN = "freeze, send contribution parts to their owners"
    STORE = "store, reduce, step, and try again to vote"
    PROMISE = "promise; with a nonce: the last promise"
    LAST = "the last promise again, nothing else"
    GATHER = "count for this peer's own ballot, or its last one"
    PEND = "make it the pending proposal, vote as soon as rule 3 allows"
    COUNT = "count the vote"
    CHOOSE = "take into the tree, then fork choice"
    IGNORE = "nothing"


_ALWAYS: dict[type, Do] = {Ready: Do.NOTE, Get: Do.SERVE, Blob: Do.STORE, Voted: Do.COUNT, Cert: Do.CHOOSE}
_VOTING: dict[type, Do] = {**_ALWAYS, Prepare: Do.PROMISE, Promise: Do.GATHER, Propose: Do.PEND}
_PASSIVE: dict[type, Do] = {**_ALWAYS, Start: Do.IGNORE, Prepare: Do.IGNORE, Promise: Do.IGNORE, Propose: Do.IGNORE}

TABLE: Mapping[Phase, Mapping[type, Do]] = {
    Phase.TRAIN: {**_VOTING, Start: Do.BEGIN},
    Phase.EXCHANGE: {**_VOTING, Start: Do.BEGIN},  # a newer START: the same bytes, perhaps to other owners
    Phase.VOTED: {**_VOTING, Start: Do.BEGIN},
    Phase.LEFT: {**_PASSIVE, Prepare: Do.LAST, Promise: Do.GATHER},
    Phase.APPLY: {**_VOTING, Start: Do.IGNORE},  # answers under the parent until the child's state is held
    Phase.SYNC: _PASSIVE,
    Phase.FINISHED: _PASSIVE,
}
