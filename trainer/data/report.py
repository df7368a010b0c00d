"""What became of a corpus: how much was read, and each file and row that was left out, with its reason.

Memory stays bounded however dirty the corpus is: the first skips are kept by name, all of them are counted by reason.
"""

import collections
from dataclasses import dataclass

NAMED_SKIPS = 100


@dataclass(frozen=True)
class Skip:
    where: str   # file, relative to the folder that was given; rows as `file:12`
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class CorpusReport:
    """Counts cover what has been read so far: everything where `complete`, else enough to know that there is text."""

    files: int
    documents: int
    text_bytes: int
    skipped: int                  # files, folders and rows that were left out
    reasons: tuple[tuple[str, int], ...]   # (reason, how many), the most frequent first
    named: tuple[Skip, ...]       # the first NAMED_SKIPS of them
    notes: tuple[Skip, ...] = ()  # what was read, but not as it stands (text that had to be repaired for a tokenizer)
    complete: bool = True

    def sentence(self) -> str:
        """One sentence on what was read and what was left out, for a person."""
        documents, files = _count(self.documents, "document"), _count(self.files, "file")
        read = f"{documents}, {self.text_bytes:,} bytes from {files}"
        if not self.skipped:
            return f"{read}; nothing skipped."
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.reasons[:4])
        first = "; first " + ", ".join(skip.where for skip in self.named[:3]) if self.named else ""
        return f"{read}; {self.skipped} skipped ({reasons}{first})."


class Tally:
    """The growing form of a report, filled by the walk, the readers and the token builder."""

    def __init__(self) -> None:
        self.files = 0
        self.documents = 0
        self.text_bytes = 0
        self._skipped = 0
        self._reasons: collections.Counter[str] = collections.Counter()
        self._named: list[Skip] = []
        self._notes: list[Skip] = []

    def skip(self, where: str, reason: str, detail: str = "") -> None:
        """Count something left out. `reason` is one of few; `detail` goes into the named skip only."""
        self._skipped += 1
        self._reasons[reason] += 1
        if len(self._named) < NAMED_SKIPS:
            self._named.append(Skip(_printable(where), f"{reason} ({detail})" if detail else reason))

    def note(self, where: str, what: str) -> None:
        if len(self._notes) < NAMED_SKIPS:
            self._notes.append(Skip(_printable(where), what))

    def report(self, *, complete: bool) -> CorpusReport:
        return CorpusReport(
            files=self.files, documents=self.documents, text_bytes=self.text_bytes, skipped=self._skipped,
            reasons=tuple(self._reasons.most_common()), named=tuple(self._named), notes=tuple(self._notes),
            complete=complete,
        )


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _printable(text: str) -> str:
    """File names may hold any bytes; what a person reads (and JSON carries) may not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
