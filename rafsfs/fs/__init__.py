"""The file system object that every front end adapts: names, attributes and bytes of inodes."""
