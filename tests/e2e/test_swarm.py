"""A run without an end: who listens where, a newcomer by invite, a peer that dies and comes back, and Ctrl-C."""

import os
import signal

import psutil


def test_a_running_swarm_from_first_round_to_ctrl_c(atoll, corpus):
    home = atoll.folder / "swarm"
    first, second, newcomer = home / "peer-1", home / "peer-2", atoll.folder / "newcomer"
    swarm = atoll.start("demo", "--peers", 2, "--rounds", 0, "--inner-steps", 2, "--data", corpus, "--home", home)
    atoll.wait("both peers past round 1", lambda: min(atoll.status(first)["round"], atoll.status(second)["round"]) >= 1)
    nothing_but_the_p2p_port_listens(atoll, {port_of(atoll.status(peer)) for peer in (first, second)})

    invite = atoll.run("invite", "--home", first).stdout.strip()
    assert len(invite.split()) == 1
    joined = atoll.start("up", "--run", invite, "--home", newcomer, "--loopback", "--threads", 1, "--data", corpus)
    atoll.wait("the newcomer contributes", lambda: contributed(atoll, first, newcomer), 120)
    same_state_at_the_same_round(atoll, first, newcomer)

    # Peer 2, one of two voters and not the more senior one, dies and is started again by its owner.
    pids = [process for process in atoll.processes() if str(second) in " ".join(process.cmdline())]
    for process in pids:
        process.send_signal(signal.SIGKILL)
    before = atoll.status(first)["round"]
    again = atoll.start("up", "--home", second)
    atoll.wait("the run goes on", lambda: atoll.status(first)["round"] >= before + 2)
    atoll.wait("peer 2 is back", lambda: atoll.status(second)["round"] >= before + 2)
    assert swarm.poll() is None

    assert atoll.interrupt(swarm) < 10
    assert swarm.returncode == 130
    assert again.wait(5) == 0
    assert joined.poll() is None
    assert atoll.run("down", "--home", newcomer).returncode == 0
    joined.wait(15)


def nothing_but_the_p2p_port_listens(atoll, ports):
    pids = {process.pid for process in atoll.processes()}
    pids |= {child.pid for pid in pids for child in psutil.Process(pid).children(recursive=True)}
    sockets = [socket for socket in psutil.net_connections("inet") if socket.pid in pids]
    listening = {(socket.laddr.ip, socket.laddr.port) for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert {("127.0.0.1", port) for port in ports} <= listening
    assert {ip for ip, _ in listening} == {"127.0.0.1"}
    bound = {socket.laddr for socket in sockets if socket.type.name == "SOCK_DGRAM"}
    assert not {address for address in bound if address.ip not in ("127.0.0.1", "::1")}


def port_of(status):
    return int(status["addresses"][0].split("/tcp/")[1].partition("/")[0])


def contributed(atoll, observer, newcomer):
    """The newcomer is listed in one of the last certificates."""
    name = atoll.json("id", "--home", newcomer)["peer_id"] if (newcomer / "identity.key").exists() else None
    rounds = atoll.json("rounds", "--home", observer)["rounds"]
    return any(name == row["peer_id"] for last in rounds[-3:] for row in last["contributors"])


def same_state_at_the_same_round(atoll, *homes):
    seen = {}

    def met():
        for home in homes:
            status = atoll.status(home)
            if status["state_digest"]:
                seen.setdefault(status["round"], {})[home] = status["state_digest"]
        return [digests for digests in seen.values() if len(digests) == len(homes)]

    [first, *_] = atoll.wait("two peers at the same round", met)
    assert len(set(first.values())) == 1


def test_an_idle_daemon_without_a_trainer_stays_small_and_listens_on_one_port(atoll):
    home = atoll.folder / "relay"
    daemon = atoll.start("up", "--no-trainer", "--home", home, "--loopback")
    status = atoll.wait("it has an address", lambda: (found := atoll.status(home)).get("addresses") and found, 30)
    tree = [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]
    assert any("p2pd" in process.name() for process in tree)
    assert sum(process.memory_full_info().pss for process in tree) < 200e6
    nothing_but_the_p2p_port_listens(atoll, {port_of(status)})
    os.kill(daemon.pid, signal.SIGTERM)
    assert daemon.wait(10) == 0
