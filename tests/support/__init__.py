"""
Helpers that more than one test file needs; nothing here asserts.
"""
