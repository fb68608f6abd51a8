"""Broken and malicious bundles: made here, never stored."""
