"""`atoll rounds` tells who took part, who dropped out and where a new lineage began, in 100 columns."""

import json

import pytest

from atoll.node.cli.rounds import tell
from atoll.p2p.run_store import LogEntry, RunStore, story
from atoll.protocol.identity import peer_name


@pytest.fixture
def names(told):
    return [f"…{peer_name(key.peer_id)[-8:]}" for key in told.keys]


@pytest.fixture
def rows(told):
    dropped = ((told.keys[1].peer_id, "exchange"), (told.keys[2].peer_id, "vote"))
    lost = {3: dropped}
    return story(LogEntry(link, 12.34, 2_500_000, 999, lost.get(at, ())) for at, link in enumerate(told.links))


def test_the_story_is_told_line_by_line(rows, names):
    lines = list(tell(rows))
    assert all(len(line) <= 100 for line in lines), lines
    text = "\n".join(lines)
    by_round = {line.split()[0]: line for line in lines if line.split()[0].isdigit()}
    assert sorted(by_round) == list("1234567")
    assert all(name in by_round["1"] for name in names[:3])
    assert "4 peers" in by_round["2"]
    assert "nobody: the state stays" in by_round["7"]
    for part in ("12.3 s", "2.5 MB", "999 B", rows[0]["state_digest"][:10]):
        assert part in by_round["1"]
    at = lines.index(by_round["4"])
    assert lines[at + 1].strip() == f"dropped out: {names[1]} in exchange; {names[2]} in vote"
    assert f"voters: 4 from here on; {names[3]} came in" in text


def test_a_line_tells_where_a_fork_begins_who_went_on_and_why(rows, names):
    lines = list(tell(rows))
    at = next(at for at, line in enumerate(lines) if "FORK" in line)
    assert lines[at + 2].split()[0] == "5" or lines[at + 1].split()[0] == "5"
    sentence = " ".join("".join(lines[at : at + 2]).split())
    assert f"FORK {rows[4]['fork']['id'][:10]}: a new lineage begins. {names[0]} went on: voters" in sentence
    assert "(rank 1)" in sentence
    assert sum("FORK" in line for line in lines) == 1


def test_large_rounds_keep_to_the_width(rows):
    peer = rows[0]["contributors"][0]["peer_id"]
    big = rows[0] | {
        "round": 99_999, "contributors": [{"peer_id": peer, "tokens": 10**13}] * 1000, "seconds": 86_399.0,
        "dropped": [{"peer_id": peer, "phase": "exchange"}] * 40, "bytes_up": 99 * 10**9,
    }
    lines = list(tell([big, rows[1]]))
    assert all(len(line) <= 100 for line in lines)
    assert "1000 peers" in lines[1]
    assert "and 32 more" in " ".join(lines[2:5])


def test_without_a_daemon_the_homes_log_tells_and_json_has_the_rows(atoll, home, told):
    home.current_run.write_text(told.manifest.run_id.hex() + "\n")
    told.write(home.run_folder(told.manifest.run_id))
    shown = atoll("rounds", "--home", home.root)
    assert shown.returncode == 0, shown
    assert "took part" in shown.stdout.splitlines()[0]
    rows = json.loads(atoll("rounds", "--json", "--home", home.root).stdout)["rounds"]
    store = RunStore(home.run_folder(told.manifest.run_id))
    assert rows == json.loads(json.dumps(story(store.log())))
    assert rows[4]["fork"]["rank"] == 1
