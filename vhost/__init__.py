"""vhost-user and virtqueues for any device; knows nothing of rafsfs or FUSE."""
