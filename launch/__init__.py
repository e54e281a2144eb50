"""Launch scripts, and compilation for accelerators that this machine lacks."""
