"""Which documents are held out: one in `held_out_every`, by a hash of the file's name or the row's text.

The same document is on the same side on every machine and in every order. Where hashing leaves too little on one side
(a corpus of a few documents), the token builder cuts the text itself at `tail_cut`.
"""

from atoll.protocol.digest import content_digest

MINIMUM_TOKENS = 4
"""Two tokens to train on and two held out: below this there is nothing to predict."""


def is_held_out(split_key: bytes, every: int) -> bool:
    return int.from_bytes(content_digest(b"held out\0" + split_key)[:8], "little") % every == 0


def tail_cut(training: int, held_out: int, every: int) -> int | None:
    """Where to cut training + held-out tokens, laid end to end, so that the rest is held out; None to keep the split.

    Kept is a split with at least a quarter of the intended held-out share and at least half of the text to train on.
    """
    total = training + held_out
    target = max(2, total // every)
    if held_out >= max(2, target // 4) and training >= max(2, total // 2):
        return None
    return total - min(target, total // 2)
