"""The corpus as token files: written once in a stream, then mapped into memory by every rank.

A folder `tokens-<fingerprint>` holds `train.bin` and `held_out.bin` (little-endian uint16, or uint32 for a vocabulary
above 65,536) and `tokens.json`. It is made under another name and renamed when complete, and made anew whenever the
listing of the corpus (names, sizes, times), the tokenizer or the split changes. Memory does not grow with the corpus.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from atoll.protocol.manifest import DataSettings
from atoll.trainer.data.check import too_little
from atoll.trainer.data.documents import Document, read_documents
from atoll.trainer.data.errors import DataError
from atoll.trainer.data.files import Corpus
from atoll.trainer.data.report import CorpusReport, Skip, Tally
from atoll.trainer.data.split import MINIMUM_TOKENS, is_held_out, tail_cut
from atoll.trainer.data.tokenizer import Tokenizer

_FORMAT = 1
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class TokenFiles:
    """Read-only maps; `digest` names the training tokens, so that a saved position knows whether it still fits."""

    training: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    held_out: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    digest: str
    report: CorpusReport


def prepare_tokens(folder: Path, corpus: Corpus, settings: DataSettings, tokenizer: Tokenizer) -> TokenFiles:
    """The token files of this corpus below `folder`, made now unless they are there. Raises DataError."""
    name = f"tokens-{_fingerprint(corpus, settings, tokenizer)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / name / "tokens.json").exists():
            for stale in folder.glob("tokens-*"):
                shutil.rmtree(stale)
            partial = folder / f"tokens-partial-{os.getpid()}"
            partial.mkdir(mode=0o700)
            _build(partial, corpus, settings, tokenizer)
            partial.rename(folder / name)
    except OSError as error:
        raise DataError(
            f"cannot write token files to {folder}: {error.strerror}; make room there, two bytes per byte of text."
        ) from error
    return open_tokens(folder / name)


def open_tokens(folder: Path) -> TokenFiles:
    """Map finished token files. Raises DataError where they are damaged."""
    try:
        about = json.loads((folder / "tokens.json").read_text())
        dtype, sizes = np.dtype(about["dtype"]), about["tokens"]
        training, held_out = (
            np.memmap(folder / file, dtype=dtype, mode="r", shape=(size,))
            for file, size in zip(("train.bin", "held_out.bin"), sizes, strict=True)
        )
        return TokenFiles(training, held_out, str(about["digest"]), _read_report(about["report"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the token files in {folder} are damaged ({error}): remove it, it is remade.") from error


def token_folder(folder: Path, corpus: Corpus, settings: DataSettings, tokenizer: Tokenizer) -> Path:
    return folder / f"tokens-{_fingerprint(corpus, settings, tokenizer)}"


def _read_report(tree: dict[str, Any]) -> CorpusReport:
    named, notes = (tuple(Skip(**skip) for skip in tree[key]) for key in ("named", "notes"))
    reasons = tuple((str(reason), int(count)) for reason, count in tree["reasons"])
    return CorpusReport(**{**tree, "named": named, "notes": notes, "reasons": reasons})


def _fingerprint(corpus: Corpus, settings: DataSettings, tokenizer: Tokenizer) -> str:
    hasher = blake3(json.dumps([_FORMAT, tokenizer.name, settings.held_out_every, settings.text_field]).encode())
    for source in corpus.sources(Tally()):
        hasher.update(json.dumps([source.name, source.path, source.size, source.mtime_ns]).encode())
    return hasher.hexdigest()[:16]


def _build(folder: Path, corpus: Corpus, settings: DataSettings, tokenizer: Tokenizer) -> None:
    tally = Tally()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    paths = [folder / "train.bin", folder / "held_out.bin"]
    writer = _Writer(tokenizer, dtype, tally)
    with _both(paths, "wb") as files:
        for source in corpus.sources(tally):
            for document in read_documents(source, settings.text_field, tally):
                side = files[is_held_out(document.split_key, settings.held_out_every)]
                writer.add(document, side)
    counts = [path.stat().st_size // dtype.itemsize for path in paths]
    if sum(counts) < MINIMUM_TOKENS:
        raise too_little(corpus, tally.report(complete=True))
    cut = tail_cut(counts[0], counts[1], settings.held_out_every)
    if cut is not None:
        _cut(paths, cut * dtype.itemsize)
        counts = [cut, sum(counts) - cut]
    about: dict[str, Any] = {
        "dtype": dtype.str, "tokens": counts, "digest": _file_digest(paths[0]),
        "report": dataclasses.asdict(tally.report(complete=True)),
    }
    (folder / "tokens.json").write_text(json.dumps(about))


class _Writer:
    """Appends documents to the two token files."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any], tally: Tally) -> None:
        self._tokenizer, self._dtype, self._tally = tokenizer, dtype, tally

    def add(self, document: Document, side: IO[bytes]) -> None:
        """All of a document and a separator; nothing for one without text."""
        written, before = 0, self._tally.text_bytes
        pieces = self._counted(document.pieces)
        for ids in self._tokenizer.encode(pieces, lambda what: self._tally.note(document.where, what)):
            side.write(ids.astype(self._dtype).tobytes())
            written += ids.size
        if written:
            side.write(np.asarray([self._tokenizer.separator], self._dtype).tobytes())
            self._tally.documents += 1
        elif self._tally.text_bytes > before:
            self._tally.skip(document.where, "no tokens in a document")

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._tally.text_bytes += len(piece)
            yield piece


def _cut(paths: list[Path], offset: int) -> None:
    """Lay the held-out file behind the training file, then hold out everything from `offset` on."""
    training, held_out = paths
    with training.open("r+b") as left, held_out.open("r+b") as right:
        left.seek(0, os.SEEK_END)
        shutil.copyfileobj(right, left, _COPY_BYTES)
        left.seek(offset)
        right.seek(0)
        right.truncate()
        shutil.copyfileobj(left, right, _COPY_BYTES)
        left.truncate(offset)


def _file_digest(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest()


@contextmanager
def _both(paths: list[Path], mode: str) -> Iterator[list[IO[bytes]]]:
    with paths[0].open(mode, buffering=_COPY_BYTES) as left, paths[1].open(mode, buffering=_COPY_BYTES) as right:
        yield [left, right]
