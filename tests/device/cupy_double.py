"""A module that stands in for CuPy on machines without a GPU: as strict as CuPy, and stricter where luck would decide.

Its `ndarray` is no numpy.ndarray: it holds one, and shows it to nobody but `get`. Its functions are NumPy's, run with
CuPy's rules. What CuPy refuses is refused here:

- NumPy arrays beside its own, in an operator, a function, an index, an assignment or a launch; np.asarray(x);
- names, methods, keywords and positional arguments that are not in the tables below. A test compares these with CuPy,
  where that is installed; they hold no more than the library uses, so what is missing may be added;
- views that NumPy would have to copy to write into, Python numbers as arguments of a kernel.

And what works in CuPy but should not be relied upon:

- NumPy's functions called with its arrays: CuPy takes over what it can, but code that says np where it means xp works
  by luck. A NumPy scalar as an operand of +, * and so on is fine;
- random numbers: they are drawn on the host, so that a run starts alike with and without a GPU;
- lists where arrays are meant, an array that is copied onto a part of itself, Python's range(x) and x in y.

An index out of range wraps around, as in CuPy. A reduction gives an array (), which is written to in place. What makes
the host wait for the GPU is noted in `waits`, with the line of the library that asked; what is copied to it, in
`copies`.
A kernel runs on the CPU, see tinyrec/cuda/host.py. What a double cannot show: the time that anything takes, the order
of the GPU's sums, and whether CuPy does what its documentation says.
"""

from __future__ import annotations

import functools
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

from tinyrec.cuda.host import HostModule
from tinyrec.cuda.signature import DTYPES

# --- what CuPy has: the names of ufuncs; of functions and methods the parameters that may be given, in CuPy's order ---

UFUNCS = """
    add arctan2 cos divide exp isfinite isnan log log1p logaddexp maximum minimum multiply negative reciprocal sin sqrt
    subtract tanh
""".split()
FUNCTIONS = {
    "arange": "start stop step dtype",
    "array": "obj dtype",
    "asarray": "a dtype order",
    "ascontiguousarray": "a dtype",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max",
    "concatenate": "tup axis",
    "copyto": "dst src casting where",
    "einsum": "*operands",
    "empty": "shape dtype",
    "empty_like": "prototype",
    "eye": "N M k dtype",
    "finfo": "dtype",
    "full": "shape fill_value dtype",
    "lib.stride_tricks.as_strided": "x shape strides",
    "linalg.norm": "x ord axis keepdims",
    "matmul": "*args out",
    "ones": "shape dtype",
    "ones_like": "a",
    "pad": "array pad_width",
    "put_along_axis": "arr indices values axis",
    "split": "ary indices_or_sections axis",
    "stack": "tup axis",
    "take_along_axis": "a indices axis",
    "tri": "N M k dtype",
    "triu": "m k",
    "vdot": "a b",
    "where": "condition x y",
    "zeros": "shape dtype",
    "zeros_like": "a",
}
METHODS = {
    "all": "axis out keepdims",
    "any": "axis out keepdims",
    "argmax": "axis",
    "astype": "dtype copy",
    "clip": "min max out",
    "copy": "order",
    "dot": "b out",
    "fill": "value",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "ravel": "order",
    "reshape": "*shape order",
    "std": "axis dtype out ddof keepdims",
    "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2",
    "transpose": "*axes",
    "view": "dtype",
}
WAITING = "get item tolist __bool__ __int__ __float__ __complex__ __repr__ __str__ __format__".split()
CONSTANTS = {"inf": np.inf, "nan": np.nan, "float32": np.float32, "float64": np.float64, "int64": np.int64}

DEVICE = {"MaxSharedMemoryPerBlockOptin": 101376}  # of GPUs of compute capability 8.6 and 8.9
NUMBERS = (bool, int, float, complex, np.generic)
FROM_HOST = ("array", "asarray")  # what may be given a NumPy array
waits: list[str] = []
copies: list[str] = []


def note(ledger: list[str], what: str) -> None:
    """Write down what was done, and for which line of the library."""
    frame = sys._getframe(1)
    while frame and "/tinyrec/" not in frame.f_code.co_filename:
        frame = frame.f_back
    line = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "a test"
    ledger.append(f"{what} in {line}")


# --- arrays -----------------------------------------------------------------------------------------------------------

Flags = namedtuple("Flags", "c_contiguous f_contiguous owndata")


class ndarray:
    """An array of the GPU; `_held` is its content, for this file only."""

    __array_priority__ = 100
    __hash__ = None
    __slots__ = ("_held",)

    shape = property(lambda self: self._held.shape)
    strides = property(lambda self: self._held.strides)
    dtype = property(lambda self: self._held.dtype)
    ndim = property(lambda self: self._held.ndim)
    size = property(lambda self: self._held.size)
    itemsize = property(lambda self: self._held.itemsize)
    nbytes = property(lambda self: self._held.nbytes)
    base = property(lambda self: None if self._held.base is None else held(self._held.base))
    T = property(lambda self: held(self._held.T))
    real = property(lambda self: held(self._held.real), lambda self, x: held(self._held.real).__setitem__(..., x))
    imag = property(lambda self: held(self._held.imag), lambda self, x: held(self._held.imag).__setitem__(..., x))
    device = property(lambda self: SimpleNamespace(id=0))
    data = property(lambda self: SimpleNamespace(ptr=self._held.ctypes.data))
    flags = property(lambda self: Flags(*(self._held.flags[name.upper()] for name in Flags._fields)))

    def __array__(self, *_, **__):
        raise TypeError("implicit conversion to a NumPy array is not allowed; use x.get()")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        numbers = any(isinstance(x, np.generic) for x in inputs)  # np.float32(3) * x comes here
        if method != "__call__" or keywords or not numbers:
            raise TypeError(f"np.{ufunc.__name__} of an array of the GPU: call xp.{ufunc.__name__}")
        return run(ufunc, *inputs)

    def __array_function__(self, function, types, args, keywords):
        raise TypeError(f"np.{function.__name__} of an array of the GPU: call xp.{function.__name__}")

    def __len__(self):
        return len(self._held)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __contains__(self, x):
        raise TypeError("`x in array` is not supported")

    def __getitem__(self, index):
        waits_for_mask(index)
        return held(self._held[index_of(index, self.shape)])

    def __setitem__(self, index, value):
        waits_for_mask(index)
        target, value = self._held[index_of(index, self.shape)], unwrapped(value)
        if isinstance(value, np.ndarray) and np.may_share_memory(target, value):
            same = target.ctypes.data == value.ctypes.data and target.strides == value.strides
            if not same and np.shares_memory(target, value):
                raise TypeError("an array is copied onto a part of itself, in no order that is known")
        self._held[index_of(index, self.shape)] = value


def held(x):
    """NumPy's result as one of the GPU: arrays and scalars as arrays, tuples and lists of them item by item."""
    if isinstance(x, tuple | list):
        return type(x)(map(held, x))
    if not isinstance(x, np.ndarray | np.generic):
        return x
    new = object.__new__(ndarray)
    new._held = np.asarray(x)
    return new


def unwrapped(x):
    """The content of an argument. Raises TypeError for arrays of the host, and for what is neither array nor number."""
    if type(x) is ndarray:
        return x._held
    if isinstance(x, NUMBERS):
        return x
    raise TypeError(f"expected an array of the GPU or a number, got a {type(x).__module__}.{type(x).__name__}")


def argument(x):
    """The same for any argument of a function: also shapes, dtypes, None, and tuples and lists of arrays."""
    if isinstance(x, tuple | list):
        return type(x)(map(argument, x))
    if x is None or isinstance(x, (str, type, np.dtype, *NUMBERS)):
        return x
    return unwrapped(x)


def run(function, *args, **keywords):
    """NumPy's function on the contents; a GPU warns of no overflow. What is written into `out` is `out`."""
    with np.errstate(all="ignore"):
        result = function(*map(argument, args), **{key: argument(x) for key, x in keywords.items()})
    for x in (*args, keywords.get("out")):
        if type(x) is ndarray and x._held is result:
            return x
    return held(result)


def index_of(index, shape):
    """NumPy's index. Numbers out of range wrap around, as in CuPy; whole numbers alone give a view, not a scalar."""
    parts, axis, found = index if isinstance(index, tuple) else (index,), 0, []
    taken = sum(x.ndim if is_mask(x) else x is not None for x in parts if x is not Ellipsis)
    for x in parts:
        if type(x) is ndarray:
            found.append(x._held if is_mask(x) else x._held % max(1, shape[axis]))
        elif x is None or x is Ellipsis or isinstance(x, int | np.integer | slice):
            found.append(x)
        else:
            raise TypeError(f"an index is made of numbers, slices and arrays of the GPU, got a {type(x).__name__}")
        axis += len(shape) - taken if x is Ellipsis else x.ndim if is_mask(x) else x is not None
    return tuple(found) if any(x is Ellipsis for x in parts) else (*found, Ellipsis)


def is_mask(x):
    return type(x) is ndarray and x.dtype == bool


def waits_for_mask(index):
    if any(map(is_mask, index if isinstance(index, tuple) else (index,))):
        note(waits, "a mask as an index, whose entries are counted,")


# --- operators, methods and functions, from the tables ----------------------------------------------------------------


def operator(ufunc, reflected=False):
    def call(self, *others):
        if any(getattr(x, "__array_ufunc__", 0) is None for x in others):
            return NotImplemented  # as a Tensor says: ask me
        operands = [unwrapped(x) for x in (self, *others)]
        with np.errstate(all="ignore"):
            return held(ufunc(*(operands[::-1] if reflected else operands)))

    return call


def in_place(ufunc):
    def call(self, other):
        with np.errstate(all="ignore"):
            ufunc(self._held, unwrapped(other), out=self._held)
        return self

    return call


BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
    "mod": "remainder", "floordiv": "floor_divide", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
}  # fmt: skip
COMPARE = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
UNARY = {"neg": "negative", "abs": "absolute", "invert": "invert"}
for name, ufunc in (BINARY | COMPARE | UNARY).items():
    setattr(ndarray, f"__{name}__", operator(getattr(np, ufunc)))
for name, ufunc in BINARY.items():
    setattr(ndarray, f"__r{name}__", operator(getattr(np, ufunc), reflected=True))
    if name != "matmul":
        setattr(ndarray, f"__i{name}__", in_place(getattr(np, ufunc)))


def check(name, parameters, args, keywords):
    """Raise TypeError for an argument that CuPy's function does not take, or that the table does not have."""
    names = parameters.split()
    many = any(x.startswith("*") for x in names)
    if unknown := set(keywords) - {x for x in names if not x.startswith("*")}:
        raise TypeError(f"cupy.{name} is given {', '.join(sorted(unknown))}=, the table of the double has {parameters}")
    if len(args) > len(names) and not many:
        raise TypeError(f"cupy.{name} is given {len(args)} arguments, the table of the double has {parameters}")


def method(name, parameters):
    def call(self, *args, **keywords):
        check(f"ndarray.{name}", parameters, args, keywords)
        return run(getattr(np.ndarray, name), self, *args, **keywords)

    return call


def waiting(name):
    def call(self, *args):
        note(waits, name)
        return self._held.copy() if name == "get" else getattr(self._held, name)(*args)

    return call


for name, parameters in METHODS.items():
    setattr(ndarray, name, method(name, parameters))
for name in WAITING:
    setattr(ndarray, name, waiting(name))


def function_of(name, parameters):
    """cupy.<name>; NumPy's is looked up at each call, because the tests poison np.empty."""

    def call(*args, **keywords):
        check(name, parameters, args, keywords)
        if name in FROM_HOST and type(args[0]) is not ndarray:
            note(copies, name)
            args = (ndarray_of_host(args[0]), *args[1:])
        return run(functools.reduce(getattr, name.split("."), np), *args, **keywords)

    return call


def ndarray_of_host(x):
    x = np.array(x)  # a list of arrays of the GPU says no
    return held(x)


class Ufunc:
    """cupy.exp and so on: the inputs, and the result as `out` or behind them."""

    def __init__(self, name):
        self.name = name
        if name == "add":
            self.at = add_at

    def __call__(self, *args, out=None):
        return run(getattr(np, self.name), *args, **({} if out is None else {"out": out}))


def add_at(a, indices, b):
    """cupy.add.at; other ufuncs of CuPy have none, or one for some dtypes."""
    waits_for_mask(indices)
    np.add.at(a._held, index_of(indices, a.shape), unwrapped(b))


class Grid:
    """cupy.ogrid."""

    def __getitem__(self, index):
        return held(np.ogrid[index])


# --- kernels ----------------------------------------------------------------------------------------------------------


class RawModule:
    def __init__(self, *, code, options=()):
        self.module = HostModule(code=code, options=options)

    def get_function(self, name):
        return Kernel(self.module, name)


class Kernel:
    """A kernel as a GPU takes it: exact types, arrays of its own, and no more shared memory than was asked for."""

    def __init__(self, module, name):
        self.function, self.parameters = module.get_function(name), module.parameters[name]
        self.real = None
        self._shared = 48 * 1024

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if size > DEVICE["MaxSharedMemoryPerBlockOptin"]:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {size} bytes of shared memory")
        self._shared = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        if shared_mem > self._shared:
            raise RuntimeError(f"CUDA_ERROR_INVALID_VALUE: {shared_mem} bytes of shared memory, {self._shared} allowed")
        reals = {x.dtype for p, x in zip(self.parameters, args, strict=True) if type(x) is ndarray and p.type == "real"}
        real, *others = reals or {np.dtype("float32")}
        for p, x in zip(self.parameters, args, strict=True):
            null = p.optional and isinstance(x, np.uint64) and x == 0
            expected = real if p.type == "real" else np.dtype(DTYPES[p.type])
            if not null and (others or type(x) is not ndarray if p.pointer else not isinstance(x, np.generic)):
                raise TypeError(f"{self.function.name}: {p.name} is a {type(x).__name__}")
            if not null and x.dtype != expected:
                raise TypeError(f"{self.function.name}: {p.name} is {x.dtype}, expected {expected}")
        self.function(grid, block, tuple(map(unwrapped, args)), shared_mem=shared_mem)


def synchronize():
    note(waits, "synchronize")


# --- the module -------------------------------------------------------------------------------------------------------


class Double(ModuleType):
    def __getattr__(self, name):
        raise AttributeError(f"the double of CuPy has no {name}; if CuPy does, add it to the tables of cupy_double.py")


def make():
    """The module, to be put into sys.modules["cupy"]."""
    cupy = Double("cupy")
    ndarray.__module__ = "cupy"
    cupy.ndarray, cupy.RawModule, cupy.ogrid = ndarray, RawModule, Grid()
    cupy.lib = SimpleNamespace(stride_tricks=SimpleNamespace())
    cupy.linalg = SimpleNamespace()
    cupy.cuda = SimpleNamespace(
        is_available=lambda: True,
        Device=lambda: SimpleNamespace(id=0, attributes=DEVICE),
        get_current_stream=lambda: SimpleNamespace(synchronize=synchronize),
    )
    for name, parameters in FUNCTIONS.items():
        *path, last = name.split(".")
        setattr(functools.reduce(getattr, path, cupy), last, function_of(name, parameters))
    for name in UFUNCS:
        setattr(cupy, name, Ufunc(name))
    for name, value in CONSTANTS.items():
        setattr(cupy, name, value)
    return cupy
