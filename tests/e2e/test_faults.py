"""Whole daemons killed with SIGKILL in every phase of a round: the rest go on, the killed come back, all agree.

The phase is what the victim's own status says; the moment within an exchange, what it has sent of its vector by then.
"""

import time

import pytest

FORK_S = 60.0  # L x 3 voters / 1, failed ballots and windows included, on a busy machine


class Moment:
    """Tells at which point of its round a peer is, from one look to the next."""

    def __init__(self, numel):
        self._numel = numel
        self._since = {}  # peer -> round, seconds and bytes sent at its beginning

    def note(self, peer):
        """Seconds since the round began, and what of the peer's vector it has sent: 1 when all is scattered."""
        status, now = peer.status, time.monotonic()
        if self._since.get(peer.index, (None,))[0] != status["round"]:
            self._since[peer.index] = status["round"], now, status["up_bytes"]
        _, began, sent = self._since[peer.index]
        members = max(2, len(status["members"]))
        # int8: a byte per element; a peer scatters all but its own parts, and spreads the results of those as often.
        share = self._numel * (members - 1) / members
        return now - began, (status["up_bytes"] - sent) / share

    def announce(self, peer):
        """Its contribution is journaled and announced; nobody has closed the round."""
        seconds, _ = self.note(peer)
        trained = peer.status["inner_step"] >= peer.status["inner_steps"] > 0
        return peer.status["state"] == "TRAIN" and trained and seconds > 0.6

    def start(self, peer):
        """The leader has sent START, and hardly anything yet of its contribution."""
        _, sent = self.note(peer)
        return self.lead(peer) and sent < 0.5

    def scatter(self, peer):
        """No leader; a part of its contribution is sent."""
        _, sent = self.note(peer)
        return self.exchange(peer) and not self.lead(peer) and 0.1 < sent < 0.9

    def reduce(self, peer):
        """Its contribution is sent; what it owns is being averaged, hardly any result is out."""
        _, sent = self.note(peer)
        return self.exchange(peer) and 0.9 < sent < 1.2

    def gather(self, peer):
        """Its results are under way to the others."""
        _, sent = self.note(peer)
        return self.exchange(peer) and sent > 1.2

    def vote(self, peer):
        return peer.status["state"] == "VOTED"

    def apply(self, peer):
        return peer.status["state"] == "APPLY"

    def lead(self, peer):
        return self.exchange(peer) and peer.status["leader"] == peer.name

    @staticmethod
    def exchange(peer):
        return peer.status["state"] == "EXCHANGE"


@pytest.mark.timeout(420)
def test_a_peer_killed_in_any_phase_costs_the_rest_moments_and_finds_back(swarm_of):
    swarm = swarm_of(4)
    senior, *juniors = swarm.peers
    moment, forks = Moment(swarm.numel), senior.status["forks"]
    for phase in ("announce", "start", "scatter", "reduce", "gather", "vote", "apply"):
        # The rest stay a quorum: two juniors vote, and the senior is half of what is left; a third one may still be
        # on its way back from its own death.
        swarm.wait("voters to choose from", lambda: len(voters(senior, juniors)) >= 2)
        victim = swarm.catch(phase, getattr(moment, phase), voters(senior, juniors))
        killed(swarm, phase, victim)

    # The bootstrap, whom everybody dialled, as a leader, with all others there.
    swarm.wait("everybody votes again", swarm.whole)
    victim = swarm.catch("the bootstrap leads", moment.lead, [senior])
    killed(swarm, "bootstrap", victim)
    swarm.wait("everybody is back and votes", swarm.whole)
    assert swarm.agree()[-1]["forks"] == forks


def voters(observer, peers):
    return [peer for peer in peers if peer.name in observer.status.get("electorate", ()) and peer.contributes]


def killed(swarm, phase, victim):
    """Kill a peer, see that the rest go on, start it again; it finds back while the next one's turn comes."""
    at = dict(victim.status)
    swarm.kill(victim)
    survivors = [peer for peer in swarm.peers if peer.contributes]
    first, second = swarm.go_on(phase, survivors)
    print(f"{phase}: peer {victim.index} in {at['state']} of round {at['round'] + 1}; {len(survivors)} others had the "
          f"next certificate {first:.1f} s and another {second:.1f} s later")
    swarm.start(victim)


@pytest.mark.timeout(420)
def test_half_of_a_group_and_all_but_one_may_go_at_once(swarm_of):
    swarm = swarm_of(4)
    seniors, juniors = swarm.peers[:2], swarm.peers[2:]
    moment, forks = Moment(swarm.numel), seniors[0].status["forks"]

    # Half, the most senior voter not among them: the other half is a quorum, and nothing forks.
    leader = swarm.catch("a junior leads", moment.lead, juniors)
    swarm.kill(*juniors)
    seconds = swarm.go_on("without two juniors", seniors)
    print(f"two juniors, leader {leader.index} among them: next after {seconds[0]:.1f} s")
    assert all(peer.status["forks"] == forks for peer in seniors)
    swarm.start(*juniors)
    swarm.wait("both are back and vote", swarm.whole)

    # Half with the most senior voter: no quorum is left, and after L the rest FORK.
    order = by_seniority(swarm)
    swarm.catch("an exchange", moment.exchange, order[:2])
    swarm.kill(*order[:2])
    seconds = swarm.go_on("without two seniors", order[2:], timeout=FORK_S)
    print(f"two seniors: next after {seconds[0]:.1f} s")
    assert all(peer.status["forks"] == forks + 1 for peer in order[2:])
    swarm.start(*order[:2])
    swarm.wait("both follow and vote", swarm.whole)

    # All but one.
    [alone, *rest] = by_seniority(swarm)[::-1]
    swarm.catch("an exchange", moment.exchange, rest)
    swarm.kill(*rest)
    seconds = swarm.go_on("alone", [alone], timeout=FORK_S)
    print(f"all but one: next after {seconds[0]:.1f} s")
    assert alone.status["forks"] == forks + 2
    swarm.start(*rest)
    swarm.wait("all follow and vote", swarm.whole)
    rows = swarm.agree()
    survivors = [set(row["fork"]["survivors"]) for row in rows if row["fork"]]
    assert survivors[forks:] == [{peer.name for peer in order[2:]}, {alone.name}]


def by_seniority(swarm):
    names = {peer.name: peer for peer in swarm.peers}
    return [names[name] for name in swarm.peers[0].status["electorate"]]


@pytest.mark.timeout(240)
def test_the_most_senior_voter_of_two_leaves_and_the_other_goes_on_at_once(swarm_of, atoll):
    swarm = swarm_of(2)
    senior, junior = swarm.peers
    forks = junior.status["forks"]
    done = atoll.run("down", "--home", senior.home.root)
    assert done.returncode == 0, done.stderr
    first, second = swarm.go_on("alone", [junior])
    print(f"the next certificate {first:.1f} s after `down`, another {second:.1f} s after")
    assert junior.status["forks"] == forks
    assert junior.status["electorate"] == [junior.name]
    swarm.start(senior)
    swarm.wait("the one that left is back and votes", swarm.whole)
    assert swarm.agree()[-1]["forks"] == forks
