"""The kernels behind the plugins: how they are described, compiled without a GPU, interpreted, and launched.

A kernel is a Triton function in ``plugins/<op>/kernel.py``. A `Plugin` in ``plugins/<op>/tensorrt.py`` says which one
runs for which tensors; it is registered with TensorRT, launched on a GPU or interpreted on a CPU from that one text.
Nothing here imports Triton, TensorRT or CUDA before it is needed.
"""
