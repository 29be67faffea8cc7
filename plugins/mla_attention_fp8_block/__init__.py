"""dsv3::MlaAttentionFp8Block."""
