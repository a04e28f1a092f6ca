"""The folder of a run.

    checkpoint.safetensors   everything: parameters, optimizer, random stream, step, model config, training options;
                             there from step 0 on, replaced as a whole at each save
    metrics.jsonl            one JSON object per step
    anchors.json             what counting and xz reach on the same text; made once
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import checkpoint
from ..backend import to_cpu
from ..checkpoint import CheckpointError
from ..data import anchors, best
from ..models import MODELS
from ..nn import parameters
from ..train import Options, Source, State, TextSource
from .parser import Mistake, as_mistake


class RunFolder:
    """Where the files of a run are, and how they are read."""

    def __init__(self, path: Path):
        """The folder itself, or its checkpoint."""
        self.path = path.parent if path.suffix == ".safetensors" else path
        self.checkpoint = path if path.suffix == ".safetensors" else path / "checkpoint.safetensors"
        self.metrics = self.path / "metrics.jsonl"

    def create(self) -> None:
        """A new folder; what is there already is never overwritten."""
        if self.checkpoint.exists():
            raise Mistake(f"{self.path} already holds a run; go on with --resume, or choose another folder with --run")
        if self.path.exists() and (not self.path.is_dir() or any(p.suffix != ".tmp" for p in self.path.iterdir())):
            raise Mistake(f"{self.path} exists and holds something else; choose another folder with --run")
        self.path.mkdir(parents=True, exist_ok=True)

    def save(self, state: State, options: Options, text: int) -> None:
        """Replace the checkpoint, unless the last update has left NaN or infinity: then the good one stays."""
        if all(np.isfinite(to_cpu(p.data)).all() for _, p in parameters(state.model)):
            extra = {"options": asdict(options), "text": text}
            with as_mistake(CheckpointError):
                checkpoint.save_run(self.checkpoint, state.model, state.optimizer, state.step, state.data_rng, extra)

    def load(self) -> tuple[checkpoint.Run, Options]:
        if not self.checkpoint.exists():
            raise Mistake(f"{self.path} holds no run: there is no {self.checkpoint}")
        with as_mistake(CheckpointError):
            saved = checkpoint.load_run(self.checkpoint)
        if saved.name not in MODELS:
            raise Mistake(f"{self.checkpoint} holds a model {saved.name!r}; there are only {', '.join(MODELS)}")
        try:
            return saved, Options(**saved.extra.get("options", {}))
        except (TypeError, ValueError) as error:
            raise Mistake(f"{self.checkpoint} was written by another version of tinyrec: {error}") from error

    def records(self) -> Iterator[dict[str, float]]:
        """The lines of metrics.jsonl; a line cut short by a kill ends them."""
        if self.metrics.exists():
            for line in self.metrics.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return

    def forget_after(self, step: int) -> None:
        """Drop the records of steps that the checkpoint does not have; they will be done again."""
        kept = [json.dumps(record) + "\n" for record in self.records() if record["step"] <= step]
        write_whole(self.metrics, "".join(kept))

    def anchors(self, name: str, train: bytes, held_out: bytes) -> dict[str, float]:
        """Bits per byte of the held-out text by the best n-gram and by xz; kept in anchors.json under `name`."""
        known = self.known_anchors()
        if name not in known:
            known[name] = anchors(train, held_out)
            write_whole(self.path / "anchors.json", json.dumps(known, indent=1) + "\n")
        return best_two(known[name])

    def known_anchors(self) -> dict[str, dict[str, float]]:
        path = self.path / "anchors.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def best_two(figures: dict[str, float]) -> dict[str, float]:
    """Only the best n-gram, and xz."""
    name, bits = best({name: bits for name, bits in figures.items() if name != "xz"})
    return {name: bits, "xz": figures["xz"]}


def checksum(source: Source) -> int:
    """A number that changes with the text; 0 for a task."""
    return zlib.crc32(source.split.train) if isinstance(source, TextSource) else 0


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
