"""The FUSE wire protocol without input and output: a request's bytes in, its reply's bytes out."""
