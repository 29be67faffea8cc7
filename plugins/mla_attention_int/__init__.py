"""dsv3::MlaAttentionInt."""
