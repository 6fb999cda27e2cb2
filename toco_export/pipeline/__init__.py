"""The export from beginning to end: load, trace, convert, build, verify, place."""
