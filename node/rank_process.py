"""One local training process: `python -m atoll.node.rank_process`, started by the supervisor only.

Gives rank 0 the port to the p2p service and runs the trainer. A request to stop reaches rank 0 through that port, at
the next step boundary; the other ranks follow it.
"""

import sys
from pathlib import Path
from typing import Any

from atoll.node import lifeline
from atoll.node.child_main import run_child
from atoll.node.errors import DrainingError
from atoll.node.outer_sync import SocketOuterSync
from atoll.trainer.rank import RankSettings, run_rank


def main() -> int:
    return run_child("rank", _run)


def _run(tree: dict[str, Any]) -> None:
    settings = RankSettings(
        rank=tree["rank"],
        world_size=tree["world_size"],
        local_rank=tree["local_rank"],
        store_file=Path(tree["store_file"]),
        manifest=Path(tree["manifest"]),
        tokenizer=Path(tree["tokenizer"]) if tree["tokenizer"] else None,
        data=tuple(Path(path) for path in tree["data"]),
        peer_id=tree["peer_id"],
        folder=Path(tree["folder"]),
        threads=tree["threads"],
    )
    port = SocketOuterSync(Path(tree["socket"]))
    lifeline.watch(port.request_stop)
    try:
        run_rank(settings, port.open)
    except DrainingError:
        return
    finally:
        port.close()


if __name__ == "__main__":
    sys.exit(main())
