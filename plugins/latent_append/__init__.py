"""dsv3::LatentAppend."""
