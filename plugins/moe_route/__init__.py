"""dsv3::MoERoute."""
