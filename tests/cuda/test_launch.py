"""Every wrong argument is one sentence, before anything starts; numbers get the exact C type; a GPU in effigy."""

import sys
import types

import numpy as np
import pytest

from tinyrec.cuda import host, ttt_linear
from tinyrec.cuda import launch as module
from tinyrec.cuda.launch import address, check_arguments, contiguous, host_build, kernels, launch, synchronised

T, ROWS = 4, 6
SCAN = kernels("scan")["scan_forward"]


def arguments():
    a, b, h = (np.ones((T, ROWS)) for _ in range(3))
    return {"a": a, "b": b, "h_init": np.ones(ROWS), "h": h, "time": T, "rows": ROWS}


def changed(**changes):
    return tuple((arguments() | changes).values())


read_only = np.ones((T, ROWS))
read_only.flags.writeable = False
both = np.ones((2 * T, ROWS))

WRONG = [
    (dict(a=np.ones((T, ROWS), np.float32)), "b is float64, expected float32"),
    (dict(h_init=np.ones(ROWS, np.float32)), "h_init is float32, expected float64"),
    (dict(a=np.ones((T, ROWS), np.int64)), "arrays of int64, expected float32 or float64"),
    (dict(a=np.ones((T, ROWS), np.float16)), "arrays of float16, expected float32 or float64"),
    (dict(b=np.ones((ROWS, T)).T), "b has shape (4, 6) and strides (8, 32), expected a C-contiguous array"),
    (dict(b=both[::2]), "b has shape (4, 6) and strides (96, 8), expected a C-contiguous array"),
    (dict(b=np.ones((T, 5))), "b has shape (4, 5), expected as many numbers as (time, rows), time = 4, rows = 6"),
    (dict(time=T + 1), "a has shape (4, 6), expected as many numbers as (time, rows), time = 5, rows = 6"),
    (dict(b=None), "b is a NoneType, expected a numpy.ndarray"),
    (dict(b=2.0), "b is a float, expected a numpy.ndarray"),
    (dict(b=[1.0]), "b is a list, expected a numpy.ndarray"),
    (dict(h=read_only), "h is read-only, and the kernel writes to it"),
    (dict(a=both[1 : T + 1], h=both[T:]), "h shares memory with a, expected one of its own"),
    (dict(time=4.0), "time is a float, expected a number for 'int'"),
    (dict(time=np.float64(4)), "time is a numpy.float64, expected a number for 'int'"),
    (dict(time=True), "time is a bool, expected a number for 'int'"),
    (dict(time=np.ones(1, int)), "time is a numpy.ndarray, expected a number for 'int'"),
    (dict(time=2**31), "time = 2147483648 does not fit into 'int'"),
    (dict(rows=2**63), "rows = 9223372036854775808 does not fit into 'long long'"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_wrong_argument_is_one_sentence(changes, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        launch("scan", "scan_forward", *changed(**changes), threads=ROWS)
    assert str(caught.value).removeprefix("scan_forward: ") == words


def test_a_wrong_count_names_them_all():
    with pytest.raises(TypeError, match=r"^scan_forward: got 5 arguments, expected 6: a, b, h_init, h, time, rows$"):
        launch("scan", "scan_forward", *changed()[:5], threads=ROWS)


def test_a_wrong_launch():
    with pytest.raises(ValueError, match=r"scan.cu has no kernel 'scan'; it has scan_forward, scan_backward"):
        launch("scan", "scan", threads=1)
    with pytest.raises(TypeError, match="expected either threads= or grid=, got neither"):
        launch("scan", "scan_forward", *changed())
    with pytest.raises(TypeError, match="got both"):
        launch("scan", "scan_forward", *changed(), threads=3, grid=(3,))
    with pytest.raises(ValueError, match="a block of 2048 threads, expected 1 to 1024"):
        launch("scan", "scan_forward", *changed(), threads=3, block=(1024, 2))


def test_numbers_get_the_type_of_the_parameter():
    real, ready = check_arguments("scan_forward", SCAN, changed(time=np.int64(T), rows=np.uint8(ROWS)))
    assert real == "double" and [type(x) for x in ready[4:]] == [np.int32, np.int64]
    single = tuple(x.astype(np.float32) if isinstance(x, np.ndarray) else x for x in changed())
    assert check_arguments("scan_forward", SCAN, single)[0] == "float"


def test_a_null_pointer_where_the_comment_allows_it():
    parameters = kernels("rglru")["rglru_forward"]
    wide, row = np.ones((2, 3, 4)), np.ones((2, 4))
    args = [wide, wide, wide, np.ones(4), row, None, wide.copy(), 2, 3, 4]
    assert check_arguments("rglru_forward", parameters, tuple(args))[1][5] == np.uint64(0)
    args[5] = np.ones((2, 3))
    with pytest.raises(TypeError, match=r"^rglru_forward: starts is float64, expected bool$"):
        check_arguments("rglru_forward", parameters, tuple(args))


def test_reading_one_array_twice_is_allowed():
    a = np.ones((T, ROWS))
    check_arguments("scan_forward", SCAN, changed(a=a, b=a))


def test_contiguous_copies_only_what_it_must():
    a = np.arange(6.0).reshape(2, 3)
    same, none, turned, number = contiguous(a, None, a.T, np.float64(2))
    assert same is a and none is None and turned.flags.c_contiguous and (turned == a.T).all() and number.shape == (1,)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", "bool"])
def test_where_an_array_begins(dtype):
    frozen = np.ones(3, dtype)
    frozen.flags.writeable = False
    for x in (np.ones((2, 3), dtype), np.ones(7, dtype)[2:5], np.zeros((), dtype), np.zeros((2, 0), dtype), frozen):
        assert address(x) == x.ctypes.data


def test_no_threads_no_launch(monkeypatch):
    asked, empty = [], np.ones((T, 0))
    monkeypatch.setattr(module, "_function", lambda *which: asked.append(which))
    launch("scan", "scan_forward", empty, empty, empty[0], empty.copy(), T, 0, threads=0)
    assert asked == []  # nothing is compiled


def test_a_kernel_is_compiled_once_for_each_dtype(cpp, monkeypatch):
    module._host_module.cache_clear()
    module._function.cache_clear()
    made = []

    class Counting(host.HostModule):
        def __init__(self, **keywords):
            made.append(keywords["options"])
            super().__init__(**keywords)

    monkeypatch.setattr(host, "HostModule", Counting)
    for dtype in (np.float32, np.float64, np.float32):
        args = [x.astype(dtype) if isinstance(x, np.ndarray) else x for x in changed()]
        launch("scan", "scan_forward", *args, threads=ROWS)
        assert args[3][:, 0].tolist() == [2, 3, 4, 5]
    assert made == [("-Dreal=float",), ("-Dreal=double",)]


def test_host_build_is_left_behind(cpp):
    with host_build("check") as reports:
        launch("scan", "scan_forward", *changed(), threads=ROWS)
        with host_build("loop") as none:
            launch("scan", "scan_forward", *changed(), threads=ROWS)
        launch("scan", "scan_forward", *changed(), threads=ROWS, block=(32,))
    launch("scan", "scan_forward", *changed(), threads=ROWS)
    assert len(reports) == 2 and none == [] and module._mode.build is None


# --- a GPU, played by a module that has what launch.py asks of cupy ---------------------------------------------------


class DeviceArray:
    def __init__(self, array, device=0):
        self.array, self.device = array, types.SimpleNamespace(id=device)
        self.dtype, self.shape, self.size, self.nbytes = array.dtype, array.shape, array.size, array.nbytes
        self.strides = array.strides
        self.flags = types.SimpleNamespace(c_contiguous=array.flags.c_contiguous)
        self.data = types.SimpleNamespace(ptr=array.ctypes.data)


class FakeCupy:
    ndarray = DeviceArray

    def __init__(self):
        self.modules, self.launches, self.waits, self.broken = [], [], 0, False
        stream = types.SimpleNamespace(synchronize=self.wait)
        device = types.SimpleNamespace(id=0, attributes={"MaxSharedMemoryPerBlockOptin": 65536})
        self.cuda = types.SimpleNamespace(Device=lambda: device, get_current_stream=lambda: stream)

    def wait(self):
        self.waits += 1
        if self.broken:
            raise RuntimeError("an illegal memory access was encountered")

    def RawModule(self, *, code, options):
        self.modules.append(options)

        def run(grid, block, args, *, shared_mem):
            assert shared_mem <= getattr(run, "max_dynamic_shared_size_bytes", 48 * 1024)  # as a GPU has it
            self.launches.append((grid, block, [type(x) for x in args]))

        return types.SimpleNamespace(get_function=lambda name: run)


@pytest.fixture
def gpu(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    yield fake
    module._function.cache_clear()
    module._gpu_module.cache_clear()


def on_gpu(**changes):
    return [DeviceArray(x) if isinstance(x, np.ndarray) else x for x in changed(**changes)]


def test_a_launch_on_a_gpu(gpu):
    for _ in range(2):
        launch("scan", "scan_forward", *on_gpu(), threads=300)
    assert gpu.modules == [("-Dreal=double",)] and gpu.waits == 0
    assert gpu.launches == [((3,), (128,), [DeviceArray] * 4 + [np.int32, np.int64])] * 2


def test_shared_memory_beyond_48_kb_is_asked_for(gpu):
    for size in (48 * 1024, 48 * 1024 + 1, 64 * 1024, 50_000):
        launch("scan", "scan_forward", *on_gpu(), threads=ROWS, shared_mem=size)
    assert len(gpu.launches) == 4
    words = r"^scan_forward: 65537 bytes of shared memory, a block of this GPU has 65536$"
    with pytest.raises(ValueError, match=words):
        launch("scan", "scan_forward", *on_gpu(), threads=ROWS, shared_mem=64 * 1024 + 1)
    assert len(gpu.launches) == 4


@pytest.mark.parametrize(("dtype", "bytes_"), [(np.float32, 65128), (np.float64, 130256)])
def test_the_shared_memory_of_ttt_linear(monkeypatch, dtype, bytes_):
    """Heads of 64 numbers and mini-batches of 16 tokens: in float the smallest GPUs have just enough."""
    asked = []
    monkeypatch.setattr(ttt_linear, "launch", lambda *args, shared_mem, **rest: asked.append(shared_mem))
    x, row, state = np.ones((1, 32, 1, 64), dtype), np.ones((1, 64), dtype), np.ones((1, 1, 64, 64), dtype)
    args = x, x, x, np.ones((1, 32, 1), dtype), np.ones(16, dtype), row, row, state, row[None], state, row[None]
    kept = ttt_linear.forward(*args, at=0, checkpoint=1)[1]
    monkeypatch.setattr(ttt_linear, "shared_limit", lambda xp: bytes_)
    ttt_linear.backward((None,) * 5, *kept)
    assert asked[0] < asked[1] == bytes_
    monkeypatch.setattr(ttt_linear, "shared_limit", lambda xp: bytes_ - 1)
    words = f"^ttt_linear: heads of 64 numbers and mini-batches of 16 tokens need {bytes_} bytes of shared memory, "
    with pytest.raises(ValueError, match=words + f"a block of this GPU has {bytes_ - 1}$"):
        ttt_linear.forward(*args, at=0, checkpoint=1)


def test_a_failing_kernel_is_named(gpu):
    gpu.broken = True
    launch("scan", "scan_forward", *on_gpu(), threads=ROWS)
    with synchronised(), pytest.raises(RuntimeError, match=r"^kernel scan_forward of scan.cu failed: an illegal"):
        launch("scan", "scan_forward", *on_gpu(), threads=ROWS)
    assert gpu.waits == 1


def test_arrays_of_two_kinds_and_of_another_gpu(gpu):
    with pytest.raises(TypeError, match=r"b is a numpy.ndarray, expected a .*DeviceArray"):
        args = on_gpu()
        args[1] = np.ones((T, ROWS))
        launch("scan", "scan_forward", *args, threads=ROWS)
    args[1] = DeviceArray(np.ones((T, ROWS)), device=1)
    with pytest.raises(ValueError, match="b lies on GPU 1, expected the current one, 0"):
        launch("scan", "scan_forward", *args, threads=ROWS)
    with pytest.raises(ValueError, match="expected a C-contiguous array"):
        launch("scan", "scan_forward", *on_gpu(b=np.ones((ROWS, T)).T), threads=ROWS)
