"""The editable draft of a run: every setting with its default and its meaning as a comment, ready to be signed.

Written from the settings' own documentation, so that it can never name a key that the manifest does not know.
"""

import dataclasses
import json
from typing import Any

from atoll.protocol.manifest import (
    DataSettings,
    ExchangeSettings,
    InnerSettings,
    ModelSettings,
    OuterSettings,
    RunSettings,
)

MODEL_CONFIG: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": True,
}
"""The demo's model: 0.8 M parameters on bytes, which four peers train on two cores."""

_SIGNED = frozenset({"tokenizer_digest"})  # signing fills them in
_HEAD = """\
# The draft of a run. Edit it, then `atoll run sign` makes genesis and the signed manifest, which nobody can change.
# Every key that is left out has the value that stands here.
"""


def new_draft(owner: str, name: str) -> str:
    """TOML of a draft owned by `owner` (a PeerID as text)."""
    sections: list[tuple[str, Any, dict[str, Any]]] = [
        ("run", RunSettings, {"name": name, "owner": owner}),
        ("model", ModelSettings, {}),
        ("data", DataSettings, {}),
        ("inner", InnerSettings, {}),
        ("outer", OuterSettings, {}),
        ("exchange", ExchangeSettings, {}),
    ]
    return _HEAD + "".join(_section(title, kind, values) for title, kind, values in sections)


def _section(title: str, kind: Any, values: dict[str, Any]) -> str:
    lines = [f"\n[{title}]"]
    for field in dataclasses.fields(kind):
        if field.name in _SIGNED or field.name == "config":
            continue
        value = values.get(field.name, field.default)
        lines += [f"# {_comment(field)}", f"{field.name} = {_toml(value)}"]
    if kind is ModelSettings:
        config = next(field for field in dataclasses.fields(kind) if field.name == "config")
        lines += ["", "[model.config]", f"# {config.metadata['doc']}"]
        lines += [f"{key} = {_toml(value)}" for key, value in MODEL_CONFIG.items()]
    return "\n".join(lines) + "\n"


def _comment(field: "dataclasses.Field[Any]") -> str:
    bounds = []
    if field.metadata.get("choices"):
        bounds.append("one of " + ", ".join(map(str, field.metadata["choices"])))
    if field.metadata.get("low") is not None and field.metadata.get("high") is not None:
        bounds.append(f"{field.metadata['low']:,} to {field.metadata['high']:,}")
    return str(field.metadata["doc"]) + (f" ({'; '.join(bounds)})" if bounds else "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML basic string
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
