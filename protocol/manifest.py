"""The manifest: the signed, immutable description of a run. BLAKE3 of its canonical bytes is the `run_id`.

A *draft* is the editable TOML form, without genesis; signing adds the digests of genesis and of the tokenizer and the
owner's signature. Knows no files and no network: `trainer.genesis` makes the bytes, `node` reads and writes.
"""

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from typing import Any

from atoll.protocol import canonical, settings
from atoll.protocol.digest import DIGEST_BYTES, Digest, tree_digest
from atoll.protocol.errors import MalformedError, ManifestError
from atoll.protocol.identity import SIGNATURE_BYTES, Identity, PeerId, parse_peer, peer_name, verify
from atoll.protocol.layout import Layout
from atoll.protocol.settings import setting

MANIFEST_LIMIT = 1 << 20
MAX_ELECTORATE = 31
MAX_CONTRIBUTORS = 1024
WEIGHT_LIMIT = 1 << 24
"""Sums of weights stay below this, where every integer is exact in float32."""

ARCHITECTURES = ("LlamaForCausalLM",)
DENSE_CODECS = ("fp32", "fp16", "int8")
CODECS = (*DENSE_CODECS, "top8")
"""Results need a dense codec: nobody keeps account of what the encoding of an average leaves out."""


@dataclass(frozen=True)
class RunSettings:
    name: str = setting(doc="a name for people")
    owner: str = setting(doc="PeerID whose signature makes this manifest valid (`atoll id` prints yours)")
    rounds: int = setting(100, low=0, high=10_000_000, doc="rounds until the run is finished; 0 never finishes")
    seed: int = setting(1, low=0, high=2**63 - 1, doc="seed of data order; genesis is bytes, not a seed")
    electorate: tuple[str, ...] = setting((), doc="PeerIDs of the genesis voters, most senior first; empty: the owner")
    bootstrap: tuple[str, ...] = setting((), doc="multiaddrs with /p2p/ID where a newcomer can start")


@dataclass(frozen=True)
class ModelSettings:
    architecture: str = setting("LlamaForCausalLM", choices=ARCHITECTURES, doc="Hugging Face class, from an allow-list")
    config: dict[str, Any] = setting({}, doc="arguments of the class's config (hidden_size, num_hidden_layers, …)")
    tokenizer: str = setting("bytes", doc="`bytes`, or the path of a tokenizer.json when the draft is signed")
    tokenizer_digest: bytes = setting(b"", doc="BLAKE3 of the tokenizer file, filled in by signing")


@dataclass(frozen=True)
class DataSettings:
    source: str = setting(
        "stdlib", choices=("stdlib", "local"), doc="`stdlib`: the Python library's source; `local`: each peer's --data"
    )
    sequence_length: int = setting(128, low=2, high=1 << 20, doc="tokens of one training sequence")
    held_out_every: int = setting(
        20, low=2, high=100_000, doc="one document in this many is held out, by a hash of its name or text"
    )
    evaluation_tokens: int = setting(32_768, low=1, high=1 << 30, doc="at most this many held-out tokens are evaluated")
    text_field: str = setting("text", doc="field of JSONL rows and parquet columns that holds the text")


@dataclass(frozen=True)
class InnerSettings:
    steps: int = setting(20, low=1, high=100_000, doc="inner steps after which a peer is READY")
    batch_sequences: int = setting(16, low=1, high=1 << 20, doc="sequences of one inner step, over all ranks of a peer")
    learning_rate: float = setting(3e-3, low=0, doc="peak learning rate of AdamW")
    beta1: float = setting(0.9, low=0, high=0.999999, doc="AdamW beta 1")
    beta2: float = setting(0.95, low=0, high=0.999999, doc="AdamW beta 2")
    epsilon: float = setting(1e-8, low=1e-30, doc="AdamW epsilon")
    weight_decay: float = setting(0.1, low=0, high=1e3, doc="AdamW weight decay of matrices")
    clip_norm: float = setting(1.0, low=0, doc="gradient norm is clipped to this; 0 switches clipping off")
    schedule: str = setting("cosine", choices=("cosine", "wsd", "constant"), doc="learning rate over the run's rounds")
    warmup_steps: int = setting(20, low=0, high=10_000_000, doc="steps of linear warm-up, counted from genesis")
    decay_fraction: float = setting(0.2, low=0, high=1, doc="`wsd`: the last part of the run that decays")
    final_fraction: float = setting(0.1, low=0, high=1, doc="learning rate at the end, as a part of the peak")


@dataclass(frozen=True)
class OuterSettings:
    learning_rate: float = setting(1.0, low=0, high=10, doc="outer learning rate (1: plain averaging; Nesterov: 0.7)")
    momentum: float = setting(0.0, low=0, high=0.999999, doc="Nesterov momentum (0: plain averaging; Nesterov: 0.9)")


@dataclass(frozen=True)
class ExchangeSettings:
    contribution_codec: str = setting("int8", choices=CODECS, doc="codec of the pseudo-gradients")
    gather_codec: str = setting("int8", choices=DENSE_CODECS, doc="codec of the averages")
    residual_cap: float = setting(
        1.0,
        low=0,
        high=4,
        doc="`top8`: what earlier rounds left unsent is scaled down to this multiple of the gradient's norm",
    )
    part_elements: int = setting(
        65_536, low=1024, high=1 << 22, doc="elements of one part (also of one chunk of the state)"
    )
    weights: str = setting("tokens", choices=("tokens", "equal"), doc="how contributions are weighted")
    token_unit: int = setting(128, low=1, high=1 << 40, doc="tokens per unit of weight; sums of units stay below 2^24")
    grace_s: float = setting(
        60.0, low=0.1, high=86_400, doc="how long a round waits for peers that are alive but not READY"
    )
    min_round_s: float = setting(
        0.0, low=0, high=86_400, doc="a round is never closed sooner than this after its parent"
    )
    ballot_timeout_s: float = setting(
        10.0, low=0.05, high=86_400, doc="delta: how long a living leader's ballot may take before its successor's turn"
    )
    round_s: float = setting(
        0.0, low=0, high=86_400, doc="a round is closed this long after its parent, whoever is READY; 0: no limit"
    )
    round_tokens: int = setting(
        0, low=0, high=1 << 50, doc="a round is closed when its peers have trained on this many tokens; 0: no target"
    )
    fork_after_s: float = setting(
        0.0, low=0, high=864_000,
        doc="L: a voter without a quorum for this long (longer, the fewer answer) goes on in a new lineage; "
        "0: from grace, round length and delta",
    )
    admit_after: int = setting(
        3, low=0, high=10_000, doc="rounds in a row with a contribution until a peer may vote; 0: with a ticket only"
    )
    heartbeat_s: float = setting(1.0, low=0.01, high=3600, doc="pause between READY messages")
    gone_after_s: float = setting(5.0, low=0.05, high=3600, doc="a peer silent for this long counts as gone")
    retain_rounds: int = setting(64, low=2, high=100_000, doc="results are kept for this many certified rounds")
    checkpoint_every: int = setting(1, low=1, high=100_000, doc="certificates between two full states on disk")

    def fork_timeout_s(self, electorate: int) -> float:
        """L for an electorate of this size."""
        return self.fork_after_s or self.usual_fork_timeout_s(electorate)

    def usual_fork_timeout_s(self, electorate: int) -> float:
        """The least L that is safe to give: a round, and 1.5 delta for each ballot and one more."""
        return self.grace_s + max(self.min_round_s, self.round_s) + 1.5 * self.ballot_timeout_s * (electorate + 1)


@dataclass(frozen=True)
class GenesisSettings:
    numel: int = setting(0, low=0, high=1 << 44, doc="elements of the outer vector, filled in by signing")
    digest: bytes = setting(b"", doc="state digest of genesis, filled in by signing")


@dataclass(frozen=True)
class Draft:
    run: RunSettings
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    inner: InnerSettings = dataclasses.field(default_factory=InnerSettings)
    outer: OuterSettings = dataclasses.field(default_factory=OuterSettings)
    exchange: ExchangeSettings = dataclasses.field(default_factory=ExchangeSettings)

    @classmethod
    def from_toml(cls, text: str) -> "Draft":
        """Raises ManifestError with line, key or value, and the remedy."""
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting among them
            raise ManifestError(f"not valid TOML: {error}.") from error
        return cls.from_tree(document)

    @classmethod
    def from_tree(cls, document: Any) -> "Draft":
        draft = settings.read(cls, document)
        draft.check()
        return draft

    def check(self) -> None:
        """Bounds that span several settings. Raises ManifestError."""
        try:
            size = len(canonical.encode(settings.tree(self)))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:  # `model.config` is free in form
            raise ManifestError(f"`model.config` holds a value that a manifest cannot carry: {error}.") from error
        if size > MANIFEST_LIMIT - 4096:  # room for genesis and the signature
            raise ManifestError(f"these settings take {size} bytes, at most {MANIFEST_LIMIT - 4096} are allowed.")
        owner = _peer(self.run.owner, "run.owner")
        voters = [_peer(text, f"run.electorate[{i}]") for i, text in enumerate(self.run.electorate)] or [owner]
        if len(voters) > MAX_ELECTORATE:
            raise ManifestError(
                f"`run.electorate` names {len(voters)} voters, at most {MAX_ELECTORATE} are "
                "allowed; others contribute all the same."
            )
        if len(set(voters)) < len(voters):
            raise ManifestError("`run.electorate` names a peer twice; remove one of the two.")
        if 2 * self.exchange.checkpoint_every > self.exchange.retain_rounds:
            raise ManifestError(
                "`exchange.checkpoint_every` is more than half of `exchange.retain_rounds`: results would be gone "
                "before the state that they lead on from is on disk; lower the one or raise the other."
            )
        units = math.ceil(
            self.inner.steps * self.inner.batch_sequences * self.data.sequence_length / self.exchange.token_unit
        )
        if self.exchange.weights == "tokens" and units * 2 >= WEIGHT_LIMIT:
            raise ManifestError(
                f"one contribution would weigh {units} units, two of them too much for exact sums "
                "(2^24): raise `exchange.token_unit`."
            )


@dataclass(frozen=True)
class Manifest:
    """What is signed. `signed_bytes` is what travels and is stored; its run_id names it everywhere."""

    draft: Draft
    genesis: GenesisSettings
    signature: bytes

    @property
    def run_id(self) -> Digest:
        return tree_digest("manifest", self._tree())

    @property
    def owner(self) -> PeerId:
        return parse_peer(self.draft.run.owner)

    @property
    def electorate(self) -> tuple[PeerId, ...]:
        """The genesis voters, most senior first."""
        return tuple(parse_peer(text) for text in self.draft.run.electorate) or (self.owner,)

    @property
    def layout(self) -> Layout:
        return Layout(self.genesis.numel, self.draft.exchange.part_elements)

    @classmethod
    def sign(cls, draft: Draft, genesis: GenesisSettings, owner: Identity) -> "Manifest":
        """Raises ManifestError if `owner` is not the draft's owner or genesis is incomplete."""
        if peer_name(owner.peer_id) != draft.run.owner:
            raise ManifestError(
                f"`run.owner` is {draft.run.owner}, but this home's key is {peer_name(owner.peer_id)}: "
                "sign with the owner's home."
            )
        unsigned = cls(draft, genesis, b"")
        unsigned._check_genesis()
        return dataclasses.replace(unsigned, signature=owner.sign("manifest", unsigned.run_id))

    def signed_bytes(self) -> bytes:
        return canonical.encode([self._tree(), self.signature])

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """The manifest behind `signed_bytes`. Raises MalformedError, ManifestError or SignatureError."""
        outer = canonical.decode(data, limit=MANIFEST_LIMIT)
        if not (isinstance(outer, tuple) and len(outer) == 2 and isinstance(outer[0], dict)):
            raise MalformedError("these bytes are not a signed manifest")
        document, signature = dict(outer[0]), outer[1]
        if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
            raise MalformedError("the manifest carries no signature")
        genesis = settings.read(GenesisSettings, document.pop("genesis", None), "genesis")
        manifest = cls(Draft.from_tree(document), genesis, signature)
        manifest._check_genesis()
        verify(manifest.owner, "manifest", manifest.run_id, signature)
        if manifest.signed_bytes() != data:
            raise MalformedError("the manifest is not in canonical form")
        return manifest

    def _tree(self) -> dict[str, Any]:
        return {**settings.tree(self.draft), "genesis": settings.tree(self.genesis)}

    def _check_genesis(self) -> None:
        if self.genesis.numel < 1 or len(self.genesis.digest) != DIGEST_BYTES:
            raise ManifestError("the manifest names no genesis: make it with `atoll run sign`.")
        if self.draft.model.tokenizer != "bytes" and len(self.draft.model.tokenizer_digest) != DIGEST_BYTES:
            raise ManifestError("the manifest names a tokenizer without its digest: sign the draft again.")


def _peer(text: str, where: str) -> PeerId:
    try:
        return parse_peer(text)
    except MalformedError as error:
        raise ManifestError(f"`{where}`: {error}") from error
