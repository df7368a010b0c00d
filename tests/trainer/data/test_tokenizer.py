"""A tokenizer.json beside the bytes: ids in bounds, one separator, long and damaged text in bounded pieces."""

from pathlib import Path

import numpy as np
import pytest

from atoll.protocol.manifest import DataSettings
from atoll.trainer.data import DataError, documents
from atoll.trainer.data.files import Corpus
from atoll.trainer.data.tokenizer import ByteTokenizer, load_tokenizer, tokenizer_digest
from atoll.trainer.data.tokens import prepare_tokens


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["some text to learn from, some more text"] * 4, trainer)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def ids_of(path: Path, *pieces: bytes) -> tuple[np.ndarray, list[str]]:
    changes: list[str] = []
    return np.concatenate(list(load_tokenizer(path).encode(pieces, changes.append))), changes


def test_text_survives_and_is_not_truncated(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    ids, changes = ids_of(tokenizer_file, b"some text, and more text\n", "grüße".encode())
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.separator == 0
    assert tokenizer.text_bytes(ids) == len("some text, and more text\ngrüße".encode())
    assert changes == []


def test_a_letter_cut_between_two_pieces_is_whole_again(tokenizer_file):
    data = "ü".encode()
    assert ids_of(tokenizer_file, data[:1], data[1:])[0].tolist() == ids_of(tokenizer_file, data)[0].tolist()


def test_wide_text_is_decoded_and_damaged_text_is_repaired_by_name(tokenizer_file):
    assert ids_of(tokenizer_file, "text".encode("utf-16"))[0].tolist() == ids_of(tokenizer_file, b"text")[0].tolist()
    assert ids_of(tokenizer_file, b"te\xffxt")[1] == ["bytes that are not valid text became U+FFFD"]


def test_token_files_of_a_tokenizer_name_what_was_changed(tokenizer_file, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "PIECE_BYTES", 64)
    (tmp_path / "text.txt").write_bytes(b"line of text\n" * 50 + b"\xff")
    corpus = Corpus.choose([tmp_path / "text.txt"], "local")
    tokens = prepare_tokens(tmp_path / "home", corpus, DataSettings(), load_tokenizer(tokenizer_file))
    assert [note.where for note in tokens.report.notes] == ["text.txt"]
    assert tokens.training.dtype == np.dtype("<u2")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xff"])
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="tokenizer"):
        load_tokenizer(path)


def test_bytes_need_no_file(tokenizer_file):
    assert isinstance(load_tokenizer(None), ByteTokenizer)
    assert len(tokenizer_digest(tokenizer_file)) == 32
