"""The searching side: the archive of pictures, what fills it, and what asks it."""
