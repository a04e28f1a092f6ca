"""A kernel's signature is read from its text: types, pointers, shapes in comments; what cannot be read is named."""

import pytest

from tinyrec.cuda.launch import HERE, kernel_text, kernels
from tinyrec.cuda.signature import Parameter, parse

TEXT = """
// extern "C" would be read in a comment too, so it is not written there.
__device__ float helper(float x) { return x; }
extern "C" __global__ void first(const real* __restrict__ a,  // (time, 3), kept
    unsigned char* flags,  // any size
    long long *counts,     // (time) or null
    const bool* b, int time) {}
extern "C" __global__ void __launch_bounds__(128) second(float scale, unsigned int n, double* out) {}
extern "C" __global__ void third(real x,
    const int* last  // (2, n)
) {}
"""


def test_parse():
    found = parse(TEXT)
    assert list(found) == ["first", "second", "third"]
    a, flags, counts, b, time = found["first"]
    assert a == Parameter("a", "real", pointer=True, const=True, alone=True, shape=("time", "3"))
    assert flags == Parameter("flags", "unsigned char", pointer=True)
    assert counts == Parameter("counts", "long long", pointer=True, shape=("time",), optional=True)
    assert b == Parameter("b", "bool", pointer=True, const=True)
    assert time == Parameter("time", "int")
    numbers = (Parameter("scale", "float"), Parameter("n", "unsigned int"))
    assert found["second"] == (*numbers, Parameter("out", "double", pointer=True))
    assert found["third"][1] == Parameter("last", "int", pointer=True, const=True, shape=("2", "n"))


def test_no_parameters():
    assert parse('extern "C" __global__ void nothing() {}') == {"nothing": ()}


@pytest.mark.parametrize("bad", ["half* x", "float** x", "real x[3]", "real& x", "const real x y"])
def test_what_cannot_be_read_is_named(bad):
    with pytest.raises(ValueError, match=r"^k: cannot read the parameter '.*'; expected a value of, or a pointer to"):
        parse(f'extern "C" __global__ void k(int n, {bad}) {{}}')


def test_a_list_without_an_end():
    with pytest.raises(ValueError, match="k: its list of parameters has no end"):
        parse('extern "C" __global__ void k(int n, float x')


STEMS = sorted(path.stem for path in HERE.glob("*.cu"))


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_says_the_shapes_of_its_arrays(stem):
    assert 'extern "C" __global__' in kernel_text(stem)
    for parameters in kernels(stem).values():
        values = {p.name for p in parameters if not p.pointer}
        for p in parameters:
            assert not p.pointer or p.shape, f"{p.name} has no shape in a comment"
            assert all(word.isdecimal() or word in values for word in p.shape)
