"""The README's example runs and prints what the README says."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_example_prints_the_numbers_shown() -> None:
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, {})  # noqa: S102 - our own README
    # The first line is a rounding error: its size holds on every machine, its digits do not.
    (error, *numbers), (error_shown, *numbers_shown) = printed.getvalue().splitlines(), shown.splitlines()
    assert numbers == numbers_shown and len(numbers) == 2
    assert float(error.split()[-1]) < 1e-9 and float(error_shown.split()[-1]) < 1e-9


def test_every_path_in_the_map_exists() -> None:
    root = Path(__file__).parents[1]
    paths = re.findall(r"`((?:tinyrec|tests|docs|demos)/[\w/.]+)`", README)
    assert len(paths) >= 8
    assert [p for p in paths if not (root / p).exists()] == []
