"""dsv3::LatentAppendFp8."""
