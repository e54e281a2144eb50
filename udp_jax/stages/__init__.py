"""Stages: each reads a folder and writes one, runs alone, and resumes where it was killed."""
