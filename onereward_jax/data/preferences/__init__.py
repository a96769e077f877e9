"""Preference data: one record type, two forms on disk (a plain folder, a TFDS directory), importers of public sets.

docs/reference/preference_data.md describes both forms field by field.
"""
