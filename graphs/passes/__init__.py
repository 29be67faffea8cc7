"""Passes over the intermediate graph, one file each: a graph with its weights in, another out."""
