"""dsv3::MoEExpertsInt."""
