"""Verifies a finished or half-finished job: each object against its record, a sample against the
model itself, and what is not right rendered again.
"""
