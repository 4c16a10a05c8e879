"""One function per rule: it opens what the earlier stages left, calls the library, and writes.

This is the only package that knows how the others fit together; the scripts of the workflow call it.
Every function takes the completed config (holdfast.config.complete) and paths.
"""
