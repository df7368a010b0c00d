"""Batches of token sequences: what every rank of a peer trains on and evaluates, from mapped token files.

A sequence is a window of `length` inputs and their successors; the last window of a corpus may be shorter and is padded
with targets that count for nothing. The only state is a *position*, the number of sequences that the peer has drawn
since it began: every rank computes the same batch from it and takes its own rows, so 1 rank and N ranks consume the
same data. A corpus smaller than a batch is simply met more than once. Knows no torch.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from atoll.trainer.data.order import Indices, permuted

IGNORED = -100
"""Target of padding, by the convention of torch's cross entropy."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Batch:
    """One rank's rows. `tokens` counts the real targets of all ranks together, the same number on each."""

    inputs: npt.NDArray[np.int64]   # (rows, length)
    targets: npt.NDArray[np.int64]  # (rows, length), IGNORED where there is none
    tokens: int


class Windows:
    """A token vector cut into sequences. `rows` reads a rank's share of some of them."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        if tokens.size < 2:
            raise ValueError(f"{tokens.size} tokens have nothing to predict")
        self._tokens, self.length = tokens, length
        self.count = -(-(tokens.size - 1) // length)

    def rows(self, indices: Indices, rank: int, ranks: int) -> Batch:
        """Rank `rank`'s rows of a batch: as many on every rank, filled up with rows that count for nothing.

        Ranks must run the same number of rows, or the one with less would leave a collective that others wait in.
        """
        share = -(-indices.size // ranks)
        inputs = np.zeros((share, self.length), np.int64)
        targets = np.full((share, self.length), IGNORED, np.int64)
        for row, index in enumerate(indices[rank * share:(rank + 1) * share]):
            window = self._tokens[index * self.length:(index + 1) * self.length + 1].astype(np.int64)
            inputs[row, :window.size - 1] = window[:-1]
            targets[row, :window.size - 1] = window[1:]
        return Batch(inputs, targets, self.real(indices))

    def targets(self, index: int) -> npt.NDArray[np.uint32]:
        """The ids that a sequence predicts."""
        return self._tokens[index * self.length + 1:(index + 1) * self.length + 1].astype(np.uint32)

    def real(self, indices: Indices) -> int:
        """Real targets in these sequences."""
        return int(np.minimum(self._tokens.size - 1 - indices * self.length, self.length).sum())

    def spread(self, tokens: int) -> Indices:
        """Sequences of about `tokens` tokens, spread evenly over all of them: the ones that are evaluated."""
        wanted = min(self.count, max(1, -(-tokens // self.length)))
        return np.arange(wanted, dtype=np.int64) * self.count // wanted


class Loader:
    """A peer's training data in its own deterministic order, from (run seed, PeerID, epoch)."""

    def __init__(self, windows: Windows, seed: int, peer_id: bytes, position: int = 0) -> None:
        self._windows, self._seed, self._peer_id = windows, seed, peer_id
        self.position = position

    @property
    def epoch(self) -> int:
        return self.position // self._windows.count

    def next(self, sequences: int, rank: int, ranks: int) -> Batch:
        """The next batch of `sequences` over all ranks; moves the position on."""
        positions = np.arange(self.position, self.position + sequences, dtype=np.int64)
        epochs, within = np.divmod(positions, self._windows.count)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            indices[chosen] = permuted(within[chosen], self._windows.count, self._seed, self._peer_id, epoch)
        self.position += sequences
        return self._windows.rows(indices, rank, ranks)
