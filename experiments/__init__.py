"""Entry points: each stage has one short `main`."""
