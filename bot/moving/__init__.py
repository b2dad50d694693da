"""Moving an archive: into another archive, into a file and back, and onto another model."""
