"""What `write_figures.py` writes into README.md and docs/, and where it comes from."""
