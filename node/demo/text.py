"""Numbers and names as people read them in the demo's view and summary. Pure."""

from collections.abc import Sequence

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


def short(peer_id: str) -> str:
    """The end of a PeerID tells peers apart; its beginning is the same for all."""
    return f"…{peer_id[-6:]}" if peer_id else "…"


def sparkline(values: Sequence[float], *, width: int = 40, unicode: bool = True) -> str:
    """Values as a line of blocks, low to high, at most `width` of them."""
    if not values:
        return ""
    last = len(values) - 1
    chosen = values if last < width else [values[index * last // (width - 1)] for index in range(width)]
    low, high = min(chosen), max(chosen)
    blocks = _BLOCKS if unicode else _ASCII_BLOCKS
    return "".join(blocks[round((value - low) / (high - low) * 7) if high > low else 0] for value in chosen)


def bytes_text(count: float) -> str:
    """Bytes in decimal units, three significant figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
