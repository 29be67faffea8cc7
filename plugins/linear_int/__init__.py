"""dsv3::LinearInt."""
