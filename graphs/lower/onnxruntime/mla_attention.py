"""dsv3::MlaAttention for ONNX Runtime: absorbed for decoding, decompressed for prefill, chosen by cost at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv3export.plugins.linear_fp8_block.function import rounded_text
from dsv3export.plugins.mla_attention.function import visible_text
from dsv3export.plugins.mla_attention_fp8_block.op import up_projections_text
from dsv3export.plugins.registry import Attributes, Dims

# The layer kinds' argument whose shape says how many rows a step has. What depends on it and on `start` alone has the
# same inputs in each layer, so that ONNX Runtime computes it once: the mask, the sizes, the choice of the form.
STEP = "cos"


@dataclass(frozen=True)
class UpProjections:
    """ONNX texts of the products with the two parts of kv_b, W^UK [H, Dn, Dc] and W^UV [H, Dv, Dc].

    Args:
        absorb: `q_absorbed` [M, H, Dc] from `q_tokens` [M, H, Dn].
        expand: `out_tokens` [M, H, Dv] from `mixed_tokens` [M, H, Dc].
        decompress: `k_nope` [B, H, T, Dn] and `values` [B, H, T, Dv] from `kv_c` [B, T, Dc].
    """

    absorb: str
    expand: str
    decompress: str


def function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttention with float32 w_uk [H, Dn, Dc] and w_uv [H, Dc, Dv], the two parts of kv_b."""
    return f"""
MlaAttention (q_nope, q_pe, cache, w_uk, w_uv, start, cos) => (out) {{
{_body(dims, attributes, _FLOAT)}
}}
"""


def half_function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttention with a bfloat16 or float16 kv_b, which is widened in each step, one head at a time.

    The view of it has a shape that only a run knows, as in `tiles_text`.
    """
    nope, latent, value = dims["Dn"], dims["Dc"], dims["Dv"]
    return f"""
MlaAttention (q_nope, q_pe, cache, kv_b, start, cos) => (out) {{
    kv_b_sizes = Constant <value_ints = [{dims["H"]}, {nope + value}, {latent}]> ()
    kv_b_rows = Shape <start = 1, end = 2> ({STEP})
    kv_b_zero = Sub (kv_b_rows, kv_b_rows)
    kv_b_shape = Add (kv_b_sizes, kv_b_zero)
    kv_b_heads = Reshape (kv_b, kv_b_shape)
{_body(dims, attributes, _half(nope, value))}
}}
"""


def head_groups(dims: Dims) -> list[range]:
    """The heads whose 8-bit up-projections lie side by side in one matrix.

    ONNX Runtime packs a matrix for its integer products when it loads it, but copies a bank at every step. So a step
    multiplies the rows of a whole group with the matrices of all its heads, and keeps each head's own columns: so many
    rows cost no more than one, as long as reading the weights is what takes the time. 16 rows fill an AMX tile.
    """
    return [range(first, min(first + _HEADS_AT_ONCE, dims["H"])) for first in range(0, dims["H"], _HEADS_AT_ONCE)]


_HEADS_AT_ONCE = 16


def int_inputs(dims: Dims) -> tuple[str, ...]:
    """Formal inputs of `int_function`."""
    parts = [f"{part}_{i}" for part in ("w_uk", "w_uv") for i in range(len(head_groups(dims)))]
    return ("q_nope", "q_pe", "cache", *(f"{part}{kind}" for part in parts for kind in ("_q", "_scale")), "start", STEP)


def int_function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttentionInt: integer products while decoding; a long prefill dequantises the weights first.

    For each group of heads: w_uk_{i}_q int8 [Dn, heads*Dc] and w_uv_{i}_q int8 [Dc, heads*Dv], scales [1, columns].

    Integer products take the weights unsigned, around 128, made so once, when ONNX Runtime folds constants. With AVX2
    and without VNNI, MLAS adds two products of uint8 and int8 in 16 bits, saturating; those of uint8 are exact.
    """
    sizes = {"w_uk": (dims["Dn"], dims["Dc"]), "w_uv": (dims["Dc"], dims["Dv"])}
    groups = head_groups(dims)
    w_uk, w_uv = (_dequantise(weight, sizes[weight], groups) for weight in ("w_uk", "w_uv"))
    unsigned = """
    sign_bit = Constant <value = uint8 {128}> ()"""
    for weight in (f"{part}_{i}" for part in sizes for i in range(len(groups))):
        unsigned += f"""
    {weight}_bits = Cast <to = 2> ({weight}_q)
    {weight}_unsigned = BitwiseXor ({weight}_bits, sign_bit)"""
    up = UpProjections(
        _int_product("q_tokens", "w_uk", "q_absorbed", dims["Dc"], groups),
        _int_product("mixed_tokens", "w_uv", "out_tokens", dims["Dv"], groups),
        w_uk + w_uv + _FLOAT.decompress,
    )
    return f"""
MlaAttentionInt ({", ".join(int_inputs(dims))}) => (out) {{{unsigned}
{_body(dims, attributes, up)}
}}
"""


def fp8_function(dims: Dims, attributes: Attributes) -> str:
    """dsv3::MlaAttentionFp8Block: kv_b stays FP8 in memory and is dequantised in each step."""
    return f"""
MlaAttentionFp8Block (q_nope, q_pe, cache, kv_b, kv_b_scale, start, cos) => (out) {{
{up_projections_text(dims)}
    w_uv = Transpose <perm = [0, 2, 1]> (w_uv_rows)
{_body(dims, attributes, _FLOAT)}
}}
"""


def _head_by_head(x: str, result: str, product: str) -> str:
    """ONNX text: `result` [M, H, N] from `x` [M, H, K] by a `product` of `x_heads` [H, M, K], `result_heads`."""
    return f"""
            {x}_heads = Transpose <perm = [1, 0, 2]> ({x}){product}
            {result} = Transpose <perm = [1, 0, 2]> ({result}_heads)"""


_FLOAT = UpProjections(
    absorb=_head_by_head(
        "q_tokens",
        "q_absorbed",
        """
            q_absorbed_heads = MatMul (q_tokens_heads, w_uk)""",
    ),
    expand=_head_by_head(
        "mixed_tokens",
        "out_tokens",
        """
            out_tokens_heads = MatMul (mixed_tokens_heads, w_uv)""",
    ),
    decompress="""
            kv_c_each = Unsqueeze (kv_c, heads_axis)
            k_nope = com.microsoft.FusedMatMul <transB = 1> (kv_c_each, w_uk)
            values = MatMul (kv_c_each, w_uv)""",
)


def _half(nope: int, value: int) -> UpProjections:
    """With `kv_b_heads` [H, Dn+Dv, Dc] in 16 bits: a scan over the heads."""
    absorb = f"""
            uk_start = Constant <value_ints = [0]> ()
            uk_end = Constant <value_ints = [{nope}]> ()
            q_absorbed_heads = Scan <num_scan_inputs = 2, body = absorb_each (q_head, kv_b_head) => (absorbed_head) {{
                uk_stored = Slice (kv_b_head, uk_start, uk_end, uk_start)
                uk = Cast <to = 1> (uk_stored)
                absorbed_head = MatMul (q_head, uk)
            }}> (q_tokens_heads, kv_b_heads)"""
    expand = f"""
            uv_start = Constant <value_ints = [{nope}]> ()
            uv_end = Constant <value_ints = [{nope + value}]> ()
            uv_axis = Constant <value_ints = [0]> ()
            out_tokens_heads = Scan <num_scan_inputs = 2, body = expand_each (mixed_head, kv_b_head) => (out_head) {{
                uv_stored = Slice (kv_b_head, uv_start, uv_end, uv_axis)
                uv = Cast <to = 1> (uv_stored)
                out_head = com.microsoft.FusedMatMul <transB = 1> (mixed_head, uv)
            }}> (mixed_tokens_heads, kv_b_heads)"""
    decompress = f"""
            up_widths = Constant <value_ints = [{nope}, {value}]> ()
            k_nope, values = Scan <num_scan_inputs = 1, scan_output_axes = [1, 1], body = decompress_each (kv_b_head)
                => (k_head, value_head) {{
                kv_head_weight = Cast <to = 1> (kv_b_head)
                kv_head = com.microsoft.FusedMatMul <transB = 1> (kv_c, kv_head_weight)
                k_head, value_head = Split <axis = 2> (kv_head, up_widths)
            }}> (kv_b_heads)"""
    return UpProjections(
        _head_by_head("q_tokens", "q_absorbed", absorb),
        _head_by_head("mixed_tokens", "out_tokens", expand),
        decompress,
    )


def _int_product(x: str, weight: str, result: str, width: int, groups: Sequence[range]) -> str:
    """Each row of x is rounded to 8 bits with a scale of its own, amax / 127, around 128: MLAS is slower on int8.

    DynamicQuantizeLinear would be one node instead of seven, with one scale for all heads: on the trained test model
    its next token then differs from prefill's at 4 positions of 100.
    """
    text = f"""
            {result}_abs = Abs ({x})
            {result}_last = Constant <value_ints = [-1]> ()
            {result}_amax = ReduceMax <keepdims = 1> ({result}_abs, {result}_last)
            {result}_tiny = Constant <value_float = 1e-30> ()
            {result}_positive = Max ({result}_amax, {result}_tiny)
            {result}_steps = Constant <value_float = 127.0> ()
            {result}_unit = Div ({result}_steps, {result}_positive)
            {result}_scaled = Mul ({x}, {result}_unit)
            {result}_middle = Constant <value_float = 128.5> ()
            {result}_shifted = Add ({result}_scaled, {result}_middle)
            {result}_x = Cast <to = 2> ({result}_shifted)
            {result}_zero = Constant <value = uint8 {{128}}> ()"""
    parts = [f"{result}_{i}" for i in range(len(groups))]
    if len(groups) > 1:
        counts = ", ".join(str(len(heads)) for heads in groups)
        text += f"""
            {result}_counts = Constant <value_ints = [{counts}]> ()
            {", ".join(f"{part}_x" for part in parts)} = Split <axis = 1> ({result}_x, {result}_counts)"""
    else:
        text += f"""
            {parts[0]}_x = Identity ({result}_x)"""
    for i, (part, heads) in enumerate(zip(parts, groups, strict=True)):
        count = len(heads)
        own = ", ".join(str(head * (count + 1)) for head in range(count))
        text += f"""
            {part}_all = MatMulInteger ({part}_x, {weight}_{i}_unsigned, {result}_zero, {result}_zero)
            {part}_pairs_shape = Constant <value_ints = [-1, {count * count}, {width}]> ()
            {part}_pairs = Reshape ({part}_all, {part}_pairs_shape)
            {part}_diagonal = Constant <value_ints = [{own}]> ()
            {part}_own = Gather <axis = 1> ({part}_pairs, {part}_diagonal)
            {part}_float = Cast <to = 1> ({part}_own)
            {part}_scale_shape = Constant <value_ints = [{count}, {width}]> ()
            {part}_scale = Reshape ({weight}_{i}_scale, {part}_scale_shape)
            {part}_columns = Mul ({part}_float, {part}_scale)"""
    columns = ", ".join(f"{part}_columns" for part in parts)
    return f"""{text}
            {result}_columns = {f"Concat <axis = 1> ({columns})" if len(parts) > 1 else f"Identity ({columns})"}
            {result} = Div ({result}_columns, {result}_unit)"""


def _dequantise(weight: str, sizes: tuple[int, int], groups: Sequence[range]) -> str:
    """ONNX text: `weight` [H, K, N] from its groups' [K, heads*N]."""
    rows, width = sizes
    text = ""
    for i, heads in enumerate(groups):
        # Not Cast and Mul: those would be folded into a float copy that stays in memory.
        text += f"""
            {weight}_{i} = DequantizeLinear <axis = 0, block_size = {rows}> ({weight}_{i}_q, {weight}_{i}_scale)
            {weight}_{i}_shape = Constant <value_ints = [{rows}, {len(heads)}, {width}]> ()
            {weight}_{i}_columns = Reshape ({weight}_{i}, {weight}_{i}_shape)
            {weight}_{i}_heads = Transpose <perm = [1, 0, 2]> ({weight}_{i}_columns)"""
    parts = ", ".join(f"{weight}_{i}_heads" for i in range(len(groups)))
    return f"""{text}
            {weight} = {f"Concat <axis = 0> ({parts})" if len(groups) > 1 else f"Identity ({parts})"}"""


def choice_text(dims: Dims) -> str:
    """ONNX text: `decompress`, whether decompressing pays.

    Multiplications per head and slot, with S queries over T cached tokens:

        absorbed      S*T*(2*Dc + Dr) + S*Dc*(Dn + Dv)
        decompressed  S*T*(Dn + Dr + Dv) + T*Dc*(Dn + Dv)

    so it does iff S*T*(2*Dc - Dn - Dv) + (S - T)*Dc*(Dn + Dv) > 0.
    """
    nope, latent, value = dims["Dn"], dims["Dc"], dims["Dv"]
    return f"""
    per_pair = Constant <value_int = {2 * latent - nope - value}> ()
    per_token = Constant <value_int = {latent * (nope + value)}> ()
    pairs = Mul (queries_scalar, longest_scalar)
    saved_pairs = Mul (pairs, per_pair)
    cached = Sub (queries_scalar, longest_scalar)
    saved_tokens = Mul (cached, per_token)
    saved = Add (saved_pairs, saved_tokens)
    decompress = Greater (saved, zero_scalar)"""


def _body(dims: Dims, attributes: Attributes, up: UpProjections) -> str:
    """ONNX text of both forms.

    Both share the weights and the cache sliced to the longest length T.
    """
    heads, rope, latent = dims["H"], dims["Dr"], dims["Dc"]
    value = dims["Dv"]
    scale = repr(attributes["scale"])
    return f"""{_latent_text(dims, attributes)}

{choice_text(dims)}

    batch = Shape <start = 0, end = 1> ({STEP})
    any_rows = Constant <value_ints = [-1]> ()
    width = Constant <value_ints = [{latent + rope}]> ()
    heads = Constant <value_ints = [{heads}]> ()
    out_width = Constant <value_ints = [{heads * value}]> ()
    query_shape = Concat <axis = 0> (batch, any_rows, width)
    scores_shape = Concat <axis = 0> (batch, queries, heads, any_rows)
    flat_shape = Concat <axis = 0> (batch, any_rows, longest)
    out_shape = Concat <axis = 0> (batch, queries, out_width)
    mask_of_heads = Unsqueeze (mask, two)
    out = If (decompress) <
        then_branch = decompressed () => (float[batch, queries, {heads * value}] out_decompressed) {{
{_decompressed(heads, latent, rope, value, scale, up)}
        }},
        else_branch = absorbed () => (float[batch, queries, {heads * value}] out_absorbed) {{
{_absorbed(dims, scale, up)}
        }}
    >"""


def _latent_text(dims: Dims, attributes: Attributes) -> str:
    """ONNX text: `visible_text`, with the latents as kv_b sees them."""
    if attributes.get("activations") != "1x128":
        return visible_text(STEP)
    return f"""{visible_text(STEP, "stored")}
    stored_widths = Constant <value_ints = [{dims["Dc"]}, {dims["Dr"]}]> ()
    stored_latent, stored_pe = Split <axis = 2> (stored, stored_widths)
{rounded_text("stored_latent", "seen_latent", dims["Dc"], attributes)}
    latent = Concat <axis = 2> (seen_latent, stored_pe)"""


def _decompressed(heads: int, latent: int, rope: int, value: int, scale: str, up: UpProjections) -> str:
    return f"""
            latent_widths = Constant <value_ints = [{latent}, {rope}]> ()
            kv_c, k_pe = Split <axis = 2> (latent, latent_widths)
            heads_axis = Constant <value_ints = [1]> ()
            k_pe_each = Unsqueeze (k_pe, heads_axis){up.decompress}
            q_nope_heads = Transpose <perm = [0, 2, 1, 3]> (q_nope)
            q_pe_heads = Transpose <perm = [0, 2, 1, 3]> (q_pe)
            nope_scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_nope_heads, k_nope)
            pe_scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (q_pe_heads, k_pe_each)
            scores = Add (nope_scores, pe_scores)
            mask_heads = Unsqueeze (mask, heads_axis)
            masked = Add (scores, mask_heads)
            weights = Softmax <axis = -1> (masked)
            per_head_out = MatMul (weights, values)
            per_token_out = Transpose <perm = [0, 2, 1, 3]> (per_head_out)
            joined = Constant <value_ints = [0, 0, {heads * value}]> ()
            out_decompressed = Reshape (per_token_out, joined)"""


def _absorbed(dims: Dims, scale: str, up: UpProjections) -> str:
    heads, nope, rope, latent = dims["H"], dims["Dn"], dims["Dr"], dims["Dc"]
    return f"""
            tokens_shape = Constant <value_ints = [-1, {heads}, {nope}]> ()
            q_tokens = Reshape (q_nope, tokens_shape){up.absorb}
            pe_shape = Constant <value_ints = [-1, {heads}, {rope}]> ()
            q_pe_tokens = Reshape (q_pe, pe_shape)
            query_tokens = Concat <axis = -1> (q_absorbed, q_pe_tokens)
            query = Reshape (query_tokens, query_shape)
            scores = com.microsoft.FusedMatMul <transB = 1, alpha = {scale}> (query, latent)
            scores_heads = Reshape (scores, scores_shape)
            masked = Add (scores_heads, mask_of_heads)
            weights_heads = Softmax <axis = -1> (masked)
            weights = Reshape (weights_heads, flat_shape)
            mixed_width = MatMul (weights, latent)
            latent_end = Constant <value_ints = [{latent}]> ()
            latent_start = Constant <value_ints = [0]> ()
            latent_axis = Constant <value_ints = [2]> ()
            mixed = Slice (mixed_width, latent_start, latent_end, latent_axis)
            mixed_shape = Constant <value_ints = [-1, {heads}, {latent}]> ()
            mixed_tokens = Reshape (mixed, mixed_shape){up.expand}
            out_absorbed = Reshape (out_tokens, out_shape)"""
