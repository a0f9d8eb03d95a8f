"""What may be believed, and in what order: keys, wrapping, signatures, freshness, opening; no file I/O but
key files.
"""
