"""Go (Baduk) on small boards: capturing a group, and the territory of a settled board."""
