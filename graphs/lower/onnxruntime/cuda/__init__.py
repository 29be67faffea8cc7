"""ONNX Runtime's CUDA provider: what its kernels take, op by op.

Values between ops are float32, and so are norms, rotations, the router and the softmax. A product rounds its inputs to
the type of its weights and widens what comes out: float32 (TF32 off), bfloat16 or float16, accumulated in float32.
Integer and fp8 weights are multiplied in a type of the engine's choice, bfloat16 unless told otherwise: float16 has
three bits more, but ends at 65,504, and DeepSeek's activations do not
(https://github.com/vllm-project/vllm/pull/13232).
"""

from dsv3export.graphs.lower.onnxruntime.cuda.rows import rows

__all__ = ["rows"]
