"""Untrusted encoded bytes, wherever they lie; nothing that comes from here is believed."""
