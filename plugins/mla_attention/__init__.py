"""dsv3::MlaAttention."""
