"""tinyrec beside PyTorch, as ratios measured side by side: `python -m benchmarks --help`."""
