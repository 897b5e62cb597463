"""The fastest correct way to build engines on this machine: measured, kept in a file, followed.

`tune` measures and writes, `follow` is what `build` reads; `record` documents the file.
"""
