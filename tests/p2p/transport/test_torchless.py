"""hivemind without torch, in processes of their own: what is loaded stays loaded."""

import json
import logging
import subprocess
import sys

from atoll.p2p.transport import torchless

PROBE = """
import json, psutil, sys
from atoll.p2p.transport import hivemind, memory, torchless
hivemind_before = "hivemind" in sys.modules
torchless.load()
from hivemind.dht.node import DHTNode
heavy = [name for name in ("torch", "transformers", "libp2p", "numpy.testing") if name in sys.modules]
print(json.dumps([hivemind_before, heavy, psutil.Process().memory_info().rss]))
"""


def test_hivemind_is_loaded_late_without_torch_and_in_modest_memory():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    loaded_on_import, heavy, rss = json.loads(done.stdout)
    assert not loaded_on_import
    assert heavy == []
    assert rss < 80 << 20
    assert done.stderr == ""


def test_hiveminds_lines_go_to_our_logger_and_not_to_the_terminal(caplog, capfd):
    torchless.load()
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    theirs = logging.getLogger("hivemind.p2p.p2p_daemon")
    with caplog.at_level(logging.DEBUG, logger=torchless.LOGGER_NAME):
        theirs.error("something %s", "loud")
        theirs.warning("something quiet")
    assert [(one.levelname, one.getMessage()) for one in caplog.records if one.name == torchless.LOGGER_NAME] == [
        ("INFO", "hivemind.p2p.p2p_daemon: something loud"), ("DEBUG", "hivemind.p2p.p2p_daemon: something quiet")]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
