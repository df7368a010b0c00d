"""A peer's text: which files, which documents, which tokens, in which order. Needs no torch and knows no model."""

from atoll.trainer.data.check import check_corpus
from atoll.trainer.data.errors import DataError
from atoll.trainer.data.report import CorpusReport

__all__ = ["CorpusReport", "DataError", "check_corpus"]
