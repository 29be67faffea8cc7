"""The embedding table keeps a dtype of its own: rows are looked up in it, and those are cast.

Given -> Result, for a table in bfloat16::

    h = Gather(embed_tokens.weight: f32[V, D], ids)
    h = Cast(Gather(embed_tokens.weight: bf16[V, D], ids))
"""

from __future__ import annotations

import onnx_ir as ir

from dsv3export.checkpoint import Checkpoint
from dsv3export.graphs.rewrite import GraphWithWeights, KindRewriter, rebuild
from dsv3export.graphs.values import like
from dsv3export.recipe import Recipe

_TYPES = {"F32": ir.DataType.FLOAT, "BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}


def embedding_dtype(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The table's safetensors dtype: as stored, unless the recipe wants a float32 table narrower."""
    stored = checkpoint.tensors["model.embed_tokens.weight"].dtype
    wanted = recipe.components["embedding"].format.upper()
    return wanted if stored == "F32" and wanted in ("BF16", "F16") else stored


def store_embedding(before: GraphWithWeights, dtype: str) -> GraphWithWeights:
    """Keep the embedding table in a safetensors dtype, F32, BF16 or F16; the given graph is used up."""
    if dtype == "F32":
        return before
    kinds = {}
    for function in before.model.functions.values():
        rewriter = KindRewriter(function)
        if function.name == "embed":
            _cast_rows(rewriter, _TYPES[dtype])
        kinds[function.name] = rewriter.finish()
    return rebuild(before, kinds, list(before.model.functions.values()))


def _cast_rows(rewriter: KindRewriter, dtype: ir.DataType) -> None:
    embed = rewriter.function
    table = next(value for value in embed.inputs if value.name == "embed_tokens.weight")
    ((lookup, _),) = table.uses()
    stored, ids, old_rows = rewriter.store_as(table, dtype), lookup.inputs[1], lookup.outputs[0]
    rows = like(old_rows, f"{old_rows.name}.stored")
    rows.dtype = dtype
    gather = ir.node("Gather", [stored, ids], {"axis": 0}, outputs=[rows], name=rows.name)
    new_rows = like(old_rows)
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT.value}, outputs=[new_rows], name=lookup.name)
    for node in (gather, cast):
        node.metadata_props.update(lookup.metadata_props)
    ir.convenience.replace_nodes_and_values(embed, lookup, [lookup], [gather, cast], [old_rows], [new_rows])
