"""Bytes → facts and findings. Pure and synchronous: no event loop, no catalog, no network."""
