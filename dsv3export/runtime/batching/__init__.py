"""Continuous batching: many requests of any length over one session, admitted while others decode."""
