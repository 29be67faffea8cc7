"""dsv3::MoEExpertsFp8Block."""
