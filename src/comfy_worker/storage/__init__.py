"""
Object stores behind one small interface, one file each.
"""
