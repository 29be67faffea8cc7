"""How fast an engine is on this machine, and how much of the machine that takes. Numpy alone."""
