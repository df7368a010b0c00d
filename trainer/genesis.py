"""Genesis: the first outer state as bytes, and the digest that names it in the manifest.

The file holds the outer vector, little-endian float32 in canonical order (`flatten`); momentum, where the outer
optimizer has it, is zero and is hashed without being stored. A seed is no genesis: random numbers differ between CPUs.
Called once per run, by whoever signs it; torch is needed for making, not for reading and checking.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from atoll.protocol.digest import Digest, array_digest, state_digest
from atoll.protocol.errors import MismatchError
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Draft, GenesisSettings
from atoll.trainer.data.tokenizer import load_tokenizer


def make_genesis(draft: Draft, out_path: Path, tokenizer_path: Path | None = None) -> GenesisSettings:
    """Write the vector of a newly initialised model to `out_path` and say what the manifest must hold.

    `tokenizer_path` stands for the draft's own where that is not `bytes`. Raises ManifestError for a model that cannot
    be built, DataError for the tokenizer, OSError where the file cannot be written.
    """
    from atoll.trainer.flatten import canonical_entries
    from atoll.trainer.model import model_config, seeded_model

    if draft.model.tokenizer == "bytes":
        tokenizer_path = None
    elif tokenizer_path is None:
        tokenizer_path = Path(draft.model.tokenizer)
    tokenizer = load_tokenizer(tokenizer_path)
    model = seeded_model(model_config(draft.model, tokenizer.vocab_size, tokenizer.separator), draft.run.seed)
    parameters, entries = dict(model.named_parameters()), canonical_entries(model)
    with out_path.open("wb") as file:
        for entry in entries:
            file.write(np.ascontiguousarray(parameters[entry.name].detach().numpy(), "<f4").data)
    numel = entries[-1].stop
    return GenesisSettings(numel, genesis_digest(read_vector(out_path, numel), draft))


def genesis_digest(vector: npt.NDArray[np.float32], draft: Draft) -> Digest:
    """State digest of round 0: the vector's parts, then as many parts of zero momentum where there is momentum."""
    layout = Layout(vector.size, draft.exchange.part_elements)
    chunks = [array_digest(vector[bounds]) for bounds in layout]
    if draft.outer.momentum:
        sizes = {layout.size(0), layout.size(layout.parts - 1)}
        zeros = {size: array_digest(np.zeros(size, np.float32)) for size in sizes}
        chunks += [zeros[layout.size(part)] for part in range(layout.parts)]
    return state_digest(0, 0, chunks)


def read_vector(path: Path, numel: int) -> npt.NDArray[np.float32]:
    """A genesis file as a read-only map. Raises MismatchError for another size than `numel` float32 values."""
    size = path.stat().st_size
    if size != 4 * numel:
        raise MismatchError(f"{path} has {size} bytes where {numel} float32 values need {4 * numel}: fetch it again.")
    return np.memmap(path, dtype="<f4", mode="r", shape=(numel,))
