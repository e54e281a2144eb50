"""Launch scripts, and compilation for accelerators that are not here."""
