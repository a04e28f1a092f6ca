"""Every demo runs without a warning, prints a table, draws its figure, and tells its claim."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]
DEMOS = sorted((ROOT / "demos").glob("plot_*.py"))
TRAINING = {  # for one to five minutes on an idle core
    "plot_rwkv_small_init", "plot_recurrent_depth_adaptive_exit", "plot_recurrent_depth_bad_runs",
    "plot_recurrent_depth_path_independence", "plot_recurrent_depth_test_time_compute", "plot_ttt_linear_markov",
    "plot_ttt_mlp_two_backbones",
}  # fmt: skip


def test_there_are_demos():
    assert DEMOS


def marked(demo):
    return pytest.param(demo, id=demo.stem, marks=[pytest.mark.slow] if demo.stem in TRAINING else [])


@pytest.fixture(scope="module")
def helpers(tmp_path_factory):
    """What several demos import, copied too: it keeps the models that it trains beside itself, once for all of them."""
    return Path(shutil.copy(ROOT / "demos/recurrent_depth_models.py", tmp_path_factory.mktemp("helpers"))).parent


@pytest.mark.parametrize("demo", [marked(demo) for demo in DEMOS])
def test_a_demo_runs_and_draws(demo, tmp_path, helpers):
    """In a process of its own, as a reader runs it; from a copy, so that its figure does not land in the checkout."""
    copy = shutil.copy(demo, tmp_path)
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(copy)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(helpers)])}
    limit = 900 if demo.stem in TRAINING else 120
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=limit)
    assert done.returncode == 0, done.stderr
    (figure,) = (tmp_path / "out").glob("*.png")
    assert figure.stat().st_size > 10_000
    assert done.stdout.count("\n") > 5 and f"figure: out/{figure.name}" in done.stdout
    assert "Claim: " in demo.read_text(encoding="utf-8") and figure.stem in demo.stem
