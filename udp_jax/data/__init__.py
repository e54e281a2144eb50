"""Reads and writes images: sources, image files, output folders with manifests, budget checks."""
