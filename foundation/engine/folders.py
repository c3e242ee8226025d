"""The folder of a study's results: its name, and whether it can be written."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from foundation.base.checks import BadInput
from foundation.engine import keys


def folder_name(config: Any, data_word: str = "") -> str:
    """Name a configuration's folder by preset and the flags that differ from it, as paper+seed=1.

    Flags that are axes of the study files, or do not change numbers, are left out by `_leaves`.
    Settings of JAX that are not at their default join the name, as paper+jax_enable_x64=True.
    data_word: names other data than the preset's, "" for the preset's. Of a name of more than 150
    characters a hash stands behind the preset.
    """
    usual = dict(_leaves(config.presets.get(config.preset, config)))
    parts = [config.preset]
    for flag, value in _leaves(config):
        if value != usual.get(flag):
            parts.append(f"{flag}={value}")
    if data_word:
        parts.append(f"data={data_word}")
    for name, value in keys.jax_settings().items():
        if value != keys.SETTINGS[name]:
            parts.append(f"{name}={value}")
    name = "+".join(parts)
    if len(name) <= 150:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{config.preset}+{digest[:12]}"


def _leaves(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a configuration's fields that are no axes."""
    axes = getattr(config, "AXES", ())
    for item in fields(config):
        value = getattr(config, item.name)
        name = f"{path}{item.name}"
        if is_dataclass(value):
            yield from _leaves(value, f"{name}.")
        elif item.name not in axes:
            values = value if isinstance(value, tuple) else (value,)
            text = ",".join(map(keys.word_of, values))
            text_for_path = re.sub(r"[^\w.,=-]+", "-", text)
            yield name, text_for_path


def writable_folder(folder: Path) -> Path:
    """Make the folder; BadInput in one line where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BadInput(f"--out: cannot write to {folder} ({error.strerror})") from None
