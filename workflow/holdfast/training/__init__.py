"""Shared machinery of every training: resumable loops and their state files."""
