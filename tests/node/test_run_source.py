"""What `--run` may be, and what of it ends up in the home."""

import pytest

from atoll.node.errors import HomeError, InviteError, UsageError
from atoll.node.invite import format_invite
from atoll.node.run_source import genesis_beside, resume_run, take_run
from atoll.protocol.errors import AtollError, ManifestError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest

OWNER = Identity(bytes(32))
ADDRESS = f"/ip4/203.0.113.7/tcp/4001/p2p/{peer_name(OWNER.peer_id)}"


@pytest.fixture
def signed(tmp_path):
    """(path, manifest) of a signed run with genesis beside it."""
    draft = Draft.from_tree({"run": {"name": "r", "owner": peer_name(OWNER.peer_id), "bootstrap": [ADDRESS]}})
    manifest = Manifest.sign(draft, GenesisSettings(10, bytes(32)), OWNER)
    path = tmp_path / "run.manifest"
    path.write_bytes(manifest.signed_bytes())
    genesis_beside(path).write_bytes(bytes(40))
    return path, manifest


def test_a_manifest_file_is_verified_kept_and_resumed(home, signed):
    path, manifest = signed
    source = take_run(home, str(path))
    assert (source.run_id, source.manifest, source.name) == (manifest.run_id, manifest, "r")
    assert source.addresses == (ADDRESS,)
    assert source.genesis == genesis_beside(path)
    assert resume_run(home) is None
    home.current_run.write_text(manifest.run_id.hex())
    path.unlink()
    assert resume_run(home).manifest == manifest


def test_every_flipped_bit_of_a_manifest_is_refused(home, signed):
    path, _ = signed
    whole = path.read_bytes()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(AtollError) as caught:
            take_run(home, str(path))
        assert str(path) in str(caught.value)
    assert not list(home.runs.iterdir())


def test_an_invite_is_remembered_until_the_manifest_is_there(home, signed):
    _, manifest = signed
    source = take_run(home, format_invite(manifest.run_id, [ADDRESS]))
    assert (source.run_id, source.manifest, source.addresses) == (manifest.run_id, None, (ADDRESS,))
    home.current_run.write_text(manifest.run_id.hex())
    assert resume_run(home) == source
    (home.run_folder(manifest.run_id) / "manifest").write_bytes(manifest.signed_bytes())
    assert resume_run(home).manifest == manifest


def test_a_home_with_another_runs_manifest_or_none_says_so(home, signed):
    _, manifest = signed
    home.current_run.write_text("ab" * 32)
    with pytest.raises(UsageError, match="--run"):
        resume_run(home)
    folder = home.run_folder(b"\xab" * 32)
    folder.mkdir()
    (folder / "manifest").write_bytes(manifest.signed_bytes())
    with pytest.raises(HomeError, match="another run"):
        resume_run(home)


def test_what_is_no_run_is_told_by_its_kind(home, tmp_path):
    draft = tmp_path / "draft.toml"
    draft.write_text("[run]\nname = 'x'\n")
    for given, kind, words in (
        (str(draft), ManifestError, "atoll run sign"), (str(tmp_path), ManifestError, "is a folder"),
        ("no/such.manifest", ManifestError, "does not exist"), ("hello", InviteError, "neither"),
        ("a\0b", InviteError, "neither"),
    ):
        with pytest.raises(kind, match=words):
            take_run(home, given)
