"""Bytes of decoded space on demand: chunk map, verified page cache, one decode for each chunk."""
