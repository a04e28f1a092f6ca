"""Measure tinyrec beside PyTorch and print the ratios.

    python -m benchmarks --list
    python -m benchmarks train_step decode/hawk@256 --rounds 5 --json out.json
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.cases import Case, all_cases
from benchmarks.harness import compare, machine, show


def chosen(names: list[str]) -> list[Case]:
    """Cases by name or by the part of it before the slash; all of them when no name is given."""
    cases = all_cases()
    for name in names:
        if not any(name in (case, case.partition("/")[0]) for case in cases):
            raise SystemExit(f"no case is called {name!r}; there are: {', '.join(cases)}")
    return [case for key, case in cases.items() if not names or {key, key.partition("/")[0]} & set(names)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE", help="a case or a group of cases; all by default")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every side (default 3)")
    parser.add_argument("--threads", type=int, help="instead of the case's own number")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed work per side and round, at most about this")
    parser.add_argument("--ours", default="tinyrec", metavar="SIDE", help="whose ratios are told (default tinyrec)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    options = parser.parse_args()
    cases = chosen(options.names)
    if all(options.ours not in case.sides for case in cases):
        sides = dict.fromkeys(side for case in cases for side in case.sides)
        raise SystemExit(f"no side is called {options.ours!r}; there are: {', '.join(sides)}")
    if options.list:
        width = max(len(case.name) for case in cases)
        for case in cases:
            print(f"{case.name:{width}} {', '.join(case.sides)}")
        return
    before, results = machine(), []
    for number, case in enumerate(cases, 1):
        print(f"{number} of {len(cases)}: {case.name}", file=sys.stderr)
        results += compare(case, options.rounds, options.threads, options.seconds, options.ours)
        if options.json:  # after every case: a long run that is interrupted keeps what it has
            record = {"machine": before, "load_after": machine()["load"], "results": [asdict(r) for r in results]}
            options.json.write_text(json.dumps(record, indent=1) + "\n")
    show(results, options.ours)


if __name__ == "__main__":
    main()
