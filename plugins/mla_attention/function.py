"""dsv3::MlaAttention in standard ONNX ops: the absorbed form, sliced to the longest length."""

from __future__ import annotations

from dsv3export.plugins.registry import Attributes, Dims


def visible_text(like: str, latent: str = "latent") -> str:
    """ONNX text: `latent` [B, T, Dc+Dr], the cache up to the longest length T, and `mask` [B, S, T].

    The mask is -inf where row t of slot b lies behind query s, else 0. Constants and lengths come with them.

    Args:
        like: The name of a value [B, S, ...]; its shape is looked at.
        latent: Another name for `latent`.
    """
    return f"""
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    zero_scalar = Constant <value_int = 0> ()
    one_scalar = Constant <value_int = 1> ()
    latest = ReduceMax <keepdims = 1> (start)
    queries = Shape <start = 1, end = 2> ({like})
    longest = Add (latest, queries)
    {latent} = Slice (cache, zero, longest, one)

    queries_scalar = Squeeze (queries, zero)
    longest_scalar = Squeeze (longest, zero)
    rows = Range (zero_scalar, longest_scalar, one_scalar)
    steps = Range (zero_scalar, queries_scalar, one_scalar)
    start_column = Unsqueeze (start, one)
    last = Add (start_column, steps)
    last_column = Unsqueeze (last, two)
    hidden = Less (last_column, rows)
    minus_infinity = Constant <value_float = -inf> ()
    nothing = Constant <value_float = 0.0> ()
    mask = Where (hidden, minus_infinity, nothing)"""


def function(dims: Dims, attributes: Attributes) -> str:
    """ONNX text for H heads of widths Dn, Dr, Dv over a latent of Dc + Dr."""
    heads, nope, latent, value = dims["H"], dims["Dn"], dims["Dc"], dims["Dv"]
    return f"""
MlaAttention (q_nope, q_pe, cache, kv_b, start) => (out) {{
    per_head_shape = Constant <value_ints = [{heads}, {nope + value}, {latent}]> ()
    kv_b_wide = Cast <to = 1> (kv_b)
    per_head = Reshape (kv_b_wide, per_head_shape)
    widths = Constant <value_ints = [{nope}, {value}]> ()
    w_uk, w_uv = Split <axis = 1> (per_head, widths)
    w_uv_t = Transpose <perm = [0, 2, 1]> (w_uv)
{body(dims, attributes)}
}}
"""


def body(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: `out` from q_nope, q_pe, cache, start and float w_uk [H, Dn, Dc] and w_uv_t [H, Dc, Dv]."""
    heads, latent, value = dims["H"], dims["Dc"], dims["Dv"]
    return f"""{visible_text("q_nope")}
    mask_heads = Unsqueeze (mask, one)

    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_nope)
    q_absorbed = MatMul (q_heads, w_uk)
    q_pe_heads = Transpose <perm = [0, 2, 1, 3]> (q_pe)
    query = Concat <axis = -1> (q_absorbed, q_pe_heads)
    keys_rows = Transpose <perm = [0, 2, 1]> (latent)
    keys = Unsqueeze (keys_rows, one)
    products = MatMul (query, keys)
    scale = Constant <value_float = {attributes["scale"]!r}> ()
    scaled = Mul (products, scale)
    masked = Add (scaled, mask_heads)
    weights = Softmax <axis = -1> (masked)
    compressed_end = Constant <value_ints = [{latent}]> ()
    kv_c_rows = Slice (latent, zero, compressed_end, two)
    kv_c = Unsqueeze (kv_c_rows, one)
    mixed = MatMul (weights, kv_c)
    per_head_out = MatMul (mixed, w_uv_t)
    per_token_out = Transpose <perm = [0, 2, 1, 3]> (per_head_out)
    out_shape = Constant <value_ints = [0, 0, {heads * value}]> ()
    out = Reshape (per_token_out, out_shape)"""
