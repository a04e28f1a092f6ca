"""What a kernel asks for, read from its own text, so that no second list of its parameters can go stale.

    extern "C" __global__ void scan_forward(
        const real* __restrict__ a,   // (time, rows)
        real* __restrict__ h,         // (time, rows)
        int time, long long rows)

`real` is float or double, chosen when the text is compiled. A shape behind a pointer is part of the contract: its words
are other parameters or numbers, and an array of another size is refused at the launch.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# C type -> NumPy dtype; "real" is whatever the arrays of the launch are.
DTYPES = {
    "real": "real",
    "float": "float32",
    "double": "float64",
    "int": "int32",
    "long long": "int64",
    "unsigned int": "uint32",
    "unsigned char": "uint8",
    "bool": "bool",
}
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(')
_SHAPE = re.compile(r"\(([\w\s,]+)\)( or null)?")  # at the very start of a comment
_PARAMETER = re.compile(  # written with single blanks
    rf"(?P<const>const )?(?P<type>{'|'.join(DTYPES)}) ?(?P<pointer>\*)? ?(?P<alone>__restrict__ )?\b(?P<name>\w+)$"
)


class Parameter(NamedTuple):
    """`const real* __restrict__ a,  // (time, rows)`, taken apart."""

    name: str
    type: str  # a key of DTYPES
    pointer: bool = False
    const: bool = False
    alone: bool = False  # __restrict__: no other argument lies in the same memory
    shape: tuple[str, ...] = ()  # of names and numbers; empty: not given
    optional: bool = False  # "or null" behind the shape


def parse(text: str) -> dict[str, tuple[Parameter, ...]]:
    """The kernels of a .cu text: name -> parameters. A ValueError names what it cannot read."""
    return {match[1]: tuple(_parameters(match[1], text[match.end() :])) for match in _KERNEL.finditer(text)}


def _parameters(kernel: str, rest: str) -> list[Parameter]:
    """The parameters in `rest`, which begins behind the opening parenthesis."""
    parameters: list[Parameter] = []
    for token in re.finditer(r"//(?P<comment>[^\n]*)|(?P<text>[^,)/]+)|(?P<end>\))", rest):
        if token["end"]:
            return parameters
        if token["comment"] is not None:  # it belongs to the parameter before it
            shape = _SHAPE.match(token["comment"].strip())
            if shape and parameters and parameters[-1].pointer:
                names = tuple(word.strip() for word in shape[1].split(",") if word.strip())
                parameters[-1] = parameters[-1]._replace(shape=names, optional=shape[2] is not None)
        elif words := " ".join(token["text"].split()):
            match = _PARAMETER.match(words)
            if match is None:
                expected = f"expected a value of, or a pointer to, {', '.join(DTYPES)}"
                raise ValueError(f"{kernel}: cannot read the parameter '{words}'; {expected}")
            pointer, const, alone = (match[group] is not None for group in ("pointer", "const", "alone"))
            parameters.append(Parameter(match["name"], match["type"], pointer, const, alone))
    raise ValueError(f"{kernel}: its list of parameters has no end")
