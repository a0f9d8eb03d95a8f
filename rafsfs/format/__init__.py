"""What the bytes of an image are: pure records shared by reader and builder; no I/O, no keys."""
