"""The live view fits what it is given; the plain one says each thing once."""

import io

from rich.console import Console

from atoll.node.demo.snapshot import Snapshot
from atoll.node.demo.view import Frame, LiveView, PlainView, open_view, render


def frame(number, state="TRAIN", **more):
    peers = [Snapshot(index, f"12D3KooWpeer{index}", state=state, round=number, inner_step=5, inner_steps=20, loss=2.5,
                      tokens_per_s=4000.0, up_bytes=3_000_000, **more) for index in (1, 2)]
    return Frame(peers, rounds=8, seconds=12.0, curve=[5.5, 3.0][:number + 1])


def test_a_dumb_terminal_and_a_pipe_get_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_view(Console(file=io.StringIO(), force_terminal=True)), PlainView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_view(Console(file=io.StringIO())), PlainView)


def test_a_terminal_gets_the_live_table(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    view = open_view(Console(file=out, force_terminal=True, width=110))
    assert isinstance(view, LiveView)
    view.update(frame(1))
    view.note("killed peer 2")
    view.close()
    assert "killed peer 2" in out.getvalue()


def test_the_table_shows_every_promised_column():
    console = Console(file=io.StringIO(), record=True, width=110)
    console.print(render(frame(1, warnings=("the clock is 4 s off",))))
    text = console.export_text()
    for words in ("state", "round", "inner step", "loss", "tokens/s", "up", "down",
                  "TRAIN", "1/8", "5/20", "2.500", "4,000", "3 MB", "the clock is 4 s off", "training loss 3.000"):
        assert words in text


def test_plain_lines_tell_a_round_and_an_end_once():
    out = io.StringIO()
    view = PlainView(Console(file=out))
    for shown in (frame(0), frame(0), frame(1), frame(1), frame(1, state="GONE", reason="killed by hand")):
        view.update(shown)
    text = out.getvalue()
    assert text.count("round 1/8 certified") == 1
    assert text.count("is running") == 2
    assert text.count("is gone: killed by hand") == 2


def test_what_several_peers_complain_of_takes_one_line():
    console = Console(file=io.StringIO(), record=True, width=80)
    console.print(render(frame(1, warnings=("refused: " + "nobody listens there, " * 10,))))
    lines = [line for line in console.export_text().splitlines() if "refused" in line]
    assert len(lines) == 1
    assert lines[0].startswith("peer 1, 2: refused: nobody")
