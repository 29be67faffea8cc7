"""Kernels for ONNX Runtime on CPUs, in C++: ops of the domain ``dsv3.cpu``, compiled when the package is installed.

`dsv3export.runtime.cpu_kernels` finds and loads the library; docs/design.md describes layouts and numerics.
"""
