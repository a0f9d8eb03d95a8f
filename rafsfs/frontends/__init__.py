"""Thin adapters from the file system object to its users; no policy lives here."""
