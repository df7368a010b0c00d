"""A manifest is its owner's, canonical, bounded and complete, or it is refused with one clear sentence."""

import dataclasses

import pytest

from atoll.protocol import canonical, settings
from atoll.protocol.digest import content_digest, tree_digest
from atoll.protocol.errors import MalformedError, ManifestError, SignatureError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import (
    MANIFEST_LIMIT,
    MAX_ELECTORATE,
    DataSettings,
    Draft,
    ExchangeSettings,
    GenesisSettings,
    InnerSettings,
    Manifest,
    ModelSettings,
    OuterSettings,
    RunSettings,
)

OWNER = Identity(bytes(range(32)))
NAME = peer_name(OWNER.peer_id)
PEERS = [peer_name(Identity(bytes([n] * 32)).peer_id) for n in range(40)]
GENESIS = GenesisSettings(100_000, content_digest(b"genesis"))
HEAD = f'[run]\nname = "first light"\nowner = "{NAME}"\n'


def signed():
    return Manifest.sign(Draft.from_toml(HEAD), GENESIS, OWNER)


def forged(change):
    """Bytes of a signed manifest after `change(tree, outer)` had its way, encoded canonically again."""
    tree, signature = canonical.decode(signed().signed_bytes(), limit=MANIFEST_LIMIT)
    outer = [tree, signature]
    change(tree, outer)
    return canonical.encode(outer)


def resigned(change):
    """The same, signed by the owner: what the owner's key can be made to say."""
    tree, _ = canonical.decode(signed().signed_bytes(), limit=MANIFEST_LIMIT)
    change(tree)
    return canonical.encode([tree, OWNER.sign("manifest", tree_digest("manifest", tree))])


def test_a_signed_manifest_comes_back_under_the_same_run_id():
    manifest = signed()
    again = Manifest.parse(manifest.signed_bytes())
    assert again == manifest
    assert again.run_id == manifest.run_id
    assert again.owner == OWNER.peer_id
    assert again.electorate == (OWNER.peer_id,)
    assert (again.layout.numel, again.layout.part_elements) == (100_000, 65_536)


def test_the_run_id_names_every_setting_and_not_the_signature():
    base = signed()
    other = Manifest.sign(Draft.from_toml(HEAD + "seed = 2\n"), GENESIS, OWNER)
    elsewhere = Manifest.sign(base.draft, dataclasses.replace(GENESIS, digest=content_digest(b"other")), OWNER)
    assert len({base.run_id, other.run_id, elsewhere.run_id}) == 3
    assert dataclasses.replace(base, signature=bytes(64)).run_id == base.run_id


def test_a_tampered_value_breaks_the_signature():
    def more_rounds(tree, outer):
        tree["run"]["rounds"] = 101

    with pytest.raises(SignatureError, match="does not hold"):
        Manifest.parse(forged(more_rounds))


@pytest.mark.parametrize("place", [0, 31, 63])
def test_a_tampered_signature_is_refused(place):
    manifest = signed()
    signature = bytearray(manifest.signature)
    signature[place] ^= 1
    with pytest.raises(SignatureError, match=NAME):
        Manifest.parse(dataclasses.replace(manifest, signature=bytes(signature)).signed_bytes())


def test_another_owner_s_name_over_the_old_signature_is_refused():
    def rename(tree, outer):
        tree["run"]["owner"] = PEERS[0]

    with pytest.raises(SignatureError, match=PEERS[0]):
        Manifest.parse(forged(rename))


def test_only_the_owner_signs():
    with pytest.raises(ManifestError, match="sign with the owner's home"):
        Manifest.sign(Draft.from_toml(HEAD), GENESIS, Identity(bytes(32)))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xc0", b"not a manifest", canonical.encode([]), canonical.encode([{}]), canonical.encode([1, bytes(64)]),
        canonical.encode([{}, b"short"]), canonical.encode([{}, "x" * 64]), canonical.encode([{}, bytes(64), 1]),
        bytes(MANIFEST_LIMIT + 1),
    ],
    ids=["empty", "nil", "text", "no fields", "one field", "no table", "short", "text signature", "three", "too long"],
)
def test_bytes_that_are_no_manifest_are_malformed(data):
    with pytest.raises(MalformedError):
        Manifest.parse(data)


def test_bytes_that_are_not_canonical_are_refused():
    data = signed().signed_bytes()
    for other in (data + b"\0", data[:-1], b"\xdc\x00\x02" + data[1:]):
        with pytest.raises(MalformedError):
            Manifest.parse(other)


def test_two_spellings_of_one_manifest_do_not_exist():
    """A key left to its default, or a whole number for a number, reads alike and is refused all the same."""

    def leave_out(tree, outer):
        del tree["run"]["seed"]

    def whole(tree, outer):
        tree["outer"]["learning_rate"] = 1

    for change in (leave_out, whole):
        with pytest.raises(MalformedError, match="canonical form"):
            Manifest.parse(forged(change))


@pytest.mark.parametrize("where", ["run", "model", "data", "inner", "outer", "exchange", "genesis"])
def test_an_unknown_key_is_refused_with_a_suggestion_at_each_level_of_signed_bytes(where):
    known = {"run": "rounds", "model": "tokenizer", "data": "source", "inner": "steps", "outer": "momentum",
             "exchange": "weights", "genesis": "numel"}[where]

    def add(tree):
        tree[where][known + "x"] = 1

    with pytest.raises(ManifestError, match=f"unknown key `{where}.{known}x`; did you mean `{known}`"):
        Manifest.parse(resigned(add))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[exchnage]\n", "unknown key `exchnage`; did you mean `exchange`"),
        ("[genesis]\nnumel = 5\n", "unknown key `genesis`"),
        ("round = 5\n", "unknown key `run.round`; did you mean `rounds`"),
        ("[model]\ntokeniser = 'bytes'\n", "unknown key `model.tokeniser`; did you mean `tokenizer`"),
        ("[data]\nsequence_len = 5\n", "unknown key `data.sequence_len`; did you mean `sequence_length`"),
        ("[inner]\nlearing_rate = 1\n", "unknown key `inner.learing_rate`; did you mean `learning_rate`"),
        ("[outer]\nmomentun = 0\n", "unknown key `outer.momentun`; did you mean `momentum`"),
        ("[exchange]\ngrace = 5\n", "unknown key `exchange.grace`; did you mean `grace_s`"),
    ],
)
def test_an_unknown_key_of_a_draft_is_refused_with_a_suggestion_at_each_level(text, message):
    with pytest.raises(ManifestError, match=message):
        Draft.from_toml(HEAD + text)


GROUPS = {"run": RunSettings, "model": ModelSettings, "data": DataSettings, "inner": InnerSettings,
          "outer": OuterSettings, "exchange": ExchangeSettings, "genesis": GenesisSettings}
BOUNDS = [
    (group, field.name, side, field.metadata[side])
    for group, kind in GROUPS.items() for field in dataclasses.fields(kind)
    for side in ("low", "high") if field.metadata[side] is not None
]
CHOICES = [
    (group, field.name, field.metadata["choices"])
    for group, kind in GROUPS.items() for field in dataclasses.fields(kind) if field.metadata["choices"]
]
REQUIRED = {"run": {"name": "x", "owner": NAME}}


def read(group, name, value):
    return settings.read(GROUPS[group], {**REQUIRED.get(group, {}), name: value}, group)


@pytest.mark.parametrize(("group", "name", "side", "bound"), BOUNDS, ids=str)
def test_every_bound_is_inclusive_and_held(group, name, side, bound):
    assert getattr(read(group, name, bound), name) == bound
    whole = isinstance(getattr(GROUPS[group](**REQUIRED.get(group, {})), name), int)
    step = 1 if whole else max(abs(bound) * 1e-6, 1e-36)
    beyond = bound - step if side == "low" else bound + step
    with pytest.raises(ManifestError, match=rf"`{group}.{name}` is .*{'at least' if side == 'low' else 'at most'}"):
        read(group, name, beyond)


@pytest.mark.parametrize(("group", "name", "choices"), CHOICES, ids=lambda value: str(value)[:20])
def test_every_choice_is_closed_and_the_nearest_is_suggested(group, name, choices):
    for choice in choices:
        assert getattr(read(group, name, choice), name) == choice
    with pytest.raises(ManifestError, match=rf"`{group}.{name}` is .*; did you mean `{choices[0]}`"):
        read(group, name, choices[0] + "x")


@pytest.mark.parametrize(
    ("group", "name"), [(group, field.name) for group, kind in GROUPS.items() for field in dataclasses.fields(kind)],
)
def test_every_setting_refuses_another_type(group, name):
    with pytest.raises(ManifestError, match=rf"`{group}.{name}` must be"):
        read(group, name, object())


def test_every_setting_is_documented():
    assert all(field.metadata["doc"] for kind in GROUPS.values() for field in dataclasses.fields(kind))


def electorate(names):
    return Draft.from_toml(HEAD + f"electorate = {names!r}\n")


def test_the_electorate_keeps_its_order_and_its_bounds():
    names = PEERS[:MAX_ELECTORATE]
    manifest = Manifest.sign(electorate(names), GENESIS, OWNER)
    assert [peer_name(peer) for peer in Manifest.parse(manifest.signed_bytes()).electorate] == names
    with pytest.raises(ManifestError, match="names 32 voters, at most 31"):
        electorate(PEERS[:32])
    with pytest.raises(ManifestError, match="names a peer twice"):
        electorate([PEERS[0], PEERS[1], PEERS[0]])
    with pytest.raises(ManifestError, match=r"`run.electorate\[1\]`: 'nobody' is not"):
        electorate([PEERS[0], "nobody"])


def test_an_owner_that_is_no_peer_is_named():
    with pytest.raises(ManifestError, match=r"`run.owner`: 'me' is not"):
        Draft.from_toml('[run]\nname = "x"\nowner = "me"\n')


def test_a_contribution_too_heavy_for_exact_sums_is_refused_unless_weights_are_equal():
    heavy = "[inner]\nsteps = 100000\nbatch_sequences = 1000\n[exchange]\ntoken_unit = 1\nweights = "
    with pytest.raises(ManifestError, match=r"raise `exchange.token_unit`"):
        Draft.from_toml(HEAD + heavy + '"tokens"\n')
    Draft.from_toml(HEAD + heavy + '"equal"\n')


@pytest.mark.parametrize(
    ("genesis", "message"),
    [(GenesisSettings(), "names no genesis"), (GenesisSettings(5, b"short"), "names no genesis"),
     (GenesisSettings(0, bytes(32)), "names no genesis")],
)
def test_nothing_is_signed_or_parsed_without_a_genesis(genesis, message):
    draft = Draft.from_toml(HEAD)
    with pytest.raises(ManifestError, match=message):
        Manifest.sign(draft, genesis, OWNER)

    def replace(tree):
        tree["genesis"] = settings.tree(genesis)

    with pytest.raises(ManifestError, match=message):
        Manifest.parse(resigned(replace))


def test_a_manifest_without_its_genesis_table_is_refused():
    def remove(tree):
        del tree["genesis"]

    with pytest.raises(ManifestError, match="genesis must be a table"):
        Manifest.parse(resigned(remove))


def test_a_tokenizer_needs_its_digest():
    draft = Draft.from_toml(HEAD + "[model]\ntokenizer = 'tokenizer.json'\n")
    with pytest.raises(ManifestError, match="tokenizer without its digest"):
        Manifest.sign(draft, GENESIS, OWNER)
    model = dataclasses.replace(draft.model, tokenizer_digest=content_digest(b"{}"))
    manifest = Manifest.sign(dataclasses.replace(draft, model=model), GENESIS, OWNER)
    assert Manifest.parse(manifest.signed_bytes()) == manifest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model.config]\nx = 2024-01-01\n", "`model.config` holds a value that a manifest cannot carry"),
        ("[model.config]\nx = 99999999999999999999999\n", "`model.config` holds a value that a manifest cannot carry"),
        ("[inner]\nlearning_rate = 1" + "0" * 400 + "\n", "`inner.learning_rate` must be a finite number"),
        ("[inner]\nsteps = 1" + "0" * 5000 + "\n", "not valid TOML"),
        ("[model.config]\nx = " + "[" * 3000 + "]" * 3000 + "\n", "not valid TOML|cannot carry"),
        ("[model.config]\nx = '" + "x" * MANIFEST_LIMIT + "'\n", "at most 1044480 are allowed"),
        ("name = 'again'\n", r"not valid TOML: .*line 4"),
        ("[run\n", "not valid TOML: .*line 4"),
    ],
    ids=["date", "giant integer", "giant float", "giant literal", "deep", "long", "twice", "syntax"],
)
def test_what_a_person_may_write_by_mistake_ends_in_one_sentence(text, message):
    with pytest.raises(ManifestError, match=message):
        Draft.from_toml(HEAD + text)


def test_model_config_is_free_in_form_and_comes_back():
    text = "[model.config]\nhidden_size = 64\nrope = { theta = 10000.0, list = [1, [2, 3]] }\n'ü' = true\n"
    manifest = Manifest.sign(Draft.from_toml(HEAD + text), GENESIS, OWNER)
    again = Manifest.parse(manifest.signed_bytes())
    assert again.run_id == manifest.run_id
    assert again.draft.model.config["rope"] == {"theta": 10000.0, "list": (1, (2, 3))}


def test_a_draft_survives_its_tree():
    draft = Draft.from_toml(HEAD + "[outer]\nlearning_rate = 0.7\nmomentum = 0.9\n")
    assert Draft.from_tree(settings.tree(draft)) == draft
