"""The kernels on a GPU: shapes, floors, what runs, peers, timing, tuning. `benchmarks/kernels.py` is the command."""
