"""Looks into an engine: its graph with the layer kinds' inner values as outputs, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnxruntime

from dsv3export.config import ModelConfig
from dsv3export.engine.reader import EngineFiles
from tests.e2e.goldens import Array


def engine_values(path: Path, ids: Sequence[int], inner: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """Values that a strict engine computes for a sequence, by the provenance names that the executor uses.

    Args:
        path: An engine without references into its checkpoint (built with `copy_weights`).
        inner: Layer kind -> names of values in its function, e.g. ``{"moe_layer": ["mlp.gate.ids"]}``. Besides them
            come the first output of each layer (``layers.3``), of ``embed`` (``embed_tokens``) and ``norm``.
    """
    files = EngineFiles.open(path)
    model = onnx.load_from_string(files.graph("trunk"))
    names = _expose(model, inner)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(list(names.values()), _feeds(files.config, ids))
    return dict(zip(names, results, strict=True))


def _feeds(config: ModelConfig, ids: Sequence[int]) -> dict[str, Array]:
    cache = np.zeros((1, len(ids), config.latent_width), np.float32)
    return {
        "input_ids": np.array([ids], np.int64),
        "start": np.zeros(1, np.int64),
        "logit_rows": np.arange(len(ids)),
        **{f"latent_cache.{i}": cache.copy() for i in range(config.num_hidden_layers)},
    }


def _expose(model: onnx.ModelProto, inner: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Adds outputs to functions, calls and graph; returns provenance name -> graph output."""
    for function in model.functions:
        function.output.extend(inner.get(function.name, ()))
    names = {"norm": "final_hidden"}
    for node in model.graph.node:
        path = next((entry.value for entry in node.metadata_props if entry.key == "dsv3.path"), "")
        if node.op_type != "head":
            names[path or "embed_tokens"] = node.output[0]
        for name in inner.get(node.op_type, ()):
            node.output.append(f"{path}.{name}")
            names[f"{path}.{name}"] = f"{path}.{name}"
    known = {value.name for value in model.graph.output}
    for name in names.values():
        if name not in known:
            kind = onnx.TensorProto.INT64 if name.endswith(".ids") else onnx.TensorProto.FLOAT
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return names
