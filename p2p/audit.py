"""Is this training log what it says it is? Checks a chain of certificates and FORKs again, by the manifest alone.

The rules are `round.chain`'s, which takes a link in or refuses it; here is one place further on in the log each time,
and words for what is wrong: once a link is refused, each of its signatures is looked at by itself. A contribution can
only be in the one certificate behind its base, since each link must hang on the one before it and lists a peer once.
Knows no files and no states (`replay` does), and needs no daemon. Used by `node.inspect_log`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain, Link, Tip, check_value, check_votes, parent_of
from atoll.protocol.certificate import Certificate, Value, round_tokens
from atoll.protocol.digest import Digest
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId, peer_name
from atoll.protocol.manifest import Manifest

_SHOWN = 16
"""Hexadecimal digits of an id in a sentence."""


@dataclass(frozen=True)
class Finding:
    """One thing to say about a log. `where` names the round or FORK, `byte` is where its entry begins in the file."""

    where: str
    message: str
    round: int | None = None
    link: Digest | None = None
    byte: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class Audit:
    """Give it the links of a log in order. It stops at the first that does not hold: all behind it hangs on that one.

    `problems` are what makes a log invalid; `notices` are worth a look and break no rule.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.chain = Chain(
            manifest.run_id, electorates.genesis(manifest.electorate), manifest.genesis.digest, manifest.layout,
            owner=manifest.owner, settings=manifest.draft.exchange,
        )
        self.tip: Tip = self.chain.genesis
        self.problems: list[Finding] = []
        self.notices: list[Finding] = []
        self.links = 0  # that hold
        self.unchecked = 0  # that came behind one that does not
        self._counted: dict[tuple[PeerId, Digest], int] = {}  # contributions by peer and root: round

    @property
    def certificates(self) -> list[Certificate]:
        """Those that hold, oldest first."""
        return [link for link in self.chain.lineage(self.tip.id) if isinstance(link, Certificate)]

    def add(self, link: Link, byte: int | None = None) -> bool:
        """Check the next link of the log; whether it holds."""
        if self.problems:
            self.unchecked += 1
            return False
        faults = self._faults(link)
        for fault in faults:
            self.problems.append(self._finding(link, fault, byte))
        if faults:
            return False
        if isinstance(link, Certificate):
            self.notices += [self._finding(link, words, byte) for words in self._odd(link.value)]
        self.links, self.tip = self.links + 1, self.chain.tip_of(link.id)
        return True

    def damaged(self, message: str, byte: int) -> None:
        """The log cannot be read from here on."""
        self.problems.append(Finding(f"behind {place(self.tip)}", message, byte=byte))

    def _faults(self, link: Link) -> list[str]:
        if parent_of(link) != self.tip.id:
            return [self._misplaced(parent_of(link))]
        try:
            self.chain.add(link)
        except (MalformedError, SignatureError) as error:
            if isinstance(link, Fork):
                return list(_of_fork(self.chain, link, self.tip)) or [str(error)]
            return list(_of_certificate(self.chain, link, self.tip)) or [str(error)]
        return []

    def _misplaced(self, parent: Digest) -> str:
        shown = parent.hex()[:_SHOWN]
        if self.tip is self.chain.genesis:
            return (f"begins behind {shown}…, and this run is {self.tip.id.hex()[:_SHOWN]}…: it is another run's log, "
                    "or its first links are missing")
        if parent in self.chain:
            return (f"belongs behind {place(self.chain.tip_of(parent))}, and stands behind {place(self.tip)}: the "
                    "links are in another order, or a lineage that was left is mixed in")
        return (f"belongs behind {shown}…, which is not before it: the link between it and {place(self.tip)} is "
                "missing or was changed")

    def _odd(self, value: Value) -> Iterator[str]:
        for record in value.records:
            try:
                record.has_ticket(self.chain.policy.run_id, self.chain.policy.owner)
            except SignatureError:
                yield f"the ticket of {peer_name(record.peer)} is not signed by the run's owner and counts for nothing"
        for listed in value.contributions:
            before = self._counted.setdefault((listed.peer, listed.root), value.round)
            if before != value.round:
                yield (f"the contribution of {peer_name(listed.peer)} has the same bytes as its one in round {before}: "
                       "it was trained on nothing new, or was counted twice")

    def _finding(self, link: Link, message: str, byte: int | None) -> Finding:
        at = self.tip.round if isinstance(link, Fork) else self.tip.round + 1
        where = f"the FORK behind {place(self.tip)}" if isinstance(link, Fork) else f"round {at}"
        return Finding(where, message, at, link.id, byte)


def place(tip: Tip) -> str:
    """A place in the log, in words."""
    base = f"round {tip.round}" if tip.round else "genesis"
    return f"the FORK behind {base}" if tip.is_fork else base


# What is wrong with a link that the chain has refused.


def _of_certificate(chain: Chain, certificate: Certificate, parent: Tip) -> Iterator[str]:
    yield from _of_value(chain, certificate.value, parent)
    entries = {entry.peer: entry.journal for entry in parent.countable}
    void: list[PeerId] = []
    seen: set[PeerId] = set()
    for vote in certificate.votes:
        name = peer_name(vote.peer)
        if vote.peer not in entries:
            yield f"carries a vote of {name}, which is not in the electorate"
        elif entries[vote.peer] != vote.journal:
            yield f"carries a vote of {name} under another journal than its parent names"
        elif vote.peer in seen:
            yield f"carries two votes of {name}"
        seen.add(vote.peer)
        try:
            vote.check()
        except SignatureError:
            void.append(vote.peer)
    if void and len(void) == len(certificate.votes) > 1:
        yield f"none of its {len(void)} votes is signed for what it says: it was changed after they were cast"
    else:
        yield from (f"the vote of {peer_name(peer)} is not signed by that key for what it says" for peer in void)
    if not void:
        try:
            check_votes(certificate, parent)
        except SignatureError as error:
            if not electorates.is_quorum(parent.electorate, seen):
                yield _without_subject(error)


def _of_value(chain: Chain, value: Value, parent: Tip) -> Iterator[str]:
    unsigned = []
    for record in value.records:
        try:
            record.check(parent.base)
        except SignatureError:
            name = peer_name(record.peer)
            unsigned.append(f"the {record.kind.name} of {name} is not signed by that key for this round")
    yield from unsigned
    try:
        check_value(value, parent, chain.sizes, chain.policy)
    except MalformedError as error:
        yield _without_subject(error) + _detail(chain, value, parent)
    except SignatureError as error:
        if not unsigned:
            yield _without_subject(error)


def _detail(chain: Chain, value: Value, parent: Tip) -> str:
    """What the rules give instead, where that can be said."""
    if len(value.parts) != len(chain.sizes):
        return ""
    tokens = parent.tokens + round_tokens(value.contributions, value.parts, chain.sizes)
    if tokens != value.tokens:
        return f" ({value.tokens:,} instead of {tokens:,})"
    try:
        after = electorates.successor(
            parent.standings, chain.policy, value.contributions, value.attendance, value.records).electorate
    except IndexError:  # an attendance that is too short
        return ""
    named, right = {v.peer: v for v in value.electorate}, {v.peer: v for v in after}
    added, left = sorted(named.keys() - right.keys()), sorted(right.keys() - named.keys())
    said = [f"{peer_name(peer)} does not belong there" for peer in added]
    said += [f"{peer_name(peer)} is missing" for peer in left]
    said += [f"{peer_name(peer)} is there under another journal" for peer in sorted(named.keys() & right.keys())
             if named[peer] != right[peer]]
    return f" ({'; '.join(said)})" if said else ""


def _of_fork(chain: Chain, fork: Fork, parent: Tip) -> Iterator[str]:
    allowed = chain.may_sign(parent, fork.rank)
    found = False
    for promise in fork.promises:
        try:
            promise.check()
        except SignatureError:
            found = True
            yield f"the last promise of {peer_name(promise.peer)} is not signed by that key for what it says"
        if allowed is not None and promise.peer not in allowed:
            found = True
            yield f"{peer_name(promise.peer)} may not sign a FORK of rank {int(fork.rank)} ({fork.rank.name}) here"
    if found:
        return
    try:
        chain.check_fork(fork, parent)
    except (MalformedError, SignatureError) as error:
        inner = list(_of_value(chain, fork.value, parent)) if fork.value is not None else []
        yield from [f"the value that it carries {text}" for text in inner] or [_without_subject(error)]


def _without_subject(error: Exception) -> str:
    """The sentence of a rule, to stand behind the name of a round or FORK."""
    text = str(error)
    for subject in ("the value ", "a certificate ", "a FORK "):
        text = text.removeprefix(subject)
    return text
