"""The owner's ticket admits a peer at once, where nothing else does."""

from atoll.protocol.standing import sign_ticket


def test_with_a_ticket_a_newcomer_votes_after_its_first_round_and_without_one_never(swarm):
    swarm = swarm(3, voters=1, admit_after=0)
    owner, invited, _ = swarm.peers.values()
    invited.round.ticket = sign_ticket(owner.identity, swarm.manifest.run_id, invited.id)

    def voters():
        return owner.round.chain.tip.voters

    assert swarm.run(600, until=lambda: invited.id in voters())
    assert owner.round.chain.tip.round <= 3
    entered = owner.round.chain.tip.round
    assert swarm.run(600, until=lambda: owner.round.chain.tip.round >= entered + 5)
    assert set(voters()) == {owner.id, invited.id}
    # The owner alone is half with the most senior: it certifies without waiting, unless the other one leads.
    assert any(vote.peer == invited.id for entry in owner.history[-5:] for vote in entry.link.votes)
    swarm.check_agreement()
