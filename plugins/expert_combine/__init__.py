"""dsv3::Linear."""
