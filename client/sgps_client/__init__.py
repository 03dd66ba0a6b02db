"""The program at a site."""
