"""Images in and out: sources, image files, output folders with manifests, budget checks."""
