"""Engines: one contract suite for all backends, and what is special to each."""
