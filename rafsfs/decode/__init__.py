"""Encoded chunk or page to verified bytes: the only room that makes ``VerifiedBytes``; pure, no I/O."""
