"""dsv3::LinearFp8Block."""
