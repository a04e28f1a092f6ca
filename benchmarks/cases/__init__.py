"""What is measured: every case describes all its sides next to each other, in one file of this folder.

A side is a function that imports its library, builds its inputs and returns the call to be timed. Case files import
neither NumPy nor PyTorch at the top: the process that compares loads neither.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

Build = Callable[[], Callable[[], object]]

RECURRENCES = ("scan", "rglru", "wkv", "selective_scan", "qrnn", "lstm", "aft")
MODELS = ("train_step", "decode", "rwkv", "mamba", "ttt", "recurrent_depth")
MODULES = ("op_overhead", *RECURRENCES, "host_kernels", *MODELS)


@dataclass(frozen=True)
class Case:
    name: str
    sides: dict[str, Build]  # the word before the first dash names the library: "torch-unbind" runs on torch
    threads: int = 2
    per_call: int = 1  # how many steps, ops or tokens one call does
    unit: str = "step"


def all_cases() -> dict[str, Case]:
    modules = (import_module(f"{__name__}.{name}") for name in MODULES)
    return {case.name: case for module in modules for case in module.CASES}
