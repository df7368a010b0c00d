"""What the same training would have sent without Atoll: data parallelism that averages gradients at every step.

A ring all-reduce of fp32 gradients among n peers makes each of them send 2 (n - 1) / n x 4 x numel bytes per step
(Patarasuk and Yuan, 2009: that is the least any all-reduce can do). Pure; called by the demo's summary.
"""

GRADIENT_BYTES = 4


def ddp_bytes_per_peer(peers: int, numel: int, steps: int) -> int:
    """Bytes that each of `peers` sends in `steps` optimizer steps of per-step data parallelism."""
    return 2 * (peers - 1) * GRADIENT_BYTES * numel * steps // peers


def reduction(peers: int, numel: int, steps: int, sent_per_peer: float) -> float | None:
    """How many times fewer bytes a peer sent; None for a lone peer, which sends nothing either way."""
    if peers < 2 or sent_per_peer <= 0:
        return None
    return ddp_bytes_per_peer(peers, numel, steps) / sent_per_peer
