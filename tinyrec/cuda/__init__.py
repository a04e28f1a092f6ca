"""One readable kernel per recurrence, <stem>.cu, and what makes it trustworthy without a GPU. docs/cuda.md tells more.

- launch.py      the one way to start a kernel; checks every argument first
- signature.py   a kernel's parameters, read from its own text
- host.py, *.h   the same text on a CPU, also with a checker for indices, races and barriers
"""
