"""Vectors between local processes: anonymous memory whose descriptor travels over a socket.

`memfd_create` where there is one, sealed against a change of size, so that a mapping can never fault; elsewhere a
temporary file without a name. Nothing survives the processes that hold it. Used by both ends of the trainer's socket.
"""

import fcntl
import mmap
import os
import tempfile

import numpy as np
import numpy.typing as npt

from atoll.node.errors import IpcError

_ITEM_BYTES = 4
_SIZE_SEALS = 0x0002 | 0x0004  # F_SEAL_SHRINK | F_SEAL_GROW; fcntl has the names from Python 3.8 on Linux only
_WRITE_SEAL = 0x0008
_ADD_SEALS, _GET_SEALS = 1033, 1034
_COPY_BYTES = 1 << 24


def create(numel: int) -> int:
    """A descriptor of `4 * numel` zero bytes whose size is fixed. The caller closes it. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("atoll-vector", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        descriptor, path = tempfile.mkstemp(prefix="atoll-vector-")
        os.unlink(path)  # noqa: PTH108
    try:
        os.ftruncate(descriptor, numel * _ITEM_BYTES)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, _ADD_SEALS, _SIZE_SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def publish(values: npt.NDArray[np.float32]) -> int:
    """A descriptor with a copy of `values` that nobody can change any more. The caller closes it. Raises OSError."""
    descriptor = create(values.size)
    try:
        view = np.ascontiguousarray(values, dtype=np.float32).data.cast("B")
        for start in range(0, len(view), _COPY_BYTES):
            _write_all(descriptor, view[start:start + _COPY_BYTES], start)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(descriptor, _ADD_SEALS, _WRITE_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def attach(descriptor: int, numel: int, *, writable: bool = False) -> npt.NDArray[np.float32]:
    """`(numel,) float32` over the descriptor's memory, which lives as long as the array does.

    The caller keeps and closes the descriptor. Raises IpcError unless it holds `numel` values and cannot shrink.
    """
    size = os.fstat(descriptor).st_size
    if numel < 1 or size != numel * _ITEM_BYTES:
        raise IpcError(f"shared memory of {size} bytes where {numel} float32 values were announced")
    if hasattr(os, "memfd_create") and not _seals(descriptor) & _SIZE_SEALS == _SIZE_SEALS:
        raise IpcError("shared memory that its sender could still shrink")
    if writable:
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    else:  # private, since kernels before 6.7 refuse shared mappings of memory that is sealed against writing
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return np.frombuffer(memory, dtype=np.float32)


def _seals(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, _GET_SEALS)
    except OSError:
        return 0  # an ordinary file has no seals


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
