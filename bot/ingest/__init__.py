"""How posts come into the archive, and how the archive stays true to Discord."""
