"""One module for each command; nothing else parses arguments or prints."""
