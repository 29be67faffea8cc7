"""dsv3::MlaAttention for the CUDA provider: absorbed for decoding, decompressed for prefill, chosen by cost."""

from __future__ import annotations

from dsv3export.graphs.lower.onnxruntime.mla_attention import STEP, choice_text
from dsv3export.plugins.mla_attention.function import visible_text
from dsv3export.plugins.registry import Attributes, Dims, FunctionText


def attention(name: str) -> FunctionText:
    """An op of that name, with w_uk [H, Dn, Dc] and w_uv [H, Dc, Dv] of any float type.

    The products with them are in their type. Absorbed, scores and sums over the cache are float32: they read the cache
    as it is. Decompressed they are products of what was just made in the narrow type, and the softmax is float32.
    """

    def function(dims: Dims, attributes: Attributes) -> str:
        return f"""
{name} (q_nope, q_pe, cache, w_uk, w_uv, start, {STEP}) => (out) {{
{_body(dims, repr(attributes["scale"]))}
}}
"""

    return function


def _body(dims: Dims, scale: str) -> str:
    """ONNX text; the choice is made as in the CPU's `mla_attention`, and what all layers share once a step as there."""
    result = f"float[batch, queries, {dims['H'] * dims['Dv']}]"
    return f"""{visible_text(STEP)}

{choice_text(dims)}
    batch = Shape <start = 0, end = 1> ({STEP})
    out = If (decompress) <
        then_branch = decompressed () => ({result} out_decompressed) {{
{_decompressed(dims, scale)}
        }},
        else_branch = absorbed () => ({result} out_absorbed) {{
{_absorbed(dims, scale)}
        }}
    >"""


def _decompressed(dims: Dims, scale: str) -> str:
    return f"""
            latent_widths = Constant <value_ints = [{dims["Dc"]}, {dims["Dr"]}]> ()
            latent_narrow = CastLike (latent, w_uk)
            kv_c, k_pe = Split <axis = 2> (latent_narrow, latent_widths)
            kv_c_each = Unsqueeze (kv_c, one)
            k_pe_each = Unsqueeze (k_pe, one)
            k_nope = com.microsoft.FusedMatMul <transB = 1> (kv_c_each, w_uk)
            values = MatMul (kv_c_each, w_uv)
            q_nope_narrow = CastLike (q_nope, w_uk)
            q_nope_heads = Transpose <perm = [0, 2, 1, 3]> (q_nope_narrow)
            q_pe_narrow = CastLike (q_pe, w_uk)
            q_pe_heads = Transpose <perm = [0, 2, 1, 3]> (q_pe_narrow)
            nope_products = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_nope_heads, k_nope)
            nope_scores = Cast <to = 1> (nope_products)
            pe_products = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_pe_heads, k_pe_each)
            pe_scores = Cast <to = 1> (pe_products)
            scores = Add (nope_scores, pe_scores)
            mask_heads = Unsqueeze (mask, one)
            masked = Add (scores, mask_heads)
            weights = Softmax <axis = -1> (masked)
            weights_narrow = CastLike (weights, w_uk)
            per_head_narrow = MatMul (weights_narrow, values)
            per_head_out = Cast <to = 1> (per_head_narrow)
            per_token_out = Transpose <perm = [0, 2, 1, 3]> (per_head_out)
            joined = Constant <value_ints = [0, 0, {dims["H"] * dims["Dv"]}]> ()
            out_decompressed = Reshape (per_token_out, joined)"""


def _absorbed(dims: Dims, scale: str) -> str:
    """All heads are queries of one product per slot: [B, S*H, Dc+Dr] by the cache [B, T, Dc+Dr]."""
    heads, nope, rope, latent, value = (dims[name] for name in ("H", "Dn", "Dr", "Dc", "Dv"))
    return f"""
            tokens_shape = Constant <value_ints = [-1, {heads}, {nope}]> ()
            q_tokens = Reshape (q_nope, tokens_shape)
            q_narrow = CastLike (q_tokens, w_uk)
            q_heads = Transpose <perm = [1, 0, 2]> (q_narrow)
            q_absorbed_narrow = MatMul (q_heads, w_uk)
            q_absorbed_heads = Cast <to = 1> (q_absorbed_narrow)
            q_absorbed = Transpose <perm = [1, 0, 2]> (q_absorbed_heads)
            pe_shape = Constant <value_ints = [-1, {heads}, {rope}]> ()
            q_pe_tokens = Reshape (q_pe, pe_shape)
            query_tokens = Concat <axis = -1> (q_absorbed, q_pe_tokens)
            rows_width = Constant <value_ints = [-1, {latent + rope}]> ()
            query_shape = Concat <axis = 0> (batch, rows_width)
            query = Reshape (query_tokens, query_shape)
            scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (query, latent)
            heads_shape = Constant <value_ints = [{heads}, -1]> ()
            scores_shape = Concat <axis = 0> (batch, queries, heads_shape)
            scores_heads = Reshape (scores, scores_shape)
            mask_heads = Unsqueeze (mask, two)
            masked = Add (scores_heads, mask_heads)
            weights_heads = Softmax <axis = -1> (masked)
            heads_each = Constant <value_ints = [{heads}]> ()
            flat_rows = Mul (queries, heads_each)
            rest = Constant <value_ints = [-1]> ()
            flat_shape = Concat <axis = 0> (batch, flat_rows, rest)
            weights = Reshape (weights_heads, flat_shape)
            mixed_width = MatMul (weights, latent)
            latent_end = Constant <value_ints = [{latent}]> ()
            mixed = Slice (mixed_width, zero, latent_end, two)
            mixed_shape = Constant <value_ints = [-1, {heads}, {latent}]> ()
            mixed_tokens = Reshape (mixed, mixed_shape)
            mixed_narrow = CastLike (mixed_tokens, w_uv)
            mixed_heads = Transpose <perm = [1, 0, 2]> (mixed_narrow)
            out_narrow = MatMul (mixed_heads, w_uv)
            out_heads = Cast <to = 1> (out_narrow)
            out_tokens = Transpose <perm = [1, 0, 2]> (out_heads)
            out_width = Constant <value_ints = [{heads * value}]> ()
            out_shape = Concat <axis = 0> (batch, queries, out_width)
            out_absorbed = Reshape (out_tokens, out_shape)"""
