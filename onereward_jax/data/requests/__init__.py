"""Requests: an image, a mask, a prompt and a task, read from a user's own files."""
