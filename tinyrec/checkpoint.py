"""Checkpoints: arrays and a little JSON in one safetensors file that is either whole, or found to be damaged.

    metadata of the file    "format"     "tinyrec 1"
                            "about"      JSON: {"meta": what the caller gave, "tensors": {name: checksum}}
                            "checksum"   of the text "about"
    tensors                 any names

Two promises. A file never lies: each tensor's checksum covers its dtype, shape and bytes, "about" has its own, so a
flipped bit anywhere is found. And a good file is never lost: the new one is written beside the old one, forced to the
disk, and takes its name in one atomic step, so after a crash at any moment there is the old one or the new one.
Nothing is ever unpickled, so a file from a stranger cannot run anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from .backend import get_xp, to_cpu
from .nn import parameters

FORMAT = "tinyrec 1"


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or used; the message is one sentence for the user."""


# --- files ------------------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write tensors and meta to `path`, which holds its old content until all of the new one is on the disk.

    meta: what JSON can hold; tuples come back as lists. One process at a time may write to a path: the temporary file
    has a fixed name, `path` plus ".tmp", so that one left behind by a killed run is overwritten by the next save.
    """
    path = Path(path)
    # safetensors writes the memory of a transposed array as it lies (version 0.8), so make all of them C-ordered and
    # little-endian. (np.ascontiguousarray would turn shape () into (1,).)
    arrays = {name: np.asarray(to_cpu(a), order="C") for name, a in tensors.items()}
    arrays = {name: a.astype(a.dtype.newbyteorder("<"), copy=False) for name, a in arrays.items()}
    try:
        about = json.dumps({"meta": meta, "tensors": {name: _checksum(a) for name, a in arrays.items()}})
        content = to_safetensors(arrays, {"format": FORMAT, "about": about, "checksum": _digest(about.encode())})
    except (TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"a checkpoint cannot hold this: {error}") from error
    _replace(path, content)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors and meta that `save` wrote, bit for bit, or a CheckpointError that says what is wrong."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)  # safetensors: the length of a JSON header in 8 bytes, then the header
        if not start:
            raise CheckpointError(f"{path} is empty")
        if start[8:] != b"{":
            raise CheckpointError(f"{path} is not a safetensors file")
        with safe_open(path, "np") as file:
            about = _about(path, file.metadata() or {})
            if set(about["tensors"]) != set(file.keys()):
                raise CheckpointError(f"{path} is damaged: its list of tensors does not match its content")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is cut short or damaged ({error})") from error
    for name, array in tensors.items():
        if _checksum(array) != about["tensors"][name]:
            raise CheckpointError(f"{path} is damaged: the checksum of tensor {name} is wrong")
    return tensors, about["meta"]


def _about(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The checked JSON part of a file's metadata."""
    written = metadata.get("format", "")
    if not written.startswith("tinyrec "):
        raise CheckpointError(f"{path} is a safetensors file, but no checkpoint of tinyrec")
    if written != FORMAT:
        raise CheckpointError(f"{path} has the format {written!r}, and this version of the library reads {FORMAT!r}")
    if _digest(metadata.get("about", "").encode()) != metadata.get("checksum"):
        raise CheckpointError(f"{path} is damaged: the checksum of its metadata is wrong")
    return json.loads(metadata["about"])


def _checksum(array: np.ndarray) -> str:
    return _digest(f"{array.dtype.name} {array.shape} ".encode(), array.ravel().view(np.uint8).data)


def _digest(*parts: bytes | memoryview) -> str:
    blake = hashlib.blake2b(digest_size=16)
    for part in parts:
        blake.update(part)
    return blake.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Make `content` the content of the file, in one step that a crash can only prevent or not prevent."""
    temporary = path.with_name(path.name + ".tmp")  # in the same folder: a rename across disks is a copy
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # the bytes are on the disk before the name points to them
        os.replace(temporary, path)
        if os.name == "posix":  # and so is the new name
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # only there if something went wrong, Ctrl-C included


# --- random state -----------------------------------------------------------------------------------------------------


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of np.random.default_rng(...) as JSON: whole numbers, of up to 128 bits, which JSON keeps exactly."""
    state = dict(rng.bit_generator.state)
    if state["bit_generator"] != "PCG64":
        raise CheckpointError(f"only the state of a PCG64 generator can be saved, got a {state['bit_generator']}")
    return state


def rng_from_state(state: Mapping[str, Any]) -> np.random.Generator:
    """A Generator that goes on exactly where the saved one stood. (Its .spawn() does not: that hangs on the seed.)"""
    bits: Any = np.random.PCG64(0)
    try:
        bits.state = state
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"this is not the state of a PCG64 generator: {error}") from error
    return np.random.Generator(bits)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """A saved training run: all that is needed to rebuild the model and go on.

    name and config rebuild the model (models.build), `restore` fills it, optimizer is for AdamW.load_state.
    """

    name: str
    config: dict[str, Any]
    parameters: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray] | None
    step: int
    rng: np.random.Generator | None
    extra: dict[str, Any]

    @property
    def dtype(self) -> np.dtype:
        return next(iter(self.parameters.values())).dtype


def save_run(
    path: str | os.PathLike,
    model: Any,
    optimizer: Any = None,
    step: int = 0,
    rng: np.random.Generator | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save a model and what its training needs to go on; `extra` is JSON of the caller's."""
    tensors = {f"model.{name}": tensor.data for name, tensor in parameters(model)}
    if optimizer is not None:
        tensors |= {f"optimizer.{key}": array for key, array in optimizer.state().items()}
    meta = {
        "name": model.name,
        "config": dataclasses.asdict(model.config),
        "step": step,
        "rng": None if rng is None else rng_state(rng),
        "extra": dict(extra or {}),
    }
    save(path, tensors, meta)


def load_run(path: str | os.PathLike) -> Run:
    """What `save_run` wrote."""
    tensors, meta = load(path)
    if not {"name", "config", "step", "rng", "extra"} <= meta.keys():
        raise CheckpointError(f"{path} holds tensors, but not a training run")
    rng = None if meta["rng"] is None else rng_from_state(meta["rng"])
    optimizer = _below("optimizer.", tensors) or None
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in meta["config"].items()}
    return Run(meta["name"], config, _below("model.", tensors), optimizer, meta["step"], rng, meta["extra"])


def _below(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def restore(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the arrays into the model's parameters; if one is missing, unknown or misshapen, change nothing."""
    mine = dict(parameters(model))
    wrong = [
        f"{name} {a.dtype} {a.shape} is {mine[name].dtype} {mine[name].shape} in the model"
        for name, a in arrays.items()
        if name in mine and (a.shape, a.dtype) != (mine[name].shape, mine[name].dtype)
    ]
    complaints = [
        _shorten("missing", [name for name in mine if name not in arrays]),
        _shorten("unknown", [name for name in arrays if name not in mine]),
        _shorten("different", wrong),
    ]
    if any(complaints):
        raise CheckpointError(f"this is a checkpoint of another model: {'; '.join(filter(None, complaints))}")
    for name, tensor in mine.items():
        tensor.data[...] = get_xp(tensor.data).asarray(arrays[name])


def _shorten(what: str, items: list[str], at_most: int = 3) -> str:
    """`missing a, b, c and 7 more`, or nothing for nothing."""
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return f"{what} {', '.join(items[:at_most])}{more}" if items else ""
