"""Refusing a corpus up front: is there text at all that can be trained on? Reads no more than it takes to know.

Called by the command line before anything is started; needs no torch.
"""

from collections.abc import Sequence
from pathlib import Path

from atoll.protocol.manifest import DataSettings
from atoll.trainer.data.documents import read_documents
from atoll.trainer.data.errors import DataError
from atoll.trainer.data.files import Corpus
from atoll.trainer.data.report import CorpusReport, Tally
from atoll.trainer.data.split import MINIMUM_TOKENS

_ENOUGH_BYTES = 256


def check_corpus(paths: Sequence[Path], settings: DataSettings | None = None) -> CorpusReport:
    """Raise DataError with one sentence for paths (or, without any, a source) that hold nothing to train on.

    The report is of what was read: not `complete` as soon as there is enough text to be sure.
    """
    settings = settings or DataSettings(source="local")
    corpus, tally = Corpus.choose(paths, settings.source), Tally()
    for source in corpus.sources(tally):
        for document in read_documents(source, settings.text_field, tally):
            size = 0
            for piece in document.pieces:
                size += len(piece)
                if size >= _ENOUGH_BYTES:
                    break
            tally.documents += bool(size)
            tally.text_bytes += size
            if tally.text_bytes >= _ENOUGH_BYTES:
                return tally.report(complete=False)
    report = tally.report(complete=True)
    if report.text_bytes + report.documents < MINIMUM_TOKENS:
        raise too_little(corpus, report)
    return report


def too_little(corpus: Corpus, report: CorpusReport) -> DataError:
    where = ", ".join(str(root) for root in corpus.roots)
    if report.text_bytes:
        size, least = report.text_bytes, MINIMUM_TOKENS - 1
        return DataError(f"{where} holds {size} bytes of text, at least {least} are needed: give more text.")
    because = f" ({'; '.join(str(skip) for skip in report.named[:3])})" if report.named else ""
    return DataError(f"{where} holds no text that can be trained on{because}: give text, JSONL or parquet files.")


