"""Engines of TensorRT and TensorRT-RTX on an NVIDIA GPU. No torch."""
