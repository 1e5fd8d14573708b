"""Teachers and students: loading them, their heads, and where their weights live."""
