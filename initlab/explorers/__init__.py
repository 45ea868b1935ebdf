"""The apps, one per file, built only from the parts below them."""
