"""The command line: one file for each command, exit codes in one table."""
