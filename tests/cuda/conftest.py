"""Kernels on the CPU need a C++ compiler: their tests are skipped, with that reason, where there is none.

But not where `CI` is set: there a compiler that went missing must not look like a success.
"""

import os

import pytest

from tinyrec.cuda.host import CompilerError, compiler


@pytest.fixture(scope="session")
def cpp():
    """Ask for it in every test that compiles a kernel for the CPU."""
    try:
        return compiler()
    except CompilerError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
