"""The benchmarks: `python -m tests.bench`, ratios in one run beside the bounds that are asked."""
