"""TensorRT and TensorRT-RTX: each layer kind becomes an INetworkDefinition, the same calls for both flavours."""
