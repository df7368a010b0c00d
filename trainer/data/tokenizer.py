"""Text to token ids: bytes as they are, or a `tokenizer.json`. One id beyond the text separates documents.

`tokenizers` is imported only where a file asks for it. A tokenizer file is read from disk, never from a network; its
digest stands in the manifest.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atoll.protocol.digest import Digest, content_digest
from atoll.trainer.data.documents import wide_encoding
from atoll.trainer.data.errors import DataError

_FILE_LIMIT = 256 << 20
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")


class Tokenizer(Protocol):
    name: str         # distinguishes token files on disk
    vocab_size: int   # ids are below this; the separator is one of them
    separator: int

    def encode(self, pieces: Iterable[bytes], changed: Callable[[str], None]) -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of one document's pieces, in bounded memory. `changed` is told where text could not be taken as it is."""
        ...

    def text_bytes(self, ids: npt.NDArray[np.uint32]) -> int:
        """Bytes of text behind some ids, separators not counted."""
        ...


class ByteTokenizer:
    """256 byte values and the separator: any file at all is its own bytes, exactly."""

    name = "bytes"
    vocab_size = 257
    separator = 256

    def encode(self, pieces: Iterable[bytes], changed: Callable[[str], None]) -> Iterator[npt.NDArray[np.uint32]]:  # noqa: ARG002 - a byte needs no repair
        for piece in pieces:
            yield np.frombuffer(piece, np.uint8).astype(np.uint32)

    def text_bytes(self, ids: npt.NDArray[np.uint32]) -> int:
        return int(np.count_nonzero(ids < self.separator))


class FileTokenizer:
    """A Hugging Face `tokenizer.json`. Long documents are cut at line ends near each mebibyte, to bound memory."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is missing or no tokenizer."""
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        data = _read(path)
        try:
            self._tokenizer: Any = HuggingFaceTokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            what = str(error)[:120]
            raise DataError(f"{path} is not a tokenizer.json: {what}; export one with `tokenizers`.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.name = content_digest(data).hex()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{path} has an empty vocabulary; train the tokenizer first.")
        self.vocab_size = max(vocabulary.values()) + 1
        known = next((vocabulary[text] for text in _SEPARATORS if text in vocabulary), None)
        self.separator = self.vocab_size if known is None else known
        self.vocab_size = max(self.vocab_size, self.separator + 1)

    def encode(self, pieces: Iterable[bytes], changed: Callable[[str], None]) -> Iterator[npt.NDArray[np.uint32]]:
        for text in _texts(pieces, changed):
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            yield np.asarray(encoding.ids, np.uint32)

    def text_bytes(self, ids: npt.NDArray[np.uint32]) -> int:
        kept = ids[ids != self.separator]
        text: str = self._tokenizer.decode(kept.tolist(), skip_special_tokens=False)
        return len(text.encode("utf-8", "replace"))


def load_tokenizer(path: Path | None) -> Tokenizer:
    """Bytes for None, else the tokenizer file. Raises DataError."""
    return ByteTokenizer() if path is None else FileTokenizer(path)


def tokenizer_digest(path: Path) -> Digest:
    """What the manifest calls `model.tokenizer_digest`. Raises DataError."""
    return content_digest(_read(path))


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _FILE_LIMIT else b""
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}.") from error
    if size > _FILE_LIMIT:
        raise DataError(f"{path} has {size:,} bytes, a tokenizer at most {_FILE_LIMIT:,}: choose another file.")
    return data


def _texts(pieces: Iterable[bytes], changed: Callable[[str], None]) -> Iterator[str]:
    """Decoded stretches of about a piece each, cut after a line end where there is one."""
    decoder: codecs.IncrementalDecoder | None = None
    rest, repaired = "", False
    for piece in pieces:
        if decoder is None:
            decoder = codecs.getincrementaldecoder(wide_encoding(piece[:4]) or "utf-8-sig")(errors="replace")
        text = decoder.decode(piece)
        repaired = repaired or ("\ufffd" in text and "\ufffd".encode() not in piece)
        text = rest + text
        cut = text.rfind("\n") + 1 or len(text)
        rest = text[cut:]
        if cut:
            yield text[:cut]
    if decoder is not None:
        tail = decoder.decode(b"", final=True)
        repaired = repaired or bool(tail)
        if rest + tail:
            yield rest + tail
    if repaired:
        changed("bytes that are not valid text became U+FFFD")


