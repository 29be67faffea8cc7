"""One engine over several processes: what ranks say to each other, and how each runs its part."""
