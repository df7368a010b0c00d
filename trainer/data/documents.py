"""Files to documents: text as it is, one document a file; JSONL and parquet, one document a row.

A document is a stream of byte pieces, so that a file of any size is read in bounded memory. Bytes are passed on exactly
as they stand; what they mean is the tokenizer's business. Whatever cannot be read is skipped by name and counted.
Never opens anything but regular files.
"""

import codecs
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, AnyStr

from atoll.trainer.data.files import Source
from atoll.trainer.data.report import Tally

PIECE_BYTES = 1 << 20
ROW_LIMIT = 64 << 20
"""A longer JSONL row is skipped: parsing takes several times its size in memory."""

_BINARY = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"), (b"7z\xbc\xaf", "7z"), (b"\x7fELF", "a program"),
    (b"\x89PNG", "an image"), (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"), (b"%PDF-", "PDF"), (b"SQLite format 3\0", "a database"), (b"ARROW1", "Arrow"),
)
_WIDE = (  # in this order: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Document:
    """`split_key` decides whether it is held out: the file's name, or the row's text."""

    where: str
    split_key: bytes
    pieces: Iterator[bytes]


def wide_encoding(head: bytes) -> str | None:
    """`utf-16` or `utf-32` where the text starts with such a byte order mark."""
    return next((name for mark, name in _WIDE if head.startswith(mark)), None)


def read_documents(source: Source, text_field: str, tally: Tally) -> Iterator[Document]:
    """The documents of one file, in order; each one's pieces must be used up before the next is asked for."""
    if not source.size:
        tally.skip(source.name, "empty file")
        return
    try:
        file = _open_regular(source.path)
    except OSError as error:
        tally.skip(source.name, "unreadable file", str(error.strerror or error))
        return
    with file:
        try:
            head = file.read(16)
            file.seek(0)
        except OSError as error:
            tally.skip(source.name, "unreadable file", str(error.strerror))
            return
        tally.files += 1
        yield from _reader(source, head, tally)(source, file, text_field, tally)


def _reader(source: Source, head: bytes, tally: Tally) -> Callable[[Source, IO[bytes], str, Tally], Iterator[Document]]:
    suffix = Path(source.name).suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return _parquet
    binary = next((what for magic, what in _BINARY if head.startswith(magic)), None)
    if binary:
        tally.files -= 1
        tally.skip(source.name, "not text", f"it is {binary}; unpack or convert it")
        return _nothing
    return _jsonl if suffix in {".jsonl", ".ndjson"} else _text


def _nothing(_source: Source, _file: IO[bytes], _field: str, _tally: Tally) -> Iterator[Document]:
    return iter(())


def _text(source: Source, file: IO[bytes], _field: str, tally: Tally) -> Iterator[Document]:
    def pieces() -> Iterator[bytes]:
        done = 0
        try:
            while piece := file.read(PIECE_BYTES):
                done += len(piece)
                yield piece
        except OSError as error:
            tally.skip(source.name, "rest of a file unreadable", f"after {done} bytes: {error.strerror}")

    yield Document(source.name, os.fsencode(source.name), pieces())


def _jsonl(source: Source, file: IO[bytes], field: str, tally: Tally) -> Iterator[Document]:
    number = 0
    try:
        for number, line in enumerate(_lines(file), 1):
            where = f"{source.name}:{number}"
            if line is None:
                tally.skip(where, "row too long", f"above {ROW_LIMIT >> 20} MiB")
            elif line.strip():
                yield from _row_document(where, _json_text(where, line, field, tally), tally)
    except (OSError, UnicodeError) as error:
        tally.skip(source.name, "rest of a file unreadable", f"after row {number}: {error}")


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines as UTF-8 bytes; None for one above ROW_LIMIT, which is passed over in bounded memory."""
    head = file.read(4)
    wide = wide_encoding(head)
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    if wide is None:
        yield from _bounded_lines(file, b"\n")
        return
    reader = io.TextIOWrapper(file, encoding=wide, newline="\n")
    try:
        for line in _bounded_lines(reader, "\n"):
            yield None if line is None else line.encode()
    finally:
        reader.detach()  # the file is the caller's to close


def _bounded_lines(reader: IO[AnyStr], end: AnyStr) -> Iterator[AnyStr | None]:
    while line := reader.readline(ROW_LIMIT):
        if len(line) < ROW_LIMIT or line.endswith(end):
            yield line
            continue
        while line and not line.endswith(end):
            line = reader.readline(ROW_LIMIT)
        yield None


def _json_text(where: str, line: bytes, field: str, tally: Tally) -> str | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a cut line, invalid UTF-8, absurd nesting or numbers
        tally.skip(where, "row is not JSON", str(error)[:80])
        return None
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        has = ", ".join(sorted(row)[:6]) if isinstance(row, dict) else type(row).__name__
        tally.skip(where, "row without text", f"no text in `{field}`; there is {has or 'nothing'}"[:160])
        return None
    return text


def _row_document(where: str, text: str | bytes | None, tally: Tally) -> Iterator[Document]:
    if text is None:
        return
    try:
        data = text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError:
        tally.skip(where, "row is not Unicode", "it holds half of a surrogate pair")
        return
    if not data:
        tally.skip(where, "empty row")
        return
    yield Document(where, data, iter((data,)))


def _parquet(source: Source, file: IO[bytes], field: str, tally: Tally) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        table = pq.ParquetFile(file, pre_buffer=False)
        names = table.schema_arrow.names
        if field not in names:
            tally.files -= 1
            there = ", ".join(names[:6]) or "nothing"
            tally.skip(source.name, "no text column", f"no `{field}`; there is {there}"[:160])
            return
        kind = table.schema_arrow.field(field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            tally.files -= 1
            tally.skip(source.name, "no text column", f"`{field}` holds {kind}")
            return
        for batch in table.iter_batches(batch_size=64, columns=[field], use_threads=False):
            for value in batch.column(0):
                number += 1
                where, text = f"{source.name}:{number}", value.as_py()
                if text is None:
                    tally.skip(where, "row without text", "null")
                yield from _row_document(where, text, tally)
    except (pa.ArrowException, OSError, ValueError) as error:
        what = "rest of a file unreadable" if number else "not a parquet file"
        tally.skip(source.name, what, (str(error).splitlines() or [type(error).__name__])[0][:120])


def _open_regular(path: str) -> IO[bytes]:
    """Open without ever blocking, also where the path has become a FIFO since it was listed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file any more")  # noqa: TRY301
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
