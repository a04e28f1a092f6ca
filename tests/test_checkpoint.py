"""Checkpoints: exact round trips, every kind of damage found, and a crash at any moment survived."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save as to_safetensors

from tinyrec import checkpoint
from tinyrec.checkpoint import (
    CheckpointError,
    load,
    load_run,
    restore,
    rng_from_state,
    rng_state,
    save,
    save_run,
)
from tinyrec.ops import linear
from tinyrec.optim import AdamW
from tinyrec.tape import Tensor

ROOT = Path(__file__).resolve().parents[1]
TENSORS = {"b": np.arange(3, dtype=np.float32), "a": np.arange(6.0).reshape(2, 3), "n": np.array(5)}
META = {"words": ["a", "ü"], "number": 0.1, "nothing": None}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def written(path, tensors=TENSORS, meta=META):
    save(path, tensors, meta)
    return path


# --- round trips ------------------------------------------------------------------------------------------------------

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "<f2", "<f4", "<f8", ">f4"]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)  # utf-8: no halves of surrogate pairs


@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=4), meta=st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_is_saved_is_loaded(tensors, meta, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "x.safetensors"
    save(path, tensors, meta)
    loaded, loaded_meta = load(path)
    assert loaded.keys() == tensors.keys() and loaded_meta == meta
    for name, array in tensors.items():
        assert same(loaded[name], array.astype(array.dtype.newbyteorder("<")))
        assert loaded[name].flags.writeable


def test_arrays_that_are_not_contiguous(tmp_path):
    x = np.arange(24.0).reshape(2, 3, 4)
    views = {"t": x.T, "step": x[:, ::2, 1:], "back": x[::-1], "f": np.asfortranarray(x[0])}
    views["repeated"] = np.broadcast_to(x, (2, 2, 3, 4))
    loaded, _ = load(written(tmp_path / "x", views))
    assert all(np.array_equal(loaded[name], view) for name, view in views.items())


def test_the_file_is_plain_safetensors(tmp_path):
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(written(tmp_path / "x"))["a"], TENSORS["a"])


def test_loaded_arrays_do_not_hang_on_the_file(tmp_path):
    loaded, _ = load(written(tmp_path / "x"))
    (tmp_path / "x").write_bytes(b"")
    loaded["a"][0, 0] = 7.0
    assert loaded["a"].sum() == 22.0


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"a": np.ones(2, complex)}, {}),
        ({"a": np.array(["x"])}, {}),
        ({"a": np.array([None])}, {}),
        ({3: np.ones(2)}, {}),
        ({}, {"x": np.float32(1)}),
        ({}, {"x": {1, 2}}),
    ],
)
def test_what_cannot_be_saved_is_refused_and_the_old_file_stays(tensors, meta, tmp_path):
    before = written(tmp_path / "x").read_bytes()
    with pytest.raises(CheckpointError, match="cannot hold this"):
        save(tmp_path / "x", tensors, meta)
    assert (tmp_path / "x").read_bytes() == before


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_is_found(tmp_path):
    path = written(tmp_path / "x")
    content = path.read_bytes()
    for i in range(len(content)):
        for bit in (i % 8, (i + 3) % 8):  # two of each byte; all eight take four times as long
            path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
            with pytest.raises(CheckpointError):
                load(path)


def test_every_shorter_or_longer_file_is_found(tmp_path):
    path = written(tmp_path / "x")
    content = path.read_bytes()
    for part in [*(content[:i] for i in range(len(content))), content + b"\0"]:
        path.write_bytes(part)
        with pytest.raises(CheckpointError):
            load(path)


def test_tensors_that_change_places_are_found(tmp_path):
    content = written(tmp_path / "x", {"p": np.zeros(4), "q": np.ones(4)}).read_bytes()
    header, rest = content.split(b'"p":{"dtype"')  # the names in the header, not those in the metadata
    rest = rest.replace(b'"q":{"dtype"', b'"p":{"dtype"')
    (tmp_path / "x").write_bytes(header + b'"q":{"dtype"' + rest)
    with pytest.raises(CheckpointError, match=r"the checksum of tensor [pq] is wrong"):
        load(tmp_path / "x")


def other_format(path):
    path.write_bytes(written(path).read_bytes().replace(b'"tinyrec 1"', b'"tinyrec 9"'))


def flipped(where):
    def flip(path):
        content = bytearray(written(path).read_bytes())
        content[content.index(where) if where else -1] ^= 1
        path.write_bytes(content)

    return flip


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "there is no checkpoint {path}"),
        (lambda path: path.mkdir(), "the checkpoint {path} cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b""), "{path} is empty"),
        (lambda path: path.write_bytes(pickle.dumps(TENSORS)), "{path} is not a safetensors file"),
        (lambda path: path.write_bytes(written(path).read_bytes()[:-3]), "{path} is cut short or damaged (*)"),
        (lambda path: path.write_bytes(written(path).read_bytes()[:99]), "{path} is cut short or damaged (*)"),
        (lambda path: path.write_bytes(to_safetensors(TENSORS)), "{path} is a safetensors file, but no checkpoint*"),
        (other_format, "{path} has the format 'tinyrec 9', and this version of the library reads 'tinyrec 1'"),
        (flipped(b"words"), "{path} is damaged: the checksum of its metadata is wrong"),
        (flipped(b""), "{path} is damaged: the checksum of tensor b is wrong"),
    ],
)
def test_each_bad_file_gets_its_sentence(make, complaint, tmp_path):
    path = tmp_path / "x"
    make(path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    start, _, end = complaint.format(path=path).partition("*")
    assert str(caught.value).startswith(start) and str(caught.value).endswith(end) and "\n" not in str(caught.value)


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(where, tmp_path, monkeypatch):
    path = written(tmp_path / "x")
    before = path.read_bytes()

    def full(*_):
        assert (tmp_path / "x.tmp").exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, where, full)
    with pytest.raises(CheckpointError, match=r"x cannot be written: No space left on device$"):
        save(path, {"new": np.ones(9)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x"]


def test_a_write_that_breaks_off_half_way_leaves_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = written(tmp_path / "x")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses what goes beyond
    try:
        with pytest.raises(CheckpointError, match=r"x cannot be written: File too large$"):
            save(path, {"new": np.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x"]


def test_ctrl_c_leaves_the_old_file(tmp_path, monkeypatch):
    path = written(tmp_path / "x")
    before = path.read_bytes()

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(path, {"new": np.ones(9)}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x"]


def test_the_order_is_write_force_rename_force(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def recorded_replace(old, new):
        calls.append("rename")
        assert load(old)[1] == META  # all of it is there before it gets the name
        replace(old, new)

    monkeypatch.setattr(checkpoint.os, "fsync", recorded_fsync)
    monkeypatch.setattr(checkpoint.os, "replace", recorded_replace)
    written(tmp_path / "x")
    if os.path.isdir("/proc/self/fd"):
        assert calls == ["file", "rename", "folder"]


@pytest.mark.parametrize(
    ("name", "complaint"), [("none/x", "No such file"), (".", "cannot be written: "), ("file/x", "Not a directory")]
)
def test_places_that_cannot_be_written_to(name, complaint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=complaint):
        save(tmp_path / name, TENSORS, META)


SAVES_FOREVER = """
    import itertools, sys
    import numpy as np
    from tinyrec.checkpoint import save
    for i in itertools.count():
        save(sys.argv[1], {"x": np.full(200_000, float(i))}, {"i": i})
        print(i, flush=True)
"""


def test_kill_9_at_any_moment_leaves_the_old_or_the_new_file(tmp_path):
    """A fresh process saves again and again; after its first save it is killed at some moment of a later one."""
    path = tmp_path / "x"
    rng = np.random.default_rng(16)
    for _ in range(5):
        command = [sys.executable, "-c", textwrap.dedent(SAVES_FOREVER), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            seen = [process.stdout.readline()]
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            seen += process.stdout.readlines()
        last = int([line for line in seen if line.endswith("\n")][-1])  # the last save that had returned
        tensors, meta = load(path)
        assert meta["i"] in (last, last + 1)
        assert (tensors["x"] == meta["i"]).all()
        assert set(os.listdir(tmp_path)) <= {"x", "x.tmp"}


def test_what_a_killed_run_left_behind_is_gone_after_the_next_save(tmp_path):
    (tmp_path / "x.tmp").write_bytes(b"half a checkpoint, longer than the next one" * 1000)
    assert load(written(tmp_path / "x"))[1] == META
    assert os.listdir(tmp_path) == ["x"]


# --- random state -----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**64), draws=st.integers(0, 5))
def test_random_numbers_go_on(seed, draws):
    rng = np.random.default_rng(seed)
    rng.integers(0, 9, size=draws, dtype=np.int32)  # an odd number leaves half a draw in the state
    again = rng_from_state(json.loads(json.dumps(rng_state(rng))))
    for a, b in [(rng, again)] * 3:
        assert a.random() == b.random() and a.integers(9, dtype=np.int32) == b.integers(9, dtype=np.int32)
        assert a.normal() == b.normal()
    assert rng_state(rng) == rng_state(again)


def test_other_random_states_are_refused():
    with pytest.raises(CheckpointError, match="got a MT19937"):
        rng_state(np.random.Generator(np.random.MT19937(0)))
    good = rng_state(np.random.default_rng(0))
    for bad in ({}, good | {"bit_generator": "MT19937"}, good | {"state": 3}):
        with pytest.raises(CheckpointError, match="not the state of a PCG64"):
            rng_from_state(bad)


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 4
    rate: float = 0.1
    kinds: tuple = ("a", "b")


class Line:
    """The smallest thing that trains: y = x w + b."""

    name = "line"

    def __init__(self, config, rng, dtype=np.float32):
        self.config = config
        self.w = Tensor(rng.normal(size=(config.width, 3)).astype(dtype), requires_grad=True)
        self.b = Tensor(np.zeros(3, dtype), requires_grad=True)


def train(model, optimizer, rng, steps):
    for _ in range(steps):
        x = rng.normal(size=(5, model.config.width)).astype(np.float32)
        optimizer.zero_grad()
        (linear(x, model.w, model.b) ** 2).mean().backward()
        optimizer.step()


def new(seed, width=4):
    model = Line(Config(width), np.random.default_rng(seed))
    return model, AdamW([("w", model.w), ("b", model.b)], 0.01)


def test_a_resumed_run_is_the_same_run_bit_for_bit(tmp_path):
    path, rng = tmp_path / "x", np.random.default_rng(17)
    model, optimizer = new(1)
    train(model, optimizer, rng, 7)
    save_run(path, model, optimizer, 7, rng, {"losses": [1.5, float("inf")]})
    train(model, optimizer, rng, 5)

    other, other_optimizer = new(2)
    run = load_run(path)
    assert (run.name, Config(**run.config), run.step, run.dtype) == ("line", model.config, 7, np.float32)
    assert run.extra == {"losses": [1.5, float("inf")]}
    restore(other, run.parameters)
    other_optimizer.load_state(run.optimizer)
    train(other, other_optimizer, run.rng, 5)
    assert same(other.w.data, model.w.data) and same(other.b.data, model.b.data)
    assert all(same(array, optimizer.state()[key]) for key, array in other_optimizer.state().items())


def test_a_model_alone(tmp_path):
    model, _ = new(1)
    save_run(tmp_path / "x", model)
    run = load_run(tmp_path / "x")
    assert (run.optimizer, run.rng, run.step, run.extra) == (None, None, 0, {})


def test_a_file_that_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="not a training run"):
        load_run(written(tmp_path / "x"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a: a.pop("b"), "missing b"),
        (lambda a: a.update(u=a["b"]), "unknown u"),
        (lambda a: a.update(w=a["w"].T), r"different w float32 \(3, 4\) is float32 \(4, 3\) in the model"),
        (lambda a: a.update(b=a["b"].astype(float)), r"different b float64 \(3,\) is float32 \(3,\) in the model"),
        (lambda a: a.update({f"u{i}": a.pop("b", 0) for i in range(5)}), "missing b; unknown u0, u1, u2 and 2 more"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(change, complaint):
    model, _ = new(1)
    before = {"w": model.w.data.copy(), "b": model.b.data.copy()}
    arrays = {name: array + 1 for name, array in before.items()}
    change(arrays)
    with pytest.raises(CheckpointError, match=f"^this is a checkpoint of another model: {complaint}$"):
        restore(model, arrays)
    assert same(model.w.data, before["w"]) and same(model.b.data, before["b"])


def test_restore_keeps_the_tensors():
    """The optimizer, and whatever shares a tensor, must see the new numbers."""
    model, _ = new(1)
    array = model.w.data
    restore(model, {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)})
    assert model.w.data is array and (array == 1).all()
