"""
Platforms' surfaces: a dialect in, a dialect out. Faces hold no decision and do not know each other.
"""
