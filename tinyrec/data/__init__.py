"""Data: text as bytes, a split without leaks, batches, the figures to beat, and synthetic tasks.

    split = split_text(load_text("pydoc", max_bytes=1_000_000))
    check_length(split, context=256)
    batches = Batches(encode(split.train), length=256)
    tokens, targets = batches.sample(8, rng)                  # (B, T) each
    best(anchors(split.train, split.valid))                   # what counting and xz reach, in bits per byte
"""

from .anchors import anchors, best
from .batches import IGNORE_INDEX, Batches
from .errors import DataError
from .split import Split, check_length, split_text
from .tasks import TASKS, Copy, Induction, Markov, SelectiveCopy, Task, load_task
from .text import SOURCES, load_text
from .vocabulary import VOCAB_SIZE, decode, decode_text, encode

__all__ = [
    "IGNORE_INDEX",
    "SOURCES",
    "TASKS",
    "VOCAB_SIZE",
    "Batches",
    "Copy",
    "DataError",
    "Induction",
    "Markov",
    "SelectiveCopy",
    "Split",
    "Task",
    "anchors",
    "best",
    "check_length",
    "decode",
    "decode_text",
    "encode",
    "load_task",
    "load_text",
    "split_text",
]
