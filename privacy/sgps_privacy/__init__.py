"""The promise of a site: what is private, what it costs, what is written down before, and what may leave."""
