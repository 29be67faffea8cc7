"""Runs an engine: session, latent cache, sampling, text. Imports neither torch nor onnx."""
