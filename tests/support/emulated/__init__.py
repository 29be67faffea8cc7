"""A GPU without one: host memory plays the device's, and TensorRT's engines are replayed from what was recorded."""
