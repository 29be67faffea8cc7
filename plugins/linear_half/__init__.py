"""dsv3::LinearHalf."""
