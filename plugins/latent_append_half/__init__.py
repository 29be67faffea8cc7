"""dsv3::LatentAppendHalf."""
