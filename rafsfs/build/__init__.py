"""A tree becomes a sealed image: scan, deduplicate, encode, write; never imported by a reader."""
