"""Entry points: one short main per stage."""
