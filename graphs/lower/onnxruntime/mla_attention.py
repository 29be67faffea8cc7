"""dsv3::MlaAttention for ONNX Runtime: absorbed for decoding, decompressed for prefill, chosen by cost at run time."""

from __future__ import annotations

from collections.abc import Callable

from dsv3export.plugins.mla_attention.function import VISIBLE
from dsv3export.plugins.mla_attention_fp8_block.op import up_projections_text
from dsv3export.plugins.registry import Attributes, Dims

# ONNX text of `result` = x @ weight for [H, M, K] and a weight [H, K, N], by their names.
Product = Callable[[str, str, str], str]


def function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttention with float32 w_uk [H, Dn, Dc] and w_uv [H, Dc, Dv], the two parts of kv_b."""
    return f"""
MlaAttention (q_nope, q_pe, cache, w_uk, w_uv, start) => (out) {{
{_body(dims, attributes, _float_product, "", "")}
}}
"""


def int_function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttentionInt: integer products while decoding; a long prefill dequantises the weights first."""
    return f"""
MlaAttentionInt (q_nope, q_pe, cache, w_uk_q, w_uk_scale, w_uv_q, w_uv_scale, start) => (out) {{
{_body(dims, attributes, _int_product, _dequantise("w_uk", dims["Dn"]), _dequantise("w_uv", dims["Dc"]))}
}}
"""


def fp8_function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttentionFp8Block: kv_b stays FP8 in memory and is dequantised in each step."""
    return f"""
MlaAttentionFp8Block (q_nope, q_pe, cache, kv_b, kv_b_scale, start) => (out) {{
{up_projections_text(dims)}
    w_uv = Transpose <perm = [0, 2, 1]> (w_uv_rows)
{_body(dims, attributes, _float_product, "", "")}
}}
"""


def _float_product(x: str, weight: str, result: str) -> str:
    return f"""
            {result} = MatMul ({x}, {weight})"""


def _int_product(x: str, weight: str, result: str) -> str:
    """Each row of x is rounded to 8 bits with a scale of its own, amax / 127, around 128: MLAS is slower on int8.

    DynamicQuantizeLinear would be one node instead of six, with one scale for all heads: on the trained test model its
    next token then differs from prefill's at 4 positions of 100.
    """
    return f"""
            {result}_abs = Abs ({x})
            {result}_last = Constant <value_ints = [-1]> ()
            {result}_amax = ReduceMax <keepdims = 1> ({result}_abs, {result}_last)
            {result}_tiny = Constant <value_float = 1e-30> ()
            {result}_positive = Max ({result}_amax, {result}_tiny)
            {result}_steps = Constant <value_float = 127.0> ()
            {result}_unit = Div ({result}_steps, {result}_positive)
            {result}_scaled = Mul ({x}, {result}_unit)
            {result}_rounded = Round ({result}_scaled)
            {result}_middle = Constant <value_float = 128.0> ()
            {result}_shifted = Add ({result}_rounded, {result}_middle)
            {result}_x = Cast <to = 2> ({result}_shifted)
            {result}_zero = Constant <value = uint8 {{128}}> ()
            {result}_int = MatMulInteger ({result}_x, {weight}_q, {result}_zero)
            {result}_float = Cast <to = 1> ({result}_int)
            {result}_columns = Mul ({result}_float, {weight}_scale)
            {result} = Div ({result}_columns, {result}_unit)"""


def _dequantise(weight: str, rows: int) -> str:
    # Not Cast and Mul: those would be folded into a float copy that stays in memory.
    return f"""
            {weight} = DequantizeLinear <axis = 1, block_size = {rows}> ({weight}_q, {weight}_scale)"""


def _body(dims: Dims, attributes: Attributes, product: Product, w_uk: str, w_uv: str) -> str:
    """ONNX text of both forms.

    Both share the weights and the cache sliced to the longest length T. Multiplications per head and slot, with S
    queries over T cached tokens:

        absorbed      S*T*(2*Dc + Dr) + S*Dc*(Dn + Dv)
        decompressed  S*T*(Dn + Dr + Dv) + T*Dc*(Dn + Dv)

    so decompressing pays iff S*T*(2*Dc - Dn - Dv) + (S - T)*Dc*(Dn + Dv) > 0.
    """
    heads, nope, rope, latent = dims["H"], dims["Dn"], dims["Dr"], dims["Dc"]
    value = dims["Dv"]
    scale = repr(attributes["scale"])
    return f"""{VISIBLE}

    per_pair = Constant <value_int = {2 * latent - nope - value}> ()
    per_token = Constant <value_int = {latent * (nope + value)}> ()
    pairs = Mul (queries_scalar, longest_scalar)
    saved_pairs = Mul (pairs, per_pair)
    cached = Sub (queries_scalar, longest_scalar)
    saved_tokens = Mul (cached, per_token)
    saved = Add (saved_pairs, saved_tokens)
    decompress = Greater (saved, zero_scalar)
    out = If (decompress) <
        then_branch = decompressed () => (float[batch, queries, {heads * value}] out_decompressed) {{
{w_uk}{w_uv}{_decompressed(heads, latent, rope, value, scale)}
        }},
        else_branch = absorbed () => (float[batch, queries, {heads * value}] out_absorbed) {{
{_absorbed(dims, scale, product)}
        }}
    >"""


def _decompressed(heads: int, latent: int, rope: int, value: int, scale: str) -> str:
    return f"""
            latent_widths = Constant <value_ints = [{latent}, {rope}]> ()
            kv_c, k_pe = Split <axis = 2> (latent, latent_widths)
            kv_c_each = Unsqueeze (kv_c, one)
            k_pe_each = Unsqueeze (k_pe, one)
            k_nope = com.microsoft.FusedMatMul <transB = 1> (kv_c_each, w_uk)
            values = MatMul (kv_c_each, w_uv)
            q_nope_heads = Transpose <perm = [0, 2, 1, 3]> (q_nope)
            q_pe_heads = Transpose <perm = [0, 2, 1, 3]> (q_pe)
            nope_scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_nope_heads, k_nope)
            pe_scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_pe_heads, k_pe_each)
            scores = Add (nope_scores, pe_scores)
            mask_heads = Unsqueeze (mask, one)
            masked = Add (scores, mask_heads)
            weights = Softmax <axis = -1> (masked)
            per_head_out = MatMul (weights, values)
            per_token_out = Transpose <perm = [0, 2, 1, 3]> (per_head_out)
            joined = Constant <value_ints = [0, 0, {heads * value}]> ()
            out_decompressed = Reshape (per_token_out, joined)"""


def _absorbed(dims: Dims, scale: str, product: Product) -> str:
    heads, nope, rope, latent, value = dims["H"], dims["Dn"], dims["Dr"], dims["Dc"], dims["Dv"]
    width = latent + rope
    return f"""
            tokens_shape = Constant <value_ints = [-1, {heads}, {nope}]> ()
            q_tokens = Reshape (q_nope, tokens_shape)
            q_heads = Transpose <perm = [1, 0, 2]> (q_tokens){product("q_heads", "w_uk", "q_absorbed_heads")}
            q_absorbed = Transpose <perm = [1, 0, 2]> (q_absorbed_heads)
            pe_shape = Constant <value_ints = [-1, {heads}, {rope}]> ()
            q_pe_tokens = Reshape (q_pe, pe_shape)
            query_tokens = Concat <axis = -1> (q_absorbed, q_pe_tokens)
            batch = Shape <start = 0, end = 1> (q_nope)
            rows_width = Constant <value_ints = [-1, {width}]> ()
            query_shape = Concat <axis = 0> (batch, rows_width)
            query = Reshape (query_tokens, query_shape)
            scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (query, latent)
            heads_shape = Constant <value_ints = [{heads}, -1]> ()
            scores_shape = Concat <axis = 0> (batch, queries, heads_shape)
            scores_heads = Reshape (scores, scores_shape)
            mask_heads = Unsqueeze (mask, two)
            masked = Add (scores_heads, mask_heads)
            weights_heads = Softmax <axis = -1> (masked)
            flat_rows = Constant <value_ints = [-1]> ()
            flat_shape = Concat <axis = 0> (batch, flat_rows, longest)
            weights = Reshape (weights_heads, flat_shape)
            mixed_width = MatMul (weights, latent)
            latent_end = Constant <value_ints = [{latent}]> ()
            mixed = Slice (mixed_width, zero, latent_end, two)
            mixed_shape = Constant <value_ints = [-1, {heads}, {latent}]> ()
            mixed_tokens = Reshape (mixed, mixed_shape)
            mixed_heads = Transpose <perm = [1, 0, 2]> (mixed_tokens){product("mixed_heads", "w_uv", "out_heads")}
            out_tokens = Transpose <perm = [1, 0, 2]> (out_heads)
            out_width = Constant <value_ints = [{heads * value}]> ()
            out_shape = Concat <axis = 0> (batch, queries, out_width)
            out_absorbed = Reshape (out_tokens, out_shape)"""
