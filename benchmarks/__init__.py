"""Measurements of speed and memory; README.md says what each file measures and how to run it."""
