"""One rank process: meet the other ranks, build model, data and optimizer, and run the loop until the daemon says stop.

`node` starts it as a plain subprocess, one per local device, and gives rank 0 a way to make its `OuterSync`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from atoll.protocol.errors import ManifestError
from atoll.protocol.manifest import Manifest
from atoll.protocol.outer_step import assert_denormals
from atoll.trainer import flatten
from atoll.trainer.checkpoint import Checkpoints
from atoll.trainer.data.files import Corpus
from atoll.trainer.data.loader import Loader, Windows
from atoll.trainer.data.report import CorpusReport
from atoll.trainer.data.tokenizer import Tokenizer, load_tokenizer
from atoll.trainer.data.tokens import TokenFiles, open_tokens, prepare_tokens, token_folder
from atoll.trainer.inner import InnerOptimizer
from atoll.trainer.loop import HeldOut, LoopSettings, Parts, TrainingLoop
from atoll.trainer.model import model_config, sharded_model
from atoll.trainer.outer_sync import OuterSync
from atoll.trainer.ranks import Ranks, joined_ranks
from atoll.trainer.shared_sync import SharedSync


@dataclass(frozen=True)
class RankSettings:
    rank: int
    world_size: int
    local_rank: int
    store_file: Path           # where the ranks meet; a new name for every start, in a folder only this user can enter
    manifest: Path             # file with the manifest's signed bytes
    tokenizer: Path | None     # tokenizer.json, where the manifest asks for one
    data: tuple[Path, ...]     # absolute; empty: the manifest's source
    peer_id: bytes
    folder: Path               # the trainer's own folder, one for all ranks: checkpoints and token files
    threads: int = 1
    inner_steps: int | None = None    # instead of the manifest's
    evaluate_every_rounds: int = 0    # held-out loss also after every so many rounds
    checkpoint_every_rounds: int = 1
    micro_batch_sequences: int = 0    # at most so many sequences of this rank at once; 0: the whole share of a batch


def run_rank(settings: RankSettings, make_sync: Callable[[], OuterSync]) -> None:
    """Train until the daemon stops or drains this peer. `make_sync` is called on rank 0 only.

    Raises AtollError (DataError, ManifestError, NondeterministicCpuError, RankLostError) with a sentence; whatever the
    port raises passes through.
    """
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(False)
    assert_denormals()
    manifest = Manifest.parse(settings.manifest.read_bytes())
    with joined_ranks(settings.rank, settings.world_size, settings.local_rank, settings.store_file) as ranks:
        loop = build_loop(manifest, settings, ranks)
        sync = None
        with ranks.lead_works():
            if ranks.leads:
                sync = make_sync()
        loop.run(SharedSync(sync, ranks))


def build_loop(manifest: Manifest, settings: RankSettings, ranks: Ranks) -> TrainingLoop:
    """Everything between a manifest and a running loop (a collective)."""
    draft = manifest.draft
    tokenizer = load_tokenizer(settings.tokenizer if draft.model.tokenizer != "bytes" else None)
    tokens = _tokens(manifest, settings, tokenizer, ranks)
    model = sharded_model(model_config(draft.model, tokenizer.vocab_size, tokenizer.separator), ranks)
    if flatten.numel(model) != manifest.genesis.numel:
        raise ManifestError(
            f"the manifest's genesis has {manifest.genesis.numel} elements, but its model {flatten.numel(model)} as "
            "built here: use the version of transformers that the run was signed with."
        )
    windows = Windows(tokens.training, draft.data.sequence_length)
    return TrainingLoop(
        manifest,
        LoopSettings(
            settings.inner_steps or draft.inner.steps, settings.evaluate_every_rounds, settings.checkpoint_every_rounds,
        ),
        Parts(
            inner=InnerOptimizer(model, draft.inner, ranks, settings.micro_batch_sequences),
            loader=Loader(windows, draft.run.seed, settings.peer_id), held_out=_held_out(manifest, tokens, tokenizer),
            checkpoints=Checkpoints(settings.folder, ranks), ranks=ranks, data_digest=tokens.digest,
        ),
        notice=_data_notice(tokens.report),
    )


def _tokens(manifest: Manifest, settings: RankSettings, tokenizer: Tokenizer, ranks: Ranks) -> TokenFiles:
    """Rank 0 writes the token files, then all map them."""
    data = manifest.draft.data
    corpus = Corpus.choose(settings.data, data.source)
    with ranks.lead_works():
        if ranks.leads:
            prepare_tokens(settings.folder, corpus, data, tokenizer)
    return open_tokens(token_folder(settings.folder, corpus, data, tokenizer))


def _held_out(manifest: Manifest, tokens: TokenFiles, tokenizer: Tokenizer) -> HeldOut:
    data = manifest.draft.data
    windows = Windows(tokens.held_out, data.sequence_length)
    chosen = windows.spread(data.evaluation_tokens)
    return HeldOut(windows, chosen, sum(tokenizer.text_bytes(windows.targets(index)) for index in chosen.tolist()))


def _data_notice(report: CorpusReport) -> str:
    """What a person should know about their text; nothing where all of it is used as it stands."""
    changed = "".join(f" {note}." for note in report.notes[:3])
    return f"Text: {report.sentence()}{changed}" if report.skipped or report.notes else ""
