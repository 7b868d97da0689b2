"""A look at all that jobs need on this machine, and what to do about what is missing."""
