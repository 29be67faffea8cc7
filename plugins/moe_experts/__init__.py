"""dsv3::MoEExperts."""
