"""What a run's owner does: `atoll run new` writes a draft, `atoll run sign` makes genesis and the signed manifest from
it, `atoll run admit` lets a peer vote at once.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from atoll.node import terminal
from atoll.node.cli.parser import Parser, Subparsers, add_command, home_of
from atoll.node.errors import UsageError
from atoll.node.exit_codes import ExitCode
from atoll.protocol.errors import MalformedError, ManifestError
from atoll.protocol.identity import Identity, peer_name

_DRAFT_BYTES = 1 << 20


def add(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "run", "make a run: write its draft, edit it, sign it, admit voters")
    steps = parser.add_subparsers(title="steps", metavar="STEP", required=True, parser_class=Parser)
    new = add_command(steps, "new", "write a commented draft, owned by this home's key")
    new.add_argument("--out", metavar="FILE", default="run.toml", help="where (default: run.toml)")
    new.add_argument("--name", default="my-run", help="a name for people (default: my-run)")
    new.add_argument("--force", action="store_true", help="replace a file that is there already")
    new.set_defaults(run=run_new)
    sign = add_command(steps, "sign", "make genesis, fix its digest, and sign: writes NAME.manifest and NAME.genesis")
    sign.add_argument("draft", metavar="FILE", help="the draft that `atoll run new` wrote")
    sign.add_argument("--out", metavar="FILE", help="the manifest (default: the draft's name with .manifest)")
    sign.set_defaults(run=run_sign)
    admit = add_command(steps, "admit", "print a ticket with which a peer votes at once, signed by this home's key")
    admit.add_argument("peer", metavar="PEER_ID", help="whom to admit (`atoll id` prints it on their machine)")
    admit.add_argument("--run", dest="manifest", metavar="MANIFEST", help="the run's manifest (default: the home's)")
    admit.set_defaults(run=run_admit)


def run_new(args: argparse.Namespace) -> int:
    from atoll.node.draft import new_draft

    path = Path(args.out)
    if path.exists() and not args.force:
        raise UsageError(f"{path} is there already: name another file with --out, or replace it with --force.")
    home = home_of(args)
    home.prepare()
    owner = peer_name(Identity.load_or_create(home.identity).peer_id)
    _write(path, new_draft(owner, args.name).encode())
    terminal.say(f"wrote {path}: edit it, then `atoll run sign {path}`.")
    return ExitCode.OK


def run_sign(args: argparse.Namespace) -> int:
    from atoll.node.run_source import genesis_beside, tokenizer_beside
    from atoll.protocol.manifest import Draft, Manifest

    source = Path(args.draft)
    draft = Draft.from_toml(_read(source))
    home = home_of(args)
    identity = Identity.load(home.identity)
    if peer_name(identity.peer_id) != draft.run.owner:
        raise ManifestError(
            f"`run.owner` in {source} is {draft.run.owner}, but this home's key is {peer_name(identity.peer_id)}: "
            "sign with the owner's --home, or put the latter into the draft."
        )
    target = Path(args.out) if args.out else source.with_suffix(".manifest")
    _write(target, b"")  # a place that cannot be written is told before the model is built
    try:
        from atoll.trainer.genesis import make_genesis

        tokenizer = _tokenizer(draft.model.tokenizer, source)
        genesis = make_genesis(draft, genesis_beside(target), tokenizer)
        if tokenizer is not None:
            draft = _with_tokenizer(draft, tokenizer)
            beside = tokenizer_beside(target)
            if not (beside.exists() and beside.samefile(tokenizer)):
                shutil.copyfile(tokenizer, beside)
        manifest = Manifest.sign(draft, genesis, identity)
        _write(target, manifest.signed_bytes())
    except BaseException:
        target.unlink(missing_ok=True)
        genesis_beside(target).unlink(missing_ok=True)
        raise
    exchange, voters = draft.exchange, len(manifest.electorate)
    usual = exchange.usual_fork_timeout_s(voters)
    if exchange.fork_timeout_s(voters) < usual:
        terminal.complain(
            f"atoll: `exchange.fork_after_s` is less than a round with all its ballots may take ({usual:g} s): "
            "voters that are merely slow may go on in a lineage of their own."
        )
    terminal.say(f"run {manifest.run_id.hex()}")
    terminal.say(f"{genesis.numel:,} parameters; start with `atoll up --run {target}`, invite by `atoll invite`.")
    return ExitCode.OK


def run_admit(args: argparse.Namespace) -> int:
    """Raises UsageError for a peer that is none, and for a key that is not the run's owner's."""
    from atoll.node.run_source import read_manifest
    from atoll.node.ticket import Ticket
    from atoll.protocol.identity import parse_peer

    home = home_of(args)
    try:
        peer = parse_peer(args.peer)
    except MalformedError as error:
        raise UsageError(f"{error} Ask the peer for what `atoll id` prints.") from error
    run_id = home.current_run_id() if args.manifest is None else None
    if args.manifest is None and run_id is None:
        raise UsageError(f"the home {home.root} is on no run: name the run's manifest with --run FILE.")
    manifest = read_manifest(Path(args.manifest) if run_id is None else home.run_folder(run_id) / "manifest")
    terminal.say(Ticket.issue(Identity.load(home.identity), manifest, peer).word)
    return ExitCode.OK


def _tokenizer(named: str, draft: Path) -> Path | None:
    """The tokenizer file of a draft, relative to it. Raises ManifestError."""
    if named == "bytes":
        return None
    path = draft.parent / named
    if not path.is_file():
        raise ManifestError(f"`model.tokenizer` names {path}, which is no file: give a tokenizer.json, or `bytes`.")
    return path


def _with_tokenizer(draft: Any, tokenizer: Path) -> Any:
    """The draft with the tokenizer's digest; its name is the same on every machine, its place is not."""
    import dataclasses

    from atoll.protocol.digest import content_digest

    digest = content_digest(tokenizer.read_bytes())
    model = dataclasses.replace(draft.model, tokenizer="tokenizer.json", tokenizer_digest=digest)
    return dataclasses.replace(draft, model=model)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_DRAFT_BYTES + 1)
        if len(data) > _DRAFT_BYTES:
            raise ManifestError(f"{path} is larger than {_DRAFT_BYTES} bytes: that is no draft.")
        return data.decode()
    except OSError as error:
        cause = error.strerror
        raise ManifestError(f"cannot read the draft {path}: {cause}; write one with `atoll run new`.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text, so it is no draft.") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another place with --out.") from error
