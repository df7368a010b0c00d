"""The draft of `atoll run new` is complete, commented, and signs as it stands."""

import dataclasses
import tomllib

from atoll.node.draft import new_draft
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft

OWNER = peer_name(Identity(bytes(32)).peer_id)


def test_it_is_a_valid_draft_with_every_default_spelled_out():
    name = 'Ada\'s "run" \\ ü\t'
    text = new_draft(OWNER, name)
    draft = Draft.from_toml(text)
    assert draft.run.name == name
    assert draft.run.owner == OWNER
    bare = Draft.from_tree({"run": {"name": name, "owner": OWNER}})
    assert dataclasses.replace(draft, model=bare.model) == bare
    assert draft.model.config["hidden_size"] == 128


def test_every_key_has_its_meaning_above_it():
    lines = new_draft(OWNER, "x").splitlines()
    tree = tomllib.loads("\n".join(lines))
    keys = [key for section in tree.values() for key, value in section.items() if not isinstance(value, dict)]
    for key in keys:
        place = next(number for number, line in enumerate(lines) if line.startswith(f"{key} ="))
        assert lines[place - 1].startswith("# "), key
