"""Sample data in the official file formats, and the seeded generator that makes it."""
