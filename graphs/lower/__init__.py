"""Lowering: from the intermediate graph to what one backend loads; one package or module per backend."""
