"""The EROFS tree, read lazily out of verified pages; never touches a store or a key."""
