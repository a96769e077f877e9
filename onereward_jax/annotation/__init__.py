"""Annotation: people compare and rate candidates in a browser, and their votes become preference data."""
