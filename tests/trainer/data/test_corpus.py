"""Dirty and tiny corpora: readable text is kept byte for byte, everything else is counted and named, nothing blocks."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoll.protocol.manifest import DataSettings
from atoll.trainer.data import DataError, check_corpus, documents
from atoll.trainer.data.files import Corpus
from atoll.trainer.data.report import CorpusReport, Tally
from atoll.trainer.data.tokenizer import ByteTokenizer
from atoll.trainer.data.tokens import TokenFiles, prepare_tokens

LOCAL = DataSettings(source="local")
SEPARATOR = ByteTokenizer.separator


def prepare(path: Path, home: Path, settings: DataSettings = LOCAL) -> TokenFiles:
    return prepare_tokens(home, Corpus.choose([path], "local"), settings, ByteTokenizer())


def texts(tokens: TokenFiles) -> set[bytes]:
    """The documents on both sides of the split, as bytes."""
    whole = np.concatenate([tokens.training, tokens.held_out])
    ends = np.flatnonzero(whole == SEPARATOR)
    starts = np.concatenate([[0], ends[:-1] + 1])
    return {whole[start:end].astype(np.uint8).tobytes() for start, end in zip(starts, ends, strict=True)}


def reasons(report: CorpusReport) -> dict[str, int]:
    return dict(report.reasons)


DIRTY = {
    "crlf.txt": b"one\r\ntwo\r\n",
    "nul.txt": b"a\0b\0\0c",
    "invalid.txt": b"caf\xe9 \xff\xfe\xfd end",
    "latin.txt": "Grüße".encode("latin-1"),
    "utf16.txt": "wide text".encode("utf-16"),
    "bom.txt": b"\xef\xbb\xbfmarked",
    "no-newline.txt": b"x" * 300_000,
    "every-byte.txt": bytes(range(256)),
}


@pytest.mark.parametrize("name", sorted(DIRTY))
def test_dirty_text_alone_is_kept_byte_for_byte(name, tmp_path):
    (tmp_path / name).write_bytes(DIRTY[name])
    assert check_corpus([tmp_path / name]).documents == 1
    tokens = prepare(tmp_path / name, tmp_path / "home")
    assert texts(tokens) == {DIRTY[name]}
    assert tokens.held_out.size >= 2
    assert tokens.report.skipped == 0


def test_one_folder_with_everything_that_can_be_wrong(tmp_path):
    folder = tmp_path / "ü corpus"
    (folder / "deeper").mkdir(parents=True)
    for name, data in DIRTY.items():
        (folder / "deeper" / name).write_bytes(data)
    (folder / "rows.jsonl").write_bytes(
        b'{"text": "row one"}\n{"text": null}\n\n{"text": ""}\n{"other": 1}\n"bare"\n{"text": "\\ud800"}\n'
        b'{"text": "caf\xff"}\n' + b"[" * 100_000 + b'\n{"text": "cu'
    )
    pq.write_table(pa.table({"text": ["parquet one", None, ""], "n": [1, 2, 3]}), folder / "good.parquet")
    pq.write_table(pa.table({"body": ["x"]}), folder / "no-column.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing of it")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "packed.txt.gz").write_bytes(gzip.compress(b"text"))
    (folder / ".hidden").write_text("secret")
    os.mkfifo(folder / "pipe")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "unreadable.txt").symlink_to("/proc/self/mem")
    (folder / "loop").symlink_to(folder)
    (folder / "turn").symlink_to(folder / "turn")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.txt").write_text("behind a link")
    (folder / "linked").symlink_to(outside)

    tokens = prepare(folder, tmp_path / "home")
    assert texts(tokens) == {*DIRTY.values(), b"row one", b"parquet one", b"behind a link"}
    assert reasons(tokens.report) == {
        "row without text": 4,
        "row is not JSON": 3,
        "empty row": 2,
        "row is not Unicode": 1,
        "no text column": 2,
        "not a parquet file": 1,
        "empty file": 2,
        "not text": 1,
        "hidden": 1,
        "not a regular file": 1,
        "unreadable file": 2,
        "folder already read under another name": 1,
    }
    named = {skip.where for skip in tokens.report.named}
    assert {
        "pipe",
        "empty.txt",
        "rows.jsonl:2",
        "rows.jsonl:10",
        "good.parquet:2",
        "packed.txt.gz",
        "loop",
        "turn",
    } <= named
    assert "skipped" in tokens.report.sentence()


def test_a_file_that_fails_while_it_is_read_is_named(tmp_path, monkeypatch):
    """/proc/self/mem is a regular file to `stat`, says it has no bytes, and answers a read with an error."""
    source = documents.Source("mem", "/proc/self/mem", 10, 0)
    tally = Tally()
    assert list(documents.read_documents(source, "text", tally)) == []
    assert reasons(tally.report(complete=True)) == {"unreadable file": 1}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"text": "the only row"}', "one.jsonl"),
        (b"abc", "three-bytes.txt"),
        (b"x" * 3000, "small.txt"),
    ],
)
def test_the_smallest_corpora_have_both_sides(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    tokens = prepare(tmp_path / name, tmp_path / "home")
    assert tokens.training.size >= 2
    assert tokens.held_out.size >= 2
    assert tokens.training.size >= tokens.held_out.size


@pytest.mark.parametrize("count", [1, 2, 3, 7, 60])
def test_every_number_of_documents_has_both_sides_and_loses_none(count, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    expected = set()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"document {number}")
        expected.add(f"document {number}".encode())
    tokens = prepare(folder, tmp_path / "home")
    assert tokens.held_out.size >= 2
    assert tokens.training.size >= tokens.held_out.size
    assert texts(tokens) == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "holds no text"),
        (lambda path: path.write_bytes(b"ab"), "at least 3 are needed"),
        (lambda path: path.mkdir(), "holds no text"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot read"),
        (lambda path: path.write_bytes(gzip.compress(b"text")), "gzip"),
    ],
)
def test_an_unusable_corpus_is_refused_with_one_sentence(make, words, tmp_path):
    path = tmp_path / "given"
    make(path)
    for refuse in (lambda: check_corpus([path]), lambda: prepare(path, tmp_path / "home")):
        with pytest.raises(DataError, match=words) as caught:
            refuse()
        assert str(path) in str(caught.value)
        assert caught.value.code == "bad_data"


def test_a_misspelt_path_gets_a_suggestion(tmp_path):
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(DataError, match=r"did you mean `corpus\.txt`"):
        check_corpus([tmp_path / "corpsu.txt"])


def test_a_local_run_without_paths_says_what_to_give():
    with pytest.raises(DataError, match="--data"):
        check_corpus([])


def test_relative_and_linked_paths_are_the_same_corpus(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.txt").write_text(f"document {number}")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    by_name, by_link, relative = (
        prepare(path, tmp_path / f"home-{number}")
        for number, path in enumerate((folder, tmp_path / "link", Path("text")))
    )
    assert by_name.digest == by_link.digest == relative.digest
    assert np.array_equal(by_name.held_out, by_link.held_out)


def test_a_document_is_on_the_same_side_whatever_surrounds_it(tmp_path):
    rows = [json.dumps({"text": f"row {number} of the numbered rows"}) for number in range(400)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(rows[100:])))
    a, b = (prepare(tmp_path / name, tmp_path / name[0]) for name in ("a.jsonl", "b.jsonl"))
    sides = [
        {text for text in bytes(t.held_out[t.held_out < 256].astype(np.uint8)).split(b"row ") if text} for t in (a, b)
    ]
    assert 10 < len(sides[0]) < 40
    assert sides[1] < sides[0]


def test_rows_of_wide_and_marked_encodings_are_read(tmp_path):
    line = '{"text": "grüße"}\n'
    for name, data in {"a.jsonl": line.encode("utf-16"), "b.jsonl": b"\xef\xbb\xbf" + line.encode()}.items():
        (tmp_path / name).write_bytes(data)
        assert texts(prepare(tmp_path / name, tmp_path / "home")) == {"grüße".encode()}


def test_a_row_too_long_is_passed_over_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROW_LIMIT", 64)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x" * 500}) + "\n" + json.dumps({"text": "short"}) + "\n")
    tokens = prepare(tmp_path / "rows.jsonl", tmp_path / "home")
    assert texts(tokens) == {b"short"}
    assert reasons(tokens.report) == {"row too long": 1}


def test_memory_does_not_grow_with_a_file(tmp_path):
    with (tmp_path / "giant.txt").open("wb") as file:
        for _ in range(48):
            file.write(b"y" * (1 << 20))
    tracemalloc.start()
    prepare(tmp_path / "giant.txt", tmp_path / "home")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 << 20


def test_token_files_are_made_once_and_anew_when_the_corpus_changes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("first text")
    first = prepare(path, tmp_path / "home")
    (made,) = (tmp_path / "home").iterdir()
    before = (made / "tokens.json").stat().st_mtime_ns
    assert prepare(path, tmp_path / "home").digest == first.digest
    assert (made / "tokens.json").stat().st_mtime_ns == before
    path.write_text("another text")
    assert prepare(path, tmp_path / "home").digest != first.digest
    assert len(list((tmp_path / "home").iterdir())) == 1


def test_damaged_token_files_are_named(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("some text")
    prepare(path, tmp_path / "home")
    (made,) = (tmp_path / "home").iterdir()
    (made / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        prepare(path, tmp_path / "home")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write token files"):
        prepare(tmp_path / "text.txt", tmp_path / "file")


def test_the_default_corpus_is_the_standard_library_without_what_differs():
    corpus = Corpus.choose([], "stdlib")
    names = [source.name for source in corpus.sources(Tally())]
    assert "json/decoder.py" in names
    assert not [name for name in names if {"site-packages", "test", "tests"} & set(name.split("/"))]
    assert names == sorted(names, key=lambda name: [part.encode() for part in name.split("/")])
    assert check_corpus([], DataSettings()).documents >= 1
