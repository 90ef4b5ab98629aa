"""The papers' figures and tables, each made anew by name: `python -m experiments NAME`."""
