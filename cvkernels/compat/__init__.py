"""Drop-in replacements: other packages' operators, run by cvkernels.

One module for each package that can be patched. Importing this package imports nothing else.
"""
