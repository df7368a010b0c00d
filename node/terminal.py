"""Text for people, whatever their terminal is: closed, dumb, not a terminal, or unable to show a letter.

`prepare` is called once at the start of a command. Knows no commands.
"""

import contextlib
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Make printing safe: standard descriptors exist, and a letter that cannot be encoded is replaced."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened must not take its place
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(text: str) -> None:
    """A line on standard output; silently nothing once nobody reads it."""
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """A line on standard error."""
    _write(sys.stderr, text)


def finish() -> None:
    """Flush; a reader that went away early (`| head`) is no error and leaves no message."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def one_line(text: str) -> str:
    """`text` without control characters, which a peer's words could smuggle into the terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _write(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(text + "\n")
            stream.flush()
